-- The tables of a ledger, as SQLite has them, and what a fleet needs: who works, and on which customers.
-- Values are text, JSON and numbers; times are Unix seconds; no prompt, no answer.
-- JSON is kept as text: jsonb refuses characters that our users may use, and nothing here looks into it.

-- Fences: each lease and each attempt to send gets the next number. A write under an older one changes nothing.
CREATE SEQUENCE fence;

CREATE TABLE usage (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE,
    customer text COLLATE "C",
    model text COLLATE "C",
    provider text,
    provenance text NOT NULL,
    response_id text,
    surface text NOT NULL,
    used_at double precision NOT NULL,
    counts text NOT NULL,
    dimensions text NOT NULL,
    lines text NOT NULL,
    held text,
    recorded_at double precision NOT NULL,
    "freeze" bigint,
    partition smallint GENERATED ALWAYS AS ((hashtextextended(customer, 0) & 63)::smallint) STORED
);
CREATE INDEX usage_billable ON usage (used_at)
    WHERE "freeze" IS NULL AND held IS NULL AND customer IS NOT NULL;
CREATE INDEX usage_set_aside ON usage (seq)
    WHERE "freeze" IS NULL AND (held IS NOT NULL OR customer IS NULL);

-- Streams under way. What a worker left here that is heard of no more becomes usage.
CREATE TABLE progress (
    id text COLLATE "C" PRIMARY KEY,
    customer text COLLATE "C",
    model text COLLATE "C",
    provider text,
    provenance text NOT NULL,
    response_id text,
    surface text NOT NULL,
    used_at double precision NOT NULL,
    counts text NOT NULL,
    dimensions text NOT NULL,
    lines text NOT NULL,
    held text,
    recorded_at double precision NOT NULL,
    worker text COLLATE "C" NOT NULL
);
CREATE INDEX progress_worker ON progress (worker);

CREATE TABLE line_key (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_name text COLLATE "C" NOT NULL,
    dimensions text COLLATE "C" NOT NULL,
    customer_key text COLLATE "C" NOT NULL,
    value_key text COLLATE "C" NOT NULL,
    aggregation text COLLATE "C" NOT NULL
);
-- Dimensions may be longer than an index takes.
CREATE UNIQUE INDEX line_key_once ON line_key
    (event_name, md5(dimensions), customer_key, value_key, aggregation);
CREATE INDEX line_key_dimensions ON line_key USING hash (dimensions);

CREATE TABLE "freeze" (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bucket bigint NOT NULL,
    bucket_s integer NOT NULL,
    records bigint NOT NULL,
    frozen_at double precision NOT NULL
);

CREATE TABLE meter_event (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    identifier text COLLATE "C" NOT NULL UNIQUE,
    "freeze" bigint NOT NULL,
    line_key bigint NOT NULL,
    customer text COLLATE "C" NOT NULL,
    event_name text COLLATE "C" NOT NULL,
    value numeric NOT NULL,
    timestamp bigint NOT NULL,
    payload text NOT NULL,
    frozen_at double precision NOT NULL,
    replaces text COLLATE "C" UNIQUE,
    state text COLLATE "C" NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    fence bigint NOT NULL DEFAULT 0,
    lease_until double precision,
    attempt_started_at double precision,
    first_ambiguous_at double precision,
    next_attempt_at double precision,
    backoff_s double precision NOT NULL DEFAULT 0,
    reason text,
    partition smallint GENERATED ALWAYS AS ((hashtextextended(customer, 0) & 63)::smallint) STORED
);
CREATE INDEX meter_event_waiting ON meter_event (customer, event_name, next_attempt_at)
    WHERE next_attempt_at IS NOT NULL;
CREATE INDEX meter_event_due ON meter_event (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX meter_event_sending ON meter_event (partition) WHERE state = 'SENDING';
CREATE INDEX meter_event_doubtful ON meter_event (first_ambiguous_at) WHERE state = 'AMBIGUOUS';
CREATE INDEX meter_event_open ON meter_event (timestamp, seq) WHERE state IN ('ACCEPTED', 'IN_DOUBT');
CREATE INDEX meter_event_oldest ON meter_event (timestamp)
    WHERE next_attempt_at IS NOT NULL OR state = 'SENDING';
CREATE INDEX meter_event_since ON meter_event (frozen_at)
    WHERE next_attempt_at IS NOT NULL OR state = 'SENDING';
CREATE INDEX meter_event_looked_for ON meter_event (state, seq)
    WHERE state IN ('PENDING', 'SENDING', 'AMBIGUOUS', 'IN_DOUBT', 'DEAD');
CREATE INDEX meter_event_span ON meter_event (customer, event_name, timestamp);

CREATE TABLE attempt (
    identifier text COLLATE "C" NOT NULL,
    number integer NOT NULL,
    fence bigint NOT NULL,
    started_at double precision NOT NULL,
    ended_at double precision,
    outcome text,
    status integer,
    code text,
    message text,
    request_id text,
    PRIMARY KEY (identifier, number)
);

CREATE TABLE action (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at double precision NOT NULL,
    who text NOT NULL,
    why text NOT NULL,
    what text NOT NULL,
    subject text COLLATE "C" NOT NULL,
    before text,
    after text
);
CREATE INDEX action_subject ON action USING hash (subject);
CREATE INDEX action_written_off ON action (subject) WHERE what = 'write_off';

CREATE TABLE meta (
    name text COLLATE "C" PRIMARY KEY,
    value text NOT NULL
);

-- Every process that records or delivers. One that is heard of no more has left its streams to the others.
CREATE TABLE worker (
    id text COLLATE "C" PRIMARY KEY,
    host text NOT NULL,
    pid bigint NOT NULL,
    seen_at double precision NOT NULL,
    delivers_until double precision,
    gone boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);

-- Customers by hash. Whoever holds a partition freezes and sends what is its customers', and nobody else does.
CREATE TABLE partition (
    number smallint PRIMARY KEY,
    worker text COLLATE "C",
    fence bigint NOT NULL DEFAULT 0,
    lease_until double precision
) WITH (fillfactor = 50);
INSERT INTO partition (number) SELECT generate_series(0, 63);
