"""The invariants, asserted by reading PostgreSQL and LiteLLM themselves, and by using the secrets that were issued.

All of them speak of a quiet service: nothing is pending and nothing is under way.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

from tests.e2e.service import Row
from tests.faults.rig import MAX_ACTIVE_KEYS, Issued, Rig

# LiteLLM counts a key's lifetime from the moment it reads the request.
EXPIRY_TOLERANCE = timedelta(seconds=30)
# Of LiteLLM's column and ours.
LIMITS = {
    "max_budget": "max_budget",
    "tpm_limit": "tpm_limit",
    "rpm_limit": "rpm_limit",
    "max_parallel_requests": "max_parallel_requests",
    "budget_duration": "budget_duration",
}
PAGE_SIZE = 100
# By the reason of an operation whose audit record is not called after its kind.
ACTIONS = {"expired": "API_KEY_EXPIRED", "revoked": "API_KEY_REVOKE", "resetSpend": "API_KEY_RESET_SPEND"}


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What both systems hold of some users, or of all."""

    rows: dict[str, Row]
    tokens: dict[str, Row]
    operations: dict[str, Row]
    audit: list[Row]
    gateway_keys: dict[str, Row]
    """LiteLLM's live keys that bear our mark, by hash."""
    issued: list[Issued]

    def tokens_of(self, key_id: str) -> list[Row]:
        return [token for token in self.tokens.values() if str(token["api_key_id"]) == key_id]


def take_snapshot(rig: Rig, *, subjects: Sequence[str] | None = None) -> Snapshot:
    """PostgreSQL first, so that a key made meanwhile is not taken for an orphan's row: nothing may be running anyway."""
    user_ids = [rig.user_ids[subject] for subject in subjects] if subjects is not None else None

    def read(query: LiteralString) -> list[Row]:
        return rig.rows(query, user_ids=user_ids)

    rows = read(
        """
        SELECT k.*, ARRAY(SELECT m.model_id::text FROM api_key_models AS m WHERE m.api_key_id = k.id) AS models
        FROM api_keys AS k WHERE %(user_ids)s::uuid[] IS NULL OR k.user_id = ANY (%(user_ids)s)
        """
    )
    tokens = read("SELECT * FROM api_key_tokens WHERE %(user_ids)s::uuid[] IS NULL OR user_id = ANY (%(user_ids)s)")
    operations = read(
        "SELECT * FROM api_key_operations WHERE %(user_ids)s::uuid[] IS NULL OR user_id = ANY (%(user_ids)s)"
    )
    audit = read(
        """
        SELECT * FROM audit_logs
        WHERE resource_type = 'API_KEY'
        AND (%(user_ids)s::uuid[] IS NULL OR (metadata ->> 'userId')::uuid = ANY (%(user_ids)s))
        """
    )
    return Snapshot(
        rows={str(row["id"]): row for row in rows},
        tokens={row["hash"]: row for row in tokens},
        operations={str(row["id"]): row for row in operations},
        audit=audit,
        gateway_keys={key["token"]: key for key in _gateway_keys(rig, user_ids)},
        issued=[one for one in rig.told.issued if subjects is None or one.subject in subjects],
    )


def violations(rig: Rig, *, subjects: Sequence[str] | None = None) -> list[str]:
    """Every way in which the quiet service breaks its word to these people, or to all."""
    snapshot = take_snapshot(rig, subjects=subjects)
    found: list[str] = []
    for name, check in INVARIANTS.items():
        rig.checked[name] += 1
        found.extend(f"{name}: {violation}" for violation in check(rig, snapshot))
    found.extend(rig.told.broken_words)
    rig.told.dead_hashes.update(token["hash"] for token in snapshot.tokens.values() if token["state"] == "dead")
    return found


def _no_orphan(_rig: Rig, snapshot: Snapshot) -> Iterator[str]:
    for token_hash, key in snapshot.gateway_keys.items():
        token = snapshot.tokens.get(token_hash)
        state = token["state"] if token else "unknown"
        if not key.get("blocked") and state not in ("live", "retiring"):
            yield f"LiteLLM has {key['key_alias']}, whose token is {state}"


def _truthful_delete(rig: Rig, snapshot: Snapshot) -> Iterator[str]:
    for operation in snapshot.operations.values():
        if operation["state"] == "pending":
            yield f"the {operation['kind']} of {operation['api_key_id']} is not finished: {operation['last_error']}"
    key_ids = {str(operation["api_key_id"]) for operation in snapshot.operations.values()}
    for key_id in (rig.told.deleted.keys() | rig.told.accepted.keys()) & key_ids:
        if key_id in snapshot.rows and snapshot.rows[key_id]["revoked_at"] is None:
            yield f"{key_id} is still there after its delete was answered"
        for token in snapshot.tokens_of(key_id):
            if token["state"] != "dead":
                yield f"a token of {key_id} is {token['state']} after its delete was answered"
            if rig.gateway_key(token["hash"]) is not None:
                yield f"LiteLLM knows {key_id} after its delete was answered"
    for issued in snapshot.issued:
        if issued.key_id in rig.told.deleted and rig.is_refused(issued.secret) is not True:
            yield f"LiteLLM accepts {issued.key_id} after its delete was answered 200"


def _one_audit_record(_rig: Rig, snapshot: Snapshot) -> Iterator[str]:
    records: defaultdict[str, list[Row]] = defaultdict(list)
    for record in snapshot.audit:
        operation_id = record["metadata"].get("operationId")
        if operation_id is not None:
            records[operation_id].append(record)
        elif record["success"]:
            yield f"{record['action']} of {record['resource_id']} was recorded for no operation"
    for operation_id in records.keys() - snapshot.operations.keys():
        yield f"an audit record names the unknown operation {operation_id}"
    for operation_id, operation in snapshot.operations.items():
        named = f"the {operation['kind']} of {operation['api_key_id']}, {operation['state']},"
        wanted = 0 if operation["state"] == "pending" else 1
        if len(records[operation_id]) != wanted:
            yield f"{named} has {len(records[operation_id])} audit records"
            continue
        for record in records[operation_id]:
            named_action = {"retire": "API_KEY_ROTATE_COMPLETE"}.get(
                operation["kind"], f"API_KEY_{operation['kind'].upper()}"
            )
            action = ACTIONS.get(operation["request"].get("reason"), named_action)
            if (record["action"], record["success"]) != (action, operation["state"] == "done"):
                yield f"{named} is recorded as {record['action']}, success {record['success']}"
            if record["resource_id"] != str(operation["api_key_id"]):
                yield f"{named} is recorded for {record['resource_id']}"
    done = Counter(
        # A key whose row was kept may be deleted by its owner later.
        (ACTIONS.get(operation["request"].get("reason"), operation["kind"]), str(operation["api_key_id"]))
        for operation in snapshot.operations.values()
        if operation["state"] == "done" and operation["kind"] in ("create", "delete")
    )
    yield from (
        f"{key_id}: {count} finished operations {kind}"
        for (kind, key_id), count in done.items()
        if count > 1 and kind != "update"
    )
    for issued in snapshot.issued:
        if done["create", issued.key_id] != 1:
            yield f"{issued.key_id} was issued without a finished create"


def _one_key_per_request(rig: Rig, snapshot: Snapshot) -> Iterator[str]:
    secrets: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
    for issued in snapshot.issued:
        if issued.idempotency_key is not None:
            secrets[issued.kind, issued.subject, issued.idempotency_key].add(issued.secret)
    for (kind, subject, idempotency_key), different in secrets.items():
        if len(different) > 1:
            yield f"the {kind} {idempotency_key} of {subject} was answered with {len(different)} secrets"
    for token_hash, issued in {issued.hash: issued for issued in snapshot.issued}.items():
        row = snapshot.rows.get(issued.key_id)
        if row is None or not row["is_active"]:
            continue
        is_over = snapshot.tokens.get(token_hash, {}).get("state") == "dead"
        if rig.is_refused(issued.secret) is not is_over:
            yield f"a secret of {issued.key_id}, which is active, {'works and is over' if is_over else 'does not work'}"
    seen: dict[tuple[Any, ...], Any] = {}
    for operation in snapshot.operations.values():
        if operation["idempotency_hash"] and operation["state"] == "done":
            name = (operation["kind"], operation["user_id"], operation["idempotency_hash"])
            if name in seen:
                yield f"{operation['api_key_id']} and {seen[name]} were changed for one Idempotency-Key"
            seen[name] = operation["api_key_id"]


def _limits_hold(_rig: Rig, snapshot: Snapshot) -> Iterator[str]:
    now = datetime.now(UTC)
    rows = Counter(
        str(row["user_id"])
        for row in snapshot.rows.values()
        if row["revoked_at"] is None and (row["expires_at"] is None or row["expires_at"] > now)
    )
    # In its grace a key has two secrets.
    keys = Counter(
        str(key["user_id"])
        for token_hash, key in snapshot.gateway_keys.items()
        if snapshot.tokens.get(token_hash, {}).get("state") != "retiring"
    )
    for user_id, count in (rows | keys).items():
        if count > MAX_ACTIVE_KEYS:
            yield f"user {user_id} has {count} keys"
    for key in snapshot.gateway_keys.values():
        if key["allowed_routes"] != ["llm_api_routes"]:
            yield f"{key['key_alias']} may call {key['allowed_routes'] or 'everything'}"


def _agreement(rig: Rig, snapshot: Snapshot) -> Iterator[str]:
    live = {token["hash"]: token for token in snapshot.tokens.values() if token["state"] == "live"}
    for token_hash, token in live.items():
        row = snapshot.rows.get(str(token["api_key_id"]))
        if row is None or not row["is_active"] or row["key_hash"] != token_hash:
            yield f"the live token of {token['api_key_id']} has no active row"
        if token["settings_unsafe_until"] is not None:
            yield f"a change of {token['api_key_id']} may still be carried out"
    for token in snapshot.tokens.values():
        if token["state"] in ("intended", "condemned"):
            yield f"the token of {token['api_key_id']} is still {token['state']}"
        if token["state"] == "retiring" and token["valid_until"] <= datetime.now(UTC):
            yield f"the grace of {token['api_key_id']} is over, its old secret is still retiring"
        if token["state"] == "retiring" and rig.gateway_key(token["hash"]) is None:
            yield f"the old secret of {token['api_key_id']} ended before its grace"
    for key_id, row in snapshot.rows.items():
        if not row["is_active"]:
            if any(token["state"] != "dead" for token in snapshot.tokens_of(key_id)):
                yield f"{key_id} is off, its token is not dead"
            continue
        if row["key_hash"] not in live or row["lite_llm_key_id"] != row["key_hash"]:
            yield f"{key_id} is active without a live token"
        if _latest_secret_of(key_id, snapshot) not in (None, row["key_hash"]):
            yield f"{key_id} has another secret than its latest create or rotation has made"
        if row["sync_status"] != "synced":
            yield f"{key_id} is active and {row['sync_status']}"
        key = snapshot.gateway_keys.get(row["key_hash"])
        if key is None:
            yield f"{key_id} is active, LiteLLM has no such key"
            continue
        yield from _differences(row, key)


def _latest_secret_of(key_id: str, snapshot: Snapshot) -> str | None:
    made = [
        operation
        for operation in snapshot.operations.values()
        if str(operation["api_key_id"]) == key_id
        and operation["kind"] in ("create", "rotate")
        and operation["state"] == "done"
    ]
    return max(made, key=lambda operation: operation["finished_at"])["token_hash"] if made else None


def _differences(row: Row, key: Row) -> Iterator[str]:
    key_id = row["id"]
    if key.get("blocked"):
        yield f"{key_id} is active, LiteLLM blocks it"
    if sorted(key["models"]) != sorted(row["models"]):
        yield f"{key_id} has the models {row['models']}, in LiteLLM {key['models']}"
    if key["team_id"] != row["lite_llm_team_id"] or (key["metadata"].get("tags") or []) != (row["tags"] or []):
        yield f"{key_id} has the team {row['lite_llm_team_id']} and the tags {row['tags']}, in LiteLLM others"
    for name in ("model_rpm_limit", "model_tpm_limit"):
        if (key["metadata"].get(name) or {}) != (row[name] or {}):
            yield f"{key_id} has {name} {row[name]}, in LiteLLM {key['metadata'].get(name)}"
    if key["user_id"] != str(row["user_id"]) or key["key_alias"] != row["litellm_key_alias"]:
        yield f"{key_id} belongs to somebody else in LiteLLM, or bears another alias"
    if key["metadata"].get("user", {}) != (row["metadata"] or {}):
        yield f"{key_id} has the metadata {row['metadata']}, in LiteLLM {key['metadata']}"
    for theirs, ours in LIMITS.items():
        wanted = row[ours]
        if wanted is not None and theirs == "max_budget":
            wanted = float(wanted)
        if theirs == "budget_duration" and wanted == "yearly":
            wanted = "365d"
        if key[theirs] != wanted:
            yield f"{key_id} has {ours} {row[ours]}, in LiteLLM {key[theirs]}"
    expires = None if key["expires"] is None else datetime.fromisoformat(key["expires"])
    if expires is not None and expires.tzinfo is None:
        expires = expires.replace(tzinfo=UTC)
    if (expires is None) != (row["expires_at"] is None) or (
        expires is not None and abs(expires - row["expires_at"]) > EXPIRY_TOLERANCE
    ):
        yield f"{key_id} expires at {row['expires_at']}, in LiteLLM at {expires}"


def _dead_stays_dead(rig: Rig, snapshot: Snapshot) -> Iterator[str]:
    for token in snapshot.tokens.values():
        if token["hash"] in rig.told.dead_hashes and token["state"] != "dead":
            yield f"the token of {token['api_key_id']} was dead and is {token['state']}"
        if token["state"] == "dead" and rig.gateway_key(token["hash"]) is not None:
            yield f"the token of {token['api_key_id']} is dead, LiteLLM accepts it"
        if token["state"] == "dead" and token["unsafe_until"] is not None:
            yield f"the token of {token['api_key_id']} is dead and may still be made"
    nonces = Counter(token["nonce"] for token in snapshot.tokens.values() if token["nonce"])
    yield from (f"the nonce {nonce} is used {count} times" for nonce, count in nonces.items() if count > 1)


# I4 speaks of what was written down: see test_written_down.py.
INVARIANTS: dict[str, Callable[[Rig, Snapshot], Iterator[str]]] = {
    "I1 no orphan": _no_orphan,
    "I2 truthful delete": _truthful_delete,
    "I3 audit": _one_audit_record,
    "I5 one key per request": _one_key_per_request,
    "I6 limits": _limits_hold,
    "I7 agreement": _agreement,
    "I8 dead stays dead": _dead_stays_dead,
}


def secrets_written_down(rig: Rig) -> list[str]:
    """Every place in a dump of the database, the logs and the metrics, and the answers, where a secret stands."""
    rig.checked["I4 no secret at rest"] += 1
    secrets = rig.ledger.secrets | rig.own_secrets()
    texts = [*rig.texts(), *rig.ledger.answers]
    found = [
        f"I4 no secret at rest: {what} stands in {text.where}"
        for text in texts
        for secret, what in secrets.items()
        if secret in text.content
    ]
    # A secret that nobody was told, because its answer was lost, is found by its shape.
    shape = re.compile(r"sk-lmk_[0-9A-Za-z]{49}")
    found.extend(
        f"I4 no secret at rest: something like a key stands in {t.where}" for t in texts if shape.search(t.content)
    )
    return found


def _gateway_keys(rig: Rig, user_ids: Sequence[str] | None) -> Iterator[Row]:
    """As the operator finds them: by mark, exactly, with the metadata that agrees."""
    [installation] = rig.rows("SELECT mark FROM keyservice_installation")
    mark = installation["mark"]
    for user_id in user_ids if user_ids is not None else [None]:
        page, pages = 1, 1
        while page <= pages:
            query = {
                "key_alias": f"{mark}:",
                "substring_matching": "true",
                "return_full_object": "true",
                "size": PAGE_SIZE,
                "page": page,
                **({} if user_id is None else {"user_id": user_id}),
            }
            answer = rig.gateway("GET", "/key/list", params=query)
            assert answer.status_code == 200, answer.text
            told = answer.json()
            pages, page = told["total_pages"], page + 1
            for key in told["keys"]:
                is_marked = (key["metadata"].get("keyservice") or {}).get("mark") == mark
                if key["key_alias"].startswith(f"{mark}:") and is_marked:
                    yield key
