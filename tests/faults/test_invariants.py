"""The checker itself: it must report each corruption, and nothing where there is none."""

from collections.abc import Callable

import pytest

from tests.e2e.service import Person, hash_of
from tests.faults.invariants import INVARIANTS, secrets_written_down, violations
from tests.faults.rig import MAX_ACTIVE_KEYS, Rig
from tests.faults.scenarios import Situation

type Corruption = Callable[[Situation], object]


@pytest.fixture
def ended(rig: Rig, alice: Person) -> Situation:
    """A key that was deleted, answered 200."""
    situation = Situation(rig, alice).has_key()
    assert situation.delete().status_code == 200
    return situation


@pytest.fixture
def living(rig: Rig, alice: Person) -> Situation:
    return Situation(rig, alice).has_key()


def _found(situation: Situation) -> set[str]:
    """The invariants that are reported broken. What the corruption did to everybody's history is taken back."""
    rig = situation.rig
    try:
        return {violation.partition(":")[0] for violation in violations(rig, subjects=[situation.person.subject])}
    finally:
        for token_hash in situation.person.gateway_keys():
            rig.gateway("POST", "/key/delete", json={"keys": [token_hash]})
        for issued in [one for one in rig.told.issued if one.subject == situation.person.subject]:
            rig.told.issued.remove(issued)
        rig.rows("DELETE FROM audit_logs WHERE metadata ->> 'userId' = %(id)s", id=str(situation.person.user_id))
        for table in ("api_keys", "api_key_operations", "api_key_tokens"):
            rig.rows(f"DELETE FROM {table} WHERE user_id = %(id)s", id=situation.person.user_id)  # pyright: ignore[reportArgumentType]
        rig.told.broken_words.clear()


def test_nothing_is_reported_of_a_living_key(living: Situation) -> None:
    found = _found(living)

    assert found == set()


def test_nothing_is_reported_of_an_ended_key(ended: Situation) -> None:
    found = _found(ended)

    assert found == set()


def _revive(situation: Situation) -> None:
    """A key with the deleted one's secret, its alias and mark."""
    [token] = situation.rig.rows("SELECT * FROM api_key_tokens WHERE api_key_id = %(key_id)s", key_id=situation.key_id)
    _generate(situation, key=situation.rig.told.issued[-1].secret, alias=token["alias"])


def _generate(situation: Situation, *, key: str, alias: str | None = None, **more: object) -> None:
    [installation] = situation.rig.rows("SELECT mark FROM keyservice_installation")
    answer = situation.rig.gateway(
        "POST",
        "/key/generate",
        json={
            "key": key,
            "key_alias": alias or f"{installation['mark']}:nobody-{hash_of(key)[:8]}:1",
            "key_type": "llm_api",
            "user_id": str(situation.person.user_id),
            "metadata": {"keyservice": {"mark": installation["mark"]}},
            **more,
        },
    )
    assert answer.status_code == 200, answer.text


def _audit_doubled(situation: Situation) -> None:
    situation.rig.rows(
        "INSERT INTO audit_logs (action, resource_type, resource_id, success, metadata)"
        " SELECT action, resource_type, resource_id, success, metadata FROM audit_logs WHERE resource_id = %(key_id)s",
        key_id=situation.key_id,
    )


def _sql(query: str) -> Corruption:
    def corrupt(situation: Situation) -> None:
        situation.rig.rows(query, key_id=situation.key_id)  # pyright: ignore[reportArgumentType]

    return corrupt


def _in_gateway(path: str, **changes: object) -> Corruption:
    def corrupt(situation: Situation) -> None:
        [token_hash] = situation.person.gateway_keys()
        body = {"keys": [token_hash]} if path == "/key/delete" else {"key": token_hash, **changes}
        answer = situation.rig.gateway("POST", path, json=body)
        assert answer.status_code == 200, answer.text

    return corrupt


def _old_secret_lost(situation: Situation) -> None:
    [old, _] = [issued for issued in situation.rig.told.issued if issued.key_id == situation.key_id]
    answer = situation.rig.gateway("POST", "/key/delete", json={"keys": [old.hash]})
    assert answer.status_code == 200, answer.text


def _too_many(situation: Situation) -> None:
    for number in range(MAX_ACTIVE_KEYS):
        _generate(situation, key=f"sk-corruption-{situation.key_id}-{number}")


def _answered_twice(situation: Situation) -> None:
    """A second key for the same Idempotency-Key, as if it had been forgotten."""
    situation.rig.rows(
        "UPDATE api_key_operations SET idempotency_hash = NULL, body_fingerprint = NULL WHERE api_key_id = %(key_id)s",
        key_id=situation.key_id,
    )
    assert situation.create().status_code == 201


CORRUPTIONS_OF_LIVING: dict[str, tuple[Corruption, set[str]]] = {
    "audit record gone": (_sql("DELETE FROM audit_logs WHERE resource_id = %(key_id)s"), {"I3 audit"}),
    "audit record twice": (_audit_doubled, {"I3 audit"}),
    "audited as failed": (
        _sql("UPDATE audit_logs SET success = false WHERE resource_id = %(key_id)s"),
        {"I3 audit"},
    ),
    "limit raised in LiteLLM": (_in_gateway("/key/update", tpm_limit=99_999), {"I7 agreement"}),
    "models changed in LiteLLM": (_in_gateway("/key/update", models=["gpt-4o"]), {"I7 agreement"}),
    "expiry taken away in LiteLLM": (_in_gateway("/key/update", duration=None), {"I7 agreement"}),
    "limit changed in the row": (
        _sql("UPDATE api_keys SET tpm_limit = 1 WHERE id = %(key_id)s"),
        {"I7 agreement"},
    ),
    "key lost by LiteLLM": (_in_gateway("/key/delete"), {"I5 one key per request", "I7 agreement"}),
    "key blocked in LiteLLM": (_in_gateway("/key/block"), {"I5 one key per request", "I7 agreement"}),
    "token condemned": (
        _sql("UPDATE api_key_tokens SET state = 'condemned' WHERE api_key_id = %(key_id)s"),
        {"I1 no orphan", "I7 agreement"},
    ),
    "token forgotten": (
        _sql("DELETE FROM api_key_tokens WHERE api_key_id = %(key_id)s"),
        {"I1 no orphan", "I7 agreement"},
    ),
    "orphan": (lambda situation: _generate(situation, key="sk-corruption-0000000000001"), {"I1 no orphan"}),
    "orphans beyond the limit": (_too_many, {"I1 no orphan", "I6 limits"}),
    "key that may make keys": (_in_gateway("/key/update", allowed_routes=[]), {"I6 limits"}),
    "two keys for one Idempotency-Key": (_answered_twice, {"I5 one key per request"}),
    "operation opened again": (
        _sql("UPDATE api_key_operations SET state = 'pending', finished_at = NULL WHERE api_key_id = %(key_id)s"),
        {"I2 truthful delete", "I3 audit"},
    ),
}

CORRUPTIONS_OF_ENDED: dict[str, tuple[Corruption, set[str]]] = {
    "deleted key revived in LiteLLM": (_revive, {"I1 no orphan", "I2 truthful delete", "I8 dead stays dead"}),
    "dead token revived": (
        _sql("UPDATE api_key_tokens SET state = 'live' WHERE api_key_id = %(key_id)s"),
        {"I2 truthful delete", "I7 agreement", "I8 dead stays dead"},
    ),
    "delete's audit record gone": (
        _sql("DELETE FROM audit_logs WHERE resource_id = %(key_id)s AND action = 'API_KEY_DELETE'"),
        {"I3 audit"},
    ),
}

CORRUPTIONS_IN_A_GRACE: dict[str, tuple[Corruption, set[str]]] = {
    "old secret lost by LiteLLM": (_old_secret_lost, {"I5 one key per request", "I7 agreement"}),
    "old secret past its grace": (
        _sql(
            "UPDATE api_key_tokens SET valid_until = now() - interval '1 second'"
            " WHERE api_key_id = %(key_id)s AND state = 'retiring'"
        ),
        {"I7 agreement"},
    ),
    "old secret only called dead": (
        _sql("UPDATE api_key_tokens SET state = 'dead' WHERE api_key_id = %(key_id)s AND state = 'retiring'"),
        {"I1 no orphan", "I5 one key per request", "I8 dead stays dead"},
    ),
    "old secret the key's again": (
        _sql(
            "UPDATE api_keys SET key_hash = t.hash, lite_llm_key_id = t.hash, litellm_key_alias = t.alias"
            " FROM api_key_tokens AS t WHERE api_keys.id = %(key_id)s AND t.api_key_id = api_keys.id AND t.number = 1"
        ),
        {"I7 agreement"},
    ),
    "end of the grace recorded, not done": (
        _sql(
            "INSERT INTO audit_logs (action, resource_type, resource_id, success, metadata)"
            " SELECT 'API_KEY_ROTATE_COMPLETE', resource_type, resource_id, true, metadata FROM audit_logs"
            " WHERE resource_id = %(key_id)s AND action = 'API_KEY_ROTATE'"
        ),
        {"I3 audit"},
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS_OF_LIVING)
def test_corruption_of_a_living_key_is_reported(living: Situation, name: str) -> None:
    corrupt, invariants = CORRUPTIONS_OF_LIVING[name]
    assert violations(living.rig, subjects=[living.person.subject]) == []

    corrupt(living)

    assert _found(living) == invariants


@pytest.mark.parametrize("name", CORRUPTIONS_OF_ENDED)
def test_corruption_of_an_ended_key_is_reported(ended: Situation, name: str) -> None:
    corrupt, invariants = CORRUPTIONS_OF_ENDED[name]
    assert violations(ended.rig, subjects=[ended.person.subject]) == []

    corrupt(ended)

    assert _found(ended) == invariants


@pytest.mark.parametrize("name", CORRUPTIONS_IN_A_GRACE)
def test_corruption_of_a_key_in_its_grace_is_reported(rig: Rig, alice: Person, name: str) -> None:
    rotated = Situation(rig, alice).has_grace()
    corrupt, invariants = CORRUPTIONS_IN_A_GRACE[name]
    assert violations(rig, subjects=[alice.subject]) == []

    corrupt(rotated)

    assert _found(rotated) == invariants


def test_every_invariant_has_a_corruption_that_breaks_it() -> None:
    corruptions = [*CORRUPTIONS_OF_LIVING.values(), *CORRUPTIONS_OF_ENDED.values()]

    assert set().union(*(invariants for _, invariants in corruptions)) == set(INVARIANTS)


def test_secret_in_a_row_is_reported(living: Situation) -> None:
    rig = living.rig
    secret = rig.told.issued[-1].secret
    rig.rows("UPDATE api_keys SET sync_error = %(secret)s WHERE id = %(key_id)s", secret=secret, key_id=living.key_id)

    found = secrets_written_down(rig)

    rig.rows("UPDATE api_keys SET sync_error = NULL WHERE id = %(key_id)s", key_id=living.key_id)
    assert found == [
        "I4 no secret at rest: an issued key stands in dump of faults",
        "I4 no secret at rest: something like a key stands in dump of faults",
    ]
