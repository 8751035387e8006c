-- What reconcile found, kept between its runs: it never trusts one look, and what it began to heal it finishes.

CREATE TABLE keyservice_findings (
    hash text PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('orphan', 'missing', 'drift', 'found', 'unknown', 'foreign')),
    state text NOT NULL DEFAULT 'seen' CHECK (state IN ('seen', 'healing')),
    is_settled boolean NOT NULL DEFAULT false,
    fields text[] NOT NULL DEFAULT '{}',
    row_updated_at timestamptz,
    first_pass bigint NOT NULL,
    last_pass bigint NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN keyservice_findings.is_settled IS 'True of a missing key whose row says so already: nothing is left to do.';
COMMENT ON COLUMN keyservice_findings.fields IS 'Of a drift: what differs, in LiteLLM''s words.';
CREATE INDEX keyservice_findings_of_kind ON keyservice_findings (kind, hash);

-- Where the comparison stands: one that outlasts a run, or was cut, goes on where it stopped.
CREATE TABLE keyservice_reconciliation (
    is_the_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_the_only_row),
    pass bigint NOT NULL DEFAULT 0,
    stage text NOT NULL DEFAULT 'done' CHECK (stage IN ('compare', 'heal', 'done')),
    page integer NOT NULL DEFAULT 1 CHECK (page > 0),
    after_hash text NOT NULL DEFAULT '',
    keys_compared integer NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT now(),
    advanced_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO keyservice_reconciliation DEFAULT VALUES;

-- Dead tokens are kept for years and outnumber the live ones, which are what each pass walks through.
CREATE INDEX api_key_tokens_live ON api_key_tokens (hash) WHERE state = 'live';
