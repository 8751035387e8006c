"""The routes under /key/."""

import asyncio
import base64
import math
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from local.litellm.access import Call
from local.litellm.durations import Unparsable, budget_reset_after, expiry_after, now
from local.litellm.refusals import (
    Row,
    refused,
    refused_as_invalid,
    refused_as_repr,
    refused_with_detail,
)
from local.litellm.rows import budget_table, moved_into_metadata, new_row, status_of, token_of, with_z, without_token
from local.litellm.tables import Tables
from local.litellm.values import (
    KEY_FIELDS,
    NEW_KEY_FIELDS,
    Reader,
    check_alias_format,
    check_budgets,
    check_licence,
    check_storable,
    read_bool,
    read_fields,
    read_float,
    read_int,
    read_list,
    read_string,
)

MINIMUM_OWN_KEY_LENGTH = 16
SORT_COLUMNS = ("spend", "max_budget", "created_at", "updated_at", "token", "key_alias")
STATUSES = ("active", "expired", "revoked", "deleted")


class KeyRoutes:
    """One method per route; each returns the body of a 200."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def generate(self, call: Call) -> Row:
        values = read_fields(await call.body(), NEW_KEY_FIELDS)
        if call.key is not None and values.setdefault("user_id", call.user_id) != call.user_id:
            raise refused(403, "a user makes keys for no one else")
        return await self.generate_from(values, created_by=call.user_id or "")

    async def generate_from(self, values: Row, *, created_by: str) -> Row:
        check_budgets(values)
        check_licence(values, model_budget_status=500)
        if values.get("key_alias") is not None:
            await self._check_alias_is_free(values["key_alias"])
        key = _own_or_random_key(values.get("key"))
        if values.get("budget_duration") is not None:
            values["budget_reset_at"] = budget_reset_after(values["budget_duration"])
        if values.get("duration") is not None:
            try:
                values["expires"] = expiry_after(values["duration"])
            except Unparsable as error:
                raise refused(500, str(error)) from error
        check_storable(values)
        asked = new_row(key, values, created_by=created_by)
        stored = self._tables.keys.get(asked["token"])
        if stored is None:
            stored = asked
            self._tables.save_key(stored)
        # The trap: a repeated own key is echoed as it was asked for now, while the stored row stays as it was.
        times = {name: stored[name] for name in ("created_at", "updated_at")}
        return with_z(asked | times | {"key": key, "token_id": asked["token"], "duration": None})

    async def delete(self, call: Call) -> Row:
        values = read_fields(await call.body(), {"keys": read_list, "key_aliases": read_list})
        for name, entries in values.items():
            for index, entry in enumerate(entries or []):
                if not isinstance(entry, str):
                    raise refused_as_invalid("string_type", ["body", name, index], "not a string")
        if values.get("keys"):
            asked, tokens = values["keys"], {token_of(key) for key in values["keys"]}
        elif values.get("key_aliases"):
            asked = values["key_aliases"]
            tokens = {token for alias in asked for token in self._tables.tokens_with_alias(alias)}
        else:
            raise refused_as_invalid("value_error", ["body"], "one of keys and key_aliases is needed")
        found = [self._tables.keys[token] for token in tokens if token in self._tables.keys]
        if not found:
            raise refused_as_repr(404, "none of the keys exists")
        if call.key is not None and any(row["user_id"] != call.user_id for row in found):
            raise refused_as_repr(403, "a user deletes no one else's keys")
        # LiteLLM finds, archives and deletes in separate statements: concurrent deletes of one key can all be 200.
        await asyncio.sleep(0)
        for row in found:
            self._tables.archive_key(
                row,
                deleted_by=call.user_id or "",
                deleted_by_api_key=call.key["token"] if call.key else "litellm_proxy_master_key",
                changed_by=call.request.headers.get("litellm-changed-by"),
            )
        # What was asked for, not what was found.
        return {"deleted_keys": asked}

    async def info(self, call: Call) -> Row:
        key = call.request.query_params.get("key")
        if key is None and call.key is not None:
            key = call.key["token"]
        token = token_of(key or "")
        row = self._tables.keys.get(token) or self._tables.deleted.get(token)
        if row is None:
            raise refused(404, "there is no such key", "not_found_error", "key")
        # A key without a user so sees the other keys without one.
        if call.key is not None and row["user_id"] != call.user_id:
            raise refused(403, "a user sees no one else's keys")
        return {"key": key, "info": without_token(row) | {"status": status_of(row)}}

    async def info_of_many(self, call: Call) -> Row:
        """Unlike the info of one key it does not look among the deleted ones."""
        asked = _required(await call.body(), "keys", read_list)
        found = [self._tables.keys[token] for key in asked if (token := token_of(str(key))) in self._tables.keys]
        return {"key": asked, "info": [without_token(row) for row in found]}

    async def list_page(self, call: Call) -> Row:
        query = dict(call.request.query_params)
        numbers = read_fields(query, {"page": read_int, "size": read_int}, within="query")
        flags = read_fields(query, {"return_full_object": read_bool, "substring_matching": read_bool}, within="query")
        page, size = numbers.get("page", 1), numbers.get("size", 10)
        if page < 1 or size < 1:
            raise refused_as_invalid("greater_than_equal", ["query", "page" if page < 1 else "size"], "at least 1")
        if size > 100:
            raise refused_as_invalid("less_than_equal", ["query", "size"], "at most 100")
        if call.key is not None:
            if call.user is None:
                raise refused(403, "the key belongs to no user", "bad_request_error", "user_id")
            query["user_id"] = call.user["user_id"]
        rows = self._selected(query, substring=flags.get("substring_matching", False))
        shown = rows[(page - 1) * size : page * size]
        return {
            "keys": [
                with_z(row | {"litellm_budget_table": None}) if flags.get("return_full_object") else row["token"]
                for row in shown
            ],
            "total_count": len(rows),
            "current_page": page,
            "total_pages": math.ceil(len(rows) / size),
        }

    async def update(self, call: Call) -> Row:
        values = read_fields(await call.body(), KEY_FIELDS)
        key, alias = values.get("key"), values.get("key_alias")
        if key is None and alias is None:
            raise refused_as_invalid("value_error", ["body"], "one of key and key_alias is needed")
        call.check_is_admin()
        shape = {"kind": "auth_error", "param": "None"}
        check_budgets(values, **shape)
        token = token_of(key) if key is not None else self._token_with_alias(alias or "")
        self._tables.live_key(token)
        check_licence(values, model_budget_status=400, **shape)
        if alias is not None:
            await self._check_alias_is_free(alias, except_token=token)
        row = self._tables.live_key(token)
        self._check_team(values.get("team_id"), row=row)
        moment = now().isoformat()
        row = row | _changes(values, row=row) | {"updated_at": moment, "settings_updated_at": moment}
        self._tables.save_key(row)
        return row | {"key": key if key is not None else token, "litellm_budget_table": None}

    async def block(self, call: Call) -> Row:
        return await self._set_blocked(call, blocked=True)

    async def unblock(self, call: Call) -> Row:
        return await self._set_blocked(call, blocked=False)

    async def reset_spend(self, call: Call) -> Row:
        spend = _required(await call.body(), "reset_to", read_float)
        key = call.request.path_params["key"]
        row = self._tables.keys.get(token_of(key))
        if spend < 0:
            raise refused_with_detail(400, {"error": "reset_to is negative"})
        if row is None:
            raise refused_with_detail(404, {"error": "there is no such key"})
        if spend > row["spend"]:
            raise refused_with_detail(400, {"error": "reset_to is more than was spent"})
        self._tables.save_key(row | {"spend": spend})
        shown = with_z({name: row[name] for name in ("max_budget", "budget_reset_at")})
        return {"key_hash": row["token"], "spend": spend, "previous_spend": row["spend"], **shown}

    async def _check_alias_is_free(self, alias: str, *, except_token: str | None = None) -> None:
        check_alias_format(alias)
        taken = self._tables.tokens_with_alias(alias) - {except_token}
        # A read now and a write later, as at LiteLLM: concurrent calls with one alias can all succeed.
        await asyncio.sleep(0)
        if taken:
            raise refused(400, "another key has this key_alias", "bad_request_error", "key_alias")

    def _check_team(self, team_id: str | None, *, row: Row) -> None:
        """Only an update asks whether the team is there and the key's user in it, and only for another team."""
        if team_id is None or team_id == row["team_id"]:
            return
        team = self._tables.teams.get(team_id)
        if team is None:
            raise refused_as_repr(404, "there is no such team", kind="auth_error", param="None")
        if row["user_id"] not in [member["user_id"] for member in team["members_with_roles"]]:
            raise refused(403, "the key's user is not in the team", "auth_error", "None")

    def _token_with_alias(self, alias: str) -> str:
        for token in self._tables.tokens_with_alias(alias):
            return token
        raise refused(404, "no key has this key_alias", "not_found_error", "key_alias")

    async def _set_blocked(self, call: Call, *, blocked: bool) -> Row:
        key = _required(await call.body(), "key", read_string)
        call.check_is_admin()
        if not key.startswith("sk-") and not re.fullmatch(r"[0-9a-fA-F]{64}", key):
            raise refused(400, "neither a key nor a hash", "bad_request_error", "key")
        moment = now().isoformat()
        row = self._tables.live_key(token_of(key))
        row = row | {"blocked": blocked, "updated_at": moment, "settings_updated_at": moment}
        self._tables.save_key(row)
        return with_z(row)

    def _selected(self, query: Mapping[str, str], *, substring: bool) -> list[Row]:
        """Newest first, or by the column asked for."""
        status, column, order = query.get("status"), query.get("sort_by"), query.get("sort_order", "desc")
        if status not in (None, *STATUSES):
            raise refused_as_repr(400, f"status is not one of {STATUSES}", param="None")
        if column not in (None, *SORT_COLUMNS):
            raise refused_as_repr(400, f"sort_by is not one of {SORT_COLUMNS}", param="None")
        if order not in ("asc", "desc"):
            raise refused_as_repr(400, "sort_order is neither asc nor desc", param="None")
        rows = list((self._tables.deleted if status == "deleted" else self._tables.keys).values())
        if status is not None:
            rows = [row for row in rows if status_of(row) == status]
        for name in ("key_alias", "user_id"):
            if wanted := query.get(name):
                is_wanted = _like(wanted) if substring else wanted.__eq__
                rows = [row for row in rows if row[name] is not None and is_wanted(row[name])]
        if wanted := query.get("key_hash"):
            rows = [row for row in rows if row["token"] == wanted]
        if column is None:
            return rows[::-1]
        # Null counts as larger than every value, as in PostgreSQL.
        rows.sort(key=lambda row: (True, 0) if row[column] is None else (False, row[column]), reverse=order == "desc")
        return rows


def _required(body: Row, field: str, read: Reader) -> Any:
    if field not in body:
        raise refused_as_invalid("missing", ["body", field], "needed")
    return read_fields(body, {field: read})[field]


def _own_or_random_key(own: str | None) -> str:
    if own is None:
        return "sk-" + base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
    if not own.startswith("sk-"):
        raise refused_as_repr(400, "an own key starts with sk-")
    if len(own) < MINIMUM_OWN_KEY_LENGTH:
        raise refused_as_repr(400, f"an own key has at least {MINIMUM_OWN_KEY_LENGTH} characters")
    return own


def _changes(values: Row, *, row: Row) -> Row:
    """Fields left out stay; those sent replace the old value, null included."""
    changes = {name: value for name, value in values.items() if name in row and name != "model_max_budget"}
    if changes.get("models", []) is None:
        raise refused(400, "models cannot be null", "auth_error", "None")
    check_storable(changes)
    if "budget_duration" in values:
        period = values["budget_duration"]
        shape = {"kind": "auth_error", "param": "None"}
        changes["budget_reset_at"] = None if period is None else budget_reset_after(period, **shape)
    if "duration" in values:
        duration = values["duration"]
        try:
            changes["expires"] = None if duration in (None, "-1") else expiry_after(duration)
        except Unparsable as error:
            raise refused(400, str(error), "auth_error", "None") from error
    if "soft_budget" in values and (row["litellm_budget_table"] or values["soft_budget"] is not None):
        changes["litellm_budget_table"] = budget_table() | {"soft_budget": values["soft_budget"]}
    if moved := moved_into_metadata(values):
        changes["metadata"] = (changes.get("metadata", row["metadata"]) or {}) | moved
    return changes


def _like(wanted: str) -> Callable[[str], bool]:
    """SQL's ILIKE with the text anywhere. LiteLLM does not escape it: `%` and `_` in it are wildcards."""
    wildcards = {"%": ".*", "_": "."}
    pattern = re.compile(
        "".join(wildcards.get(letter, re.escape(letter)) for letter in wanted), re.IGNORECASE | re.DOTALL
    )
    return lambda text: pattern.search(text) is not None
