"""The tables of a ledger. Values are text, JSON and numbers; times are Unix seconds; no prompt, no answer.

`usage.seq` and `meter_event.seq` are given out one by one and rows are never deleted, so that a gap, or a
count below the high-water mark kept beside the file, shows a loss.
"""

from __future__ import annotations

import sqlite3

APPLICATION_ID = 0x6C6C6D6D  # "llmm": tells our files from any other database
VERSION = 1

TABLES = """
CREATE TABLE usage (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    customer TEXT,
    model TEXT,
    provider TEXT,
    provenance TEXT NOT NULL,
    response_id TEXT,
    surface TEXT NOT NULL,
    used_at REAL NOT NULL,
    counts TEXT NOT NULL,
    dimensions TEXT NOT NULL,
    lines TEXT NOT NULL,
    held TEXT,
    recorded_at REAL NOT NULL,
    freeze INTEGER
);
CREATE INDEX usage_billable ON usage (used_at)
    WHERE freeze IS NULL AND held IS NULL AND customer IS NOT NULL;
CREATE INDEX usage_set_aside ON usage (seq)
    WHERE freeze IS NULL AND (held IS NOT NULL OR customer IS NULL);

CREATE TABLE progress (
    id TEXT PRIMARY KEY,
    customer TEXT,
    model TEXT,
    provider TEXT,
    provenance TEXT NOT NULL,
    response_id TEXT,
    surface TEXT NOT NULL,
    used_at REAL NOT NULL,
    counts TEXT NOT NULL,
    dimensions TEXT NOT NULL,
    lines TEXT NOT NULL,
    held TEXT,
    recorded_at REAL NOT NULL
);

CREATE TABLE line_key (
    id INTEGER PRIMARY KEY,
    event_name TEXT NOT NULL,
    dimensions TEXT NOT NULL,
    customer_key TEXT NOT NULL,
    value_key TEXT NOT NULL,
    aggregation TEXT NOT NULL,
    UNIQUE (event_name, dimensions, customer_key, value_key, aggregation)
);

CREATE TABLE freeze (
    id INTEGER PRIMARY KEY,
    bucket INTEGER NOT NULL,
    bucket_s INTEGER NOT NULL,
    records INTEGER NOT NULL,
    frozen_at REAL NOT NULL
);

CREATE TABLE meter_event (
    seq INTEGER PRIMARY KEY,
    identifier TEXT NOT NULL UNIQUE,
    freeze INTEGER NOT NULL,
    line_key INTEGER NOT NULL,
    customer TEXT NOT NULL,
    event_name TEXT NOT NULL,
    value TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    payload TEXT NOT NULL,
    frozen_at REAL NOT NULL,
    replaces TEXT UNIQUE,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    fence INTEGER NOT NULL DEFAULT 0,
    lease_until REAL,
    attempt_started_at REAL,
    first_ambiguous_at REAL,
    next_attempt_at REAL,
    backoff_s REAL NOT NULL DEFAULT 0,
    reason TEXT
);
CREATE INDEX meter_event_waiting ON meter_event (customer, event_name, next_attempt_at)
    WHERE next_attempt_at IS NOT NULL;
CREATE INDEX meter_event_due ON meter_event (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX meter_event_state ON meter_event (state);

CREATE TABLE attempt (
    identifier TEXT NOT NULL,
    number INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    started_at REAL NOT NULL,
    ended_at REAL,
    outcome TEXT,
    status INTEGER,
    code TEXT,
    message TEXT,
    request_id TEXT,
    PRIMARY KEY (identifier, number)
) WITHOUT ROWID;

CREATE TABLE action (
    seq INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    what TEXT NOT NULL,
    subject TEXT NOT NULL,
    before TEXT,
    after TEXT
);

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID
"""
"""A line's key, in `line_key`, is written once; `usage.lines` then holds pairs of its id and a value, which
is a JSON number if whole and a string in plain decimal notation if not. `freeze` numbers one bucket of one
freeze. `meter_event.next_attempt_at` is set only while PENDING or AMBIGUOUS."""


STEPS: dict[int, str] = {}
"""What leads from a version to the next: statements parted by ";\\n", such as {1: "ALTER TABLE usage ADD …"}.
A new file is made from version 1 by the same steps, so that old and new files are alike."""


def create(db: sqlite3.Connection) -> None:
    """Make the tables in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    _run(db, TABLES)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute("PRAGMA user_version = 1")
    for version in range(1, VERSION):
        step(db, version)
    db.execute("COMMIT")


def step(db: sqlite3.Connection, version: int) -> None:
    """Lead from a version to the next, inside a transaction."""
    _run(db, STEPS[version])
    db.execute(f"PRAGMA user_version = {version + 1}")


def _run(db: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";\n"):
        db.execute(statement)


def version_of(db: sqlite3.Connection) -> int | None:
    """The schema's number; None if the file is not one of ours."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version) if application == APPLICATION_ID and version > 0 else None
