"""Listing a caller's keys: one round trip to PostgreSQL, no call to LiteLLM, whatever the number of keys."""

from collections.abc import Mapping

from keyservice import telemetry
from keyservice.database import Database
from keyservice.decoding import invalid
from keyservice.errors import Forbidden, Violation
from keyservice.listing_store import StoredKey, StoredPage, list_keys
from keyservice.models import Caller, Cursor, KeyPage, ListedKey, ListQuery, Pagination, or_unset, parse_uuid, timestamp
from keyservice.queries import decode_cursor, encode_cursor, parse_whole_number

_MAX_PAGE = 1_000_000


class KeyListing:
    def __init__(self, *, database: Database) -> None:
        self._database = database

    def page(self, caller: Caller, parameters: Mapping[str, str]) -> KeyPage:
        """The page of the caller's keys that the query string asks for, newest first.

        Raises InvalidRequest naming every parameter that is wrong, Forbidden for an inactive caller.
        """
        query = parse_list_query(parameters)
        stored = list_keys(self._database, caller, query)
        telemetry.identify(user_id=stored.user_id)
        if not stored.is_caller_active:
            raise Forbidden("This account is not active. Ask an administrator.")
        shown = stored.keys[: query.limit]
        return KeyPage(data=[_listed(key) for key in shown], pagination=_pagination(query, stored))


def parse_list_query(parameters: Mapping[str, str]) -> ListQuery:
    """The query string as API Gateway gives it, values of one name joined by commas; unknown names are ignored.

    Raises InvalidRequest naming every parameter that is wrong.
    """
    violations: list[Violation] = []

    page = parse_whole_number(parameters, "page", default=1, maximum=_MAX_PAGE, violations=violations)
    limit = parse_whole_number(parameters, "limit", default=20, maximum=100, violations=violations)
    is_active = {"true": True, "false": False}.get(parameters.get("isActive", ""))
    if is_active is None and "isActive" in parameters:
        violations.append(Violation("isActive", "must be true or false", "type"))
    subscription_id = parse_uuid(parameters.get("subscriptionId", ""))
    if subscription_id is None and "subscriptionId" in parameters:
        violations.append(Violation("subscriptionId", "must be a UUID", "format"))
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


def _listed(key: StoredKey) -> ListedKey:
    return ListedKey(
        id=key.id,
        user_id=key.user_id,
        key_prefix=key.key_prefix,
        models=[model.id for model in key.model_details],
        created_at=timestamp(key.created_at),
        is_active=key.is_active,
        status=key.status,
        name=key.name or "",
        model_details=key.model_details,
        current_spend=key.current_spend,
        budget_duration=key.budget_duration or "",
        model_max_budget=key.model_max_budget or {},
        model_rpm_limit=key.model_rpm_limit or {},
        model_tpm_limit=key.model_tpm_limit or {},
        metadata=key.metadata or {},
        subscription_id=or_unset(key.subscription_id),
        last_used_at=or_unset(key.last_used_at and timestamp(key.last_used_at)),
        expires_at=or_unset(key.expires_at and timestamp(key.expires_at)),
        max_budget=or_unset(key.max_budget),
        soft_budget=or_unset(key.soft_budget),
        tpm_limit=or_unset(key.tpm_limit),
        rpm_limit=or_unset(key.rpm_limit),
        max_parallel_requests=or_unset(key.max_parallel_requests),
        spend_as_of=or_unset(key.last_sync_at and timestamp(key.last_sync_at)),
    )
