"""Who may do what: the one place where the words in users.roles and in the token's roles claim mean something.

A caller's words are those of their row and of their token together; the first line with one of them counts:

admin              sees and changes everything
admin-readonly     sees everything, changes nothing, not even keys of their own
readonly           sees their own keys, changes nothing
user, or none      sees and changes their own keys; words of other systems neither give nor take

`readonly` wins over `user` because every row has `user` by default: given by the token alone it would mean nothing.
"""

from typing import LiteralString
from uuid import UUID

import msgspec

from keyservice import telemetry
from keyservice.database import Database, Rows, Statement
from keyservice.errors import Forbidden, NotFound
from keyservice.journal import reading, registering, require_known
from keyservice.models import Caller, parse_uuid


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller may do; nothing at all while `is_active` is False."""

    user_id: UUID
    is_active: bool
    may_change_own: bool
    may_see_all: bool
    may_change_all: bool


# Reads `caller` (id, is_active, roles) of the statement it is part of, which enforces what it says.
STANDING: LiteralString = """standing AS (
    SELECT
        caller.id AS user_id,
        caller.is_active IS TRUE AS is_active,
        caller.is_active IS TRUE AND (w.words && '{admin}' OR NOT w.words && '{admin-readonly,readonly}') AS may_change_own,
        caller.is_active IS TRUE AND w.words && '{admin,admin-readonly}' AS may_see_all,
        caller.is_active IS TRUE AND w.words && '{admin}' AS may_change_all
    FROM caller
    CROSS JOIN LATERAL (SELECT coalesce(caller.roles, '{}') || %(claimed_roles)s::text[]) AS w (words)
)"""

# Whose key a change is about: the caller's own, or a user's, for whoever may change everything. Empty for anyone else.
OWNER: LiteralString = """owner AS (
    SELECT standing.user_id AS id FROM standing WHERE %(owner_id)s::uuid IS NULL AND standing.may_change_own
    UNION ALL
    SELECT u.id FROM users AS u JOIN standing ON standing.may_change_all WHERE u.id = %(owner_id)s
)"""

# The id of no user: what a malformed one leads to is not there, but only administrators are told so.
NOBODY = UUID(int=0)

# Finds the caller, registers one seen for the first time, and says what they may do. `known` has those there before.
CALLER: LiteralString = (
    """known AS (
    -- Two reads of one index each: an OR of both can only be read through bitmaps, which lists do without.
    SELECT id, is_active, roles FROM users WHERE id = %(caller_id)s
    UNION ALL
    SELECT id, is_active, roles FROM users WHERE oauth_provider = %(provider)s AND oauth_id = %(subject)s
),
registered AS (
    INSERT INTO users (username, email, full_name, oauth_provider, oauth_id, last_login_at)
    SELECT %(username)s, %(email)s, %(full_name)s, %(provider)s, %(subject)s, now()
    WHERE %(caller_id)s::uuid IS NULL AND NOT EXISTS (SELECT FROM known)
    ON CONFLICT (oauth_provider, oauth_id) DO NOTHING
    RETURNING id, is_active, roles
),
caller AS (
    SELECT * FROM known UNION ALL SELECT * FROM registered
),
"""
    + STANDING
)


def ask_as_caller(database: Database, caller: Caller, *statements: Statement) -> tuple[Standing, Rows]:
    """One round trip of statements that change nothing but who is registered, and whose last gives the caller's
    `standing` in every row, at least one. Raises IdentityConflict when their username or email belongs to another
    identity, Unauthorized when their row has to be there and is not."""
    return reading(lambda: change_as_caller(database, caller, *statements))


def change_as_caller(database: Database, caller: Caller, *statements: Statement) -> tuple[Standing, Rows]:
    """The same for statements that are not to be repeated when their outcome is unknown: raises OutcomeUnknown."""
    rows = registering(database, *statements)[-1]
    require_known(caller, rows)
    # None: another request of theirs, the first as well, is registering them at this moment.
    rows = rows or registering(database, *statements)[-1]
    return msgspec.convert(rows[0]["standing"], Standing), rows


def require_active(standing: Standing) -> None:
    """Raises Forbidden."""
    telemetry.identify(user_id=standing.user_id)
    if not standing.is_active:
        raise inactive()


def require_may_change_own(standing: Standing) -> None:
    """Raises Forbidden."""
    require_active(standing)
    if not standing.may_change_own:
        raise read_only()


def require_may_see_all(standing: Standing) -> None:
    """Raises Forbidden."""
    require_active(standing)
    if not standing.may_see_all:
        raise Forbidden("This needs an administrator's role.")


def require_may_change_all(standing: Standing) -> None:
    """Raises Forbidden."""
    require_may_see_all(standing)
    if not standing.may_change_all:
        raise read_only()


def require_may_change(standing: Standing, *, owner_id: UUID | None) -> None:
    """The keys of a user, or with None the caller's own. Raises Forbidden."""
    if owner_id is None:
        require_may_change_own(standing)
    else:
        require_may_change_all(standing)


def parse_owner(user_id: str) -> UUID:
    """`owner_id` for the statements; that of nobody when it is malformed."""
    return parse_uuid(user_id) or NOBODY


def user_not_found() -> NotFound:
    return NotFound("User not found", details={"resource": "User"})


def inactive() -> Forbidden:
    return Forbidden("This account is not active. Ask an administrator.")


def read_only() -> Forbidden:
    return Forbidden("This account may look, but change nothing. Ask an administrator.")
