-- What all who deliver share, and what becomes of rows that nobody needs every day.

-- Stripe told one worker to slow down: how many requests a second all of them may send from then on.
CREATE TABLE rate (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    per_s double precision NOT NULL,
    cut_at double precision NOT NULL,
    not_before double precision NOT NULL
);

-- Archived rows. They are moved out of the tables that are at work, in small steps, and kept here by month, so
-- that whole months can be written to files and dropped. What their sums were stays for good.
CREATE TABLE archive_usage (
    seq bigint NOT NULL,
    id text COLLATE "C" NOT NULL,
    customer text COLLATE "C" NOT NULL,
    model text COLLATE "C",
    provider text,
    provenance text NOT NULL,
    response_id text,
    surface text NOT NULL,
    used_at double precision NOT NULL,
    counts text NOT NULL,
    dimensions text NOT NULL,
    lines text NOT NULL,
    recorded_at double precision NOT NULL,
    "freeze" bigint NOT NULL
) PARTITION BY RANGE (used_at);
CREATE TABLE archive_event (
    seq bigint NOT NULL,
    identifier text COLLATE "C" NOT NULL,
    "freeze" bigint NOT NULL,
    line_key bigint NOT NULL,
    customer text COLLATE "C" NOT NULL,
    event_name text COLLATE "C" NOT NULL,
    value numeric NOT NULL,
    timestamp bigint NOT NULL,
    payload text NOT NULL,
    frozen_at double precision NOT NULL,
    replaces text COLLATE "C",
    state text COLLATE "C" NOT NULL,
    attempts integer NOT NULL,
    fence bigint NOT NULL,
    attempt_started_at double precision,
    first_ambiguous_at double precision,
    next_attempt_at double precision,
    backoff_s double precision NOT NULL,
    reason text
) PARTITION BY RANGE (timestamp);
CREATE INDEX archive_event_identifier ON archive_event (identifier);
CREATE INDEX archive_event_span ON archive_event (customer, event_name, timestamp);
CREATE TABLE archive_attempt (
    timestamp bigint NOT NULL,
    identifier text COLLATE "C" NOT NULL,
    number integer NOT NULL,
    fence bigint NOT NULL,
    started_at double precision NOT NULL,
    ended_at double precision,
    outcome text,
    status integer,
    code text,
    message text,
    request_id text
) PARTITION BY RANGE (timestamp);
CREATE INDEX archive_attempt_identifier ON archive_attempt (identifier);

-- What was archived is still known by its id, for good: offered again it changes nothing.
CREATE TABLE archived_record (id uuid PRIMARY KEY);

CREATE TABLE archived_usage_sum (
    customer text COLLATE "C" NOT NULL,
    model text COLLATE "C",
    line_key bigint NOT NULL,
    added numeric NOT NULL,
    taken numeric NOT NULL
);
CREATE UNIQUE INDEX archived_usage_sum_once ON archived_usage_sum (customer, line_key, coalesce(model, ''));
CREATE TABLE archived_event_sum (
    customer text COLLATE "C" NOT NULL,
    line_key bigint NOT NULL,
    state text COLLATE "C" NOT NULL,
    value numeric NOT NULL,
    PRIMARY KEY (customer, line_key, state)
);
CREATE TABLE archived_rows (
    kind text COLLATE "C" PRIMARY KEY,
    rows bigint NOT NULL
);

-- Months that were written to a file and dropped.
CREATE TABLE archived_file (
    kind text COLLATE "C" NOT NULL,
    month text COLLATE "C" NOT NULL,
    until bigint NOT NULL,
    rows bigint NOT NULL,
    file text NOT NULL,
    written_at double precision NOT NULL
);
