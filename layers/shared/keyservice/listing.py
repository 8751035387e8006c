"""Showing keys: one, the caller's, a user's, everybody's; one round trip to PostgreSQL, no call to LiteLLM."""

from collections.abc import Mapping
from uuid import UUID

from keyservice import listing_store as store
from keyservice import telemetry
from keyservice.database import Database
from keyservice.decoding import invalid
from keyservice.errors import NotFound, Violation
from keyservice.listing_store import StoredPage
from keyservice.models import (
    Caller,
    Cursor,
    FoundKey,
    KeyPage,
    ListQuery,
    Pagination,
    or_unset,
    parse_uuid,
)
from keyservice.queries import decode_cursor, encode_cursor, parse_boolean, parse_id, parse_whole_number
from keyservice.standing import parse_owner, require_active, require_may_see_all, user_not_found

_MAX_PAGE = 1_000_000


class KeyListing:
    def __init__(self, *, database: Database) -> None:
        self._database = database

    def one(self, caller: Caller, api_key_id: str) -> FoundKey:
        """Raises NotFound for a key that is not there or not the caller's, Forbidden for an inactive caller."""
        key_id = parse_uuid(api_key_id)
        if key_id is None:
            raise _missing_key()
        standing, found = store.find_key(self._database, caller, key_id)
        require_active(standing)
        if found is None:
            raise _missing_key()
        telemetry.identify(key_id=key_id)
        return found

    def page(self, caller: Caller, parameters: Mapping[str, str]) -> KeyPage:
        """The page of the caller's keys that the query string asks for, newest first.

        Raises InvalidRequest naming every parameter that is wrong, Forbidden for an inactive caller.
        """
        query = parse_list_query(parameters)
        standing, stored = store.list_keys(self._database, caller, query)
        require_active(standing)
        return _page(query, stored)

    def everybodys_page(self, caller: Caller, parameters: Mapping[str, str]) -> KeyPage:
        """The same over all users, with the filter `userId`. Raises Forbidden for anyone but administrators."""
        query = parse_list_query(parameters, takes_user_id=True)
        standing, stored, _ = store.list_all_keys(self._database, caller, query)
        require_may_see_all(standing)
        return _page(query, stored)

    def users_page(self, caller: Caller, user_id: str, parameters: Mapping[str, str]) -> KeyPage:
        """The same of one user. Raises Forbidden for anyone but administrators, NotFound for a user who is not there."""
        query = parse_list_query(parameters, user_id=parse_owner(user_id))
        standing, stored, is_user_known = store.list_all_keys(self._database, caller, query)
        require_may_see_all(standing)
        if not is_user_known:
            raise user_not_found()
        return _page(query, stored)


def parse_list_query(
    parameters: Mapping[str, str], *, takes_user_id: bool = False, user_id: UUID | None = None
) -> ListQuery:
    """The query string as API Gateway gives it, values of one name joined by commas; unknown names are ignored, and
    userId is one where the keys' owner is given already.

    Raises InvalidRequest naming every parameter that is wrong.
    """
    violations: list[Violation] = []

    page = parse_whole_number(parameters, "page", default=1, maximum=_MAX_PAGE, violations=violations)
    limit = parse_whole_number(parameters, "limit", default=20, maximum=100, violations=violations)
    is_active = parse_boolean(parameters, "isActive", violations=violations)
    subscription_id = parse_id(parameters, "subscriptionId", violations=violations)
    if takes_user_id:
        user_id = parse_id(parameters, "userId", violations=violations)
    cursor = decode_cursor(parameters, violations=violations)
    if "cursor" in parameters and "page" in parameters:
        violations.append(Violation("page", "must not be given together with cursor", "not"))
    model_ids = [model_id for model_id in parameters.get("modelIds", "").split(",") if model_id] or None
    if any("\0" in model_id for model_id in model_ids or []):
        violations.append(Violation("modelIds", "must not contain the character U+0000", "pattern"))
    if violations:
        raise invalid(violations)
    return ListQuery(
        page=page,
        limit=limit,
        cursor=cursor,
        is_active=is_active,
        model_ids=model_ids,
        subscription_id=subscription_id,
        user_id=user_id,
    )


def _missing_key() -> NotFound:
    return NotFound(
        "API key not found",
        details={"resource": "API key", "suggestion": "Verify the API key identifier and try again"},
    )


def _page(query: ListQuery, stored: StoredPage) -> KeyPage:
    return KeyPage(
        data=[store.listed(key) for key in stored.keys[: query.limit]], pagination=_pagination(query, stored)
    )


def _pagination(query: ListQuery, stored: StoredPage) -> Pagination:
    """`total` travels in the cursor, so that it is counted once and not again on every page."""
    has_more = len(stored.keys) > query.limit
    last = stored.keys[query.limit - 1] if has_more else None
    return Pagination(
        page=or_unset(None if query.cursor else query.page),
        limit=query.limit,
        total=stored.total,
        total_pages=-(-stored.total // query.limit),
        next_cursor=or_unset(
            last and encode_cursor(Cursor(created_at=last.created_at, id=last.id, total=stored.total))
        ),
    )
