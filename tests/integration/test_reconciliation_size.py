"""Reconcile over more keys than fit on a page, or ought to fit in memory."""

import hashlib
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from keyservice.models import Deadline
from local.litellm.rows import new_row
from local.litellm.tables import StateFile
from local.litellm_process import LiteLLMProcess
from tests.integration.reconciling import Reconciler, seen
from tests.integration.service import Service
from tests.support.fixtures import MASTER_KEY, LiteLLM

type Crowd = Callable[..., list[str]]


@pytest.fixture
def reconciler(service: Service) -> Reconciler:
    return Reconciler(service)


@pytest.fixture
def crowd(reconciler: Reconciler, service: Service, litellm: LiteLLM, tmp_path: Path) -> Iterator[Crowd]:
    """Makes so many live keys, in the database and in a LiteLLM of their own; their hashes in order."""
    with ExitStack() as ending:
        # The proxy is every test's.
        ending.callback(service.gateway_faults.retarget, litellm.url)

        def make(size: int, *, in_litellm: bool = True) -> list[str]:
            hashes = sorted(hashlib.sha256(str(number).encode()).hexdigest() for number in range(size))
            insert_rows(service, hashes)
            state = StateFile(str(tmp_path / "litellm.sqlite"))
            state.connection.execute("BEGIN")
            for token_hash in hashes if in_litellm else []:
                state.write(
                    "key", token_hash, new_row(token_hash, gateway_values(reconciler, token_hash), created_by="")
                )
            state.connection.execute("COMMIT")
            state.connection.close()
            process = LiteLLMProcess(
                master_key=MASTER_KEY, state_path=tmp_path / "litellm.sqlite", log_path=tmp_path / "litellm.log"
            )
            ending.callback(process.stop)
            process.wait_until_ready()
            service.gateway_faults.retarget(process.url)
            return hashes

        yield make


def gateway_values(reconciler: Reconciler, token_hash: str) -> dict[str, object]:
    mark = reconciler.mark
    return {"key_alias": f"{mark}:{token_hash}:1", "metadata": {"keyservice": {"mark": mark}, "user": {}}}


def insert_rows(service: Service, hashes: list[str]) -> None:
    user_id = service.value("SELECT id FROM users WHERE oauth_id = 'alice'")
    service.rows(
        """
        INSERT INTO api_keys (user_id, name, key_hash, key_prefix, is_active, sync_status)
        SELECT %s, 'one of many', hash, 'sk-lmk_0000', true, 'synced' FROM unnest(%s::text[]) AS hash
        """,
        [user_id, hashes],
    )
    service.rows(
        """
        INSERT INTO api_key_tokens (hash, api_key_id, user_id, nonce, mac_key_arn, alias, state)
        SELECT
            key_hash, id, user_id, md5(key_hash), 'arn', (SELECT mark FROM keyservice_installation) || ':' || key_hash || ':1',
            'live'
        FROM api_keys
        """
    )
    service.rows("ANALYZE")


def list_calls(service: Service) -> int:
    return len(service.gateway_faults.calls_of("/key/list"))


@pytest.mark.timeout(300)
def test_memory_and_calls_do_not_grow_with_the_keys(crowd: Crowd, reconciler: Reconciler, service: Service):
    crowd(20_000)
    service.gateway_faults.forget_calls()
    reconciler.run(seconds=0)  # opens connections, imports
    tracemalloc.start()

    report = reconciler.run(seconds=240)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (report.is_complete, report.findings, report.keys_compared) == (True, {}, 20_000)
    # All keys at once would be some 100 MB, and their hashes alone 2.3 MB.
    assert peak < 4_000_000
    # Besides the pages, the look at the newest.
    assert list_calls(service) == 201
    assert len(service.gateway_faults.calls) == 201


def test_a_page_is_two_round_trips_and_one_call(crowd: Crowd, reconciler: Reconciler, service: Service):
    crowd(250)
    reconciler.run(seconds=0)
    service.gateway_faults.forget_calls()
    service.database_faults.reset_counts()

    reconciler.run()

    steps = [trip.steps for trip in service.database_faults.trips]
    read, saved = ("read_tokens", "read_live_keys"), ("save_progress",)
    assert steps[steps.index(read) : steps.index(("forget_unseen",))] == [read, saved] * 3
    # Besides the pages, the look at the newest.
    assert list_calls(service) == 4


def test_every_page_is_compared(crowd: Crowd, reconciler: Reconciler, service: Service):
    hashes = crowd(250)
    orphans, missing, drifts = hashes[3::50], hashes[4::50], hashes[5::50]
    service.rows("UPDATE api_key_tokens SET state = 'dead' WHERE hash = ANY (%s)", [orphans])
    service.rows("UPDATE api_keys SET tpm_limit = 5 WHERE key_hash = ANY (%s)", [drifts])
    for token_hash in missing:
        service.gateway.delete(token_hash, deadline=Deadline(20))

    first, second = reconciler.run(max_heals=100), reconciler.run(max_heals=100)

    assert seen(first) == {"orphan": orphans, "missing": missing, "drift": drifts}
    assert first.healed == {"missing": 5, "drift": 5}
    assert second.healed == {"orphan": 5}
    assert first.keys_compared == 245


def test_a_pass_that_was_cut_goes_on_where_it_stopped(crowd: Crowd, reconciler: Reconciler, service: Service):
    hashes = crowd(250)
    ends = [hashes[0], hashes[-1]]
    service.rows("UPDATE api_key_tokens SET state = 'dead' WHERE hash = ANY (%s)", [ends])
    service.gateway_faults.inject("/key/list", "delay", seconds=0, times=3)  # the newest, and two pages
    service.gateway_faults.inject("/key/list", "status")

    cut = reconciler.run()
    service.gateway_faults.forget_calls()
    finished = reconciler.run()
    calls = list_calls(service)
    after = reconciler.run()

    assert (cut.is_complete, cut.keys_compared, seen(cut)) == (False, 199, {"orphan": ends[:1]})
    assert (finished.is_complete, finished.keys_compared, seen(finished)) == (True, 248, {"orphan": ends})
    assert calls == 2
    assert (finished.healed, after.healed) == ({}, {"orphan": 2})


def test_keys_that_slip_between_two_pages_are_not_missing(crowd: Crowd, reconciler: Reconciler, service: Service):
    hashes = crowd(250)

    def delete_the_first() -> None:
        service.rows("UPDATE api_key_tokens SET state = 'dead' WHERE hash = ANY (%s)", [hashes[:2]])
        for token_hash in hashes[:2]:
            service.connect_litellm().delete(token_hash, deadline=Deadline(20))

    service.gateway_faults.inject("/key/list", "delay", seconds=0)
    service.gateway_faults.inject("/key/list", "call_after", call=delete_the_first)

    report = reconciler.run()

    assert "missing" not in report.findings
    # The two that moved to the first page.
    assert [call.path for call in service.gateway_faults.calls_of("/key/info")] == [
        f"/key/info?key={token_hash}" for token_hash in hashes[100:102]
    ]


def test_a_litellm_that_lost_everything_is_not_asked_for_every_key(
    crowd: Crowd, reconciler: Reconciler, service: Service
):
    crowd(2_500, in_litellm=False)

    report = reconciler.run()

    assert (report.brake, report.findings["missing"].seen, report.healed) == ("tooMany", 2_500, {})
    assert len(service.gateway_faults.calls_of("/key/info")) == 1_000
    assert service.rows("SELECT id FROM api_keys WHERE sync_status = 'error'") == []


def test_one_in_a_hundred_may_be_healed(crowd: Crowd, reconciler: Reconciler, service: Service):
    hashes = crowd(1_200)
    service.rows("UPDATE api_keys SET tpm_limit = 5 WHERE key_hash = ANY (%s)", [hashes[:13]])

    above = reconciler.run()
    service.rows("UPDATE api_keys SET tpm_limit = NULL WHERE key_hash = %s", [hashes[0]])
    within = reconciler.run()

    assert (above.brake, above.healed) == ("tooMany", {})
    assert (within.brake, within.healed) == (None, {"drift": 12})
