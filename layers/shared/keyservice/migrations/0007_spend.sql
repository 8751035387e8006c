-- How far bringing spend from LiteLLM has come: a run that ends goes on there, and a list can say as of when spend is.

CREATE TABLE keyservice_spend_sync (
    is_the_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_the_only_row),
    next_page integer NOT NULL DEFAULT 1 CHECK (next_page > 0),
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    round_began_at timestamptz,
    complete_as_of timestamptz
);
COMMENT ON COLUMN keyservice_spend_sync.complete_as_of IS
    'When the last complete round over all of LiteLLM''s keys began: no spend in api_keys is older.';
INSERT INTO keyservice_spend_sync DEFAULT VALUES;
