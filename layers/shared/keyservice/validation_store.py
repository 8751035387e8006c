"""The SQL of finding a key by its secret's hash."""

from typing import LiteralString

from keyservice.database import Database, Statement
from keyservice.journal import identity
from keyservice.key_status import PENDING_OPERATION, STATUS
from keyservice.models import Caller
from keyservice.standing import CALLER, Standing, ask_as_caller

_FIND_SECRET: LiteralString = (
    """/* find_secret */
WITH """
    + CALLER
    + """,
holder AS (
    SELECT t.api_key_id AS id FROM api_key_tokens AS t
    WHERE t.hash = %(secret_hash)s AND (t.state = 'live' OR (t.state = 'retiring' AND t.valid_until > now()))
    UNION ALL
    -- A secret that LiteMaaS made, for a key of its own or of ours, and that nothing of ours has touched yet, has no token.
    SELECT k.id FROM api_keys AS k
    WHERE k.key_hash = %(secret_hash)s AND NOT EXISTS (SELECT FROM api_key_tokens AS t WHERE t.hash = %(secret_hash)s)
),
holder_status AS (
    SELECT
        """
    + STATUS
    + """ AS status
    FROM holder
    JOIN api_keys AS k ON k.id = holder.id
    """
    + PENDING_OPERATION
    + """
)
SELECT
    to_jsonb(standing) AS standing,
    EXISTS (SELECT FROM holder_status WHERE status = 'active') AS is_valid
FROM standing"""
)


def find_secret(database: Database, caller: Caller, secret_hash: str) -> tuple[Standing, bool]:
    """Whether an active key has it: as a live token, as one in its grace, or as a key that LiteMaaS made."""
    parameters = {**identity(caller), "secret_hash": secret_hash}
    standing, [row] = ask_as_caller(database, caller, Statement(_FIND_SECRET, parameters))
    return standing, row["is_valid"]
