"""What a delete promises where several LiteLLM replicas serve one database, each with a cache of its own."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from local.seed import insert_models, subscribe
from local.stack import LocalStack
from tests.contract.gateway import Gateway, hash_of, unique
from tests.contract.replicas import another_replica, why_not

CACHE_SECONDS = 5
MODEL = "gpt-4o-mini"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Use:
    """A request with a key, and what the replica answered."""

    sent_at: datetime
    status: int


@pytest.fixture
def second_replica(gateway: Gateway, tmp_path: Path) -> Iterator[Gateway]:
    if reason := why_not():
        pytest.skip(reason)
    with (
        another_replica(cache_seconds=CACHE_SECONDS, directory=tmp_path) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as http,
    ):
        yield Gateway(http=http, master_key=gateway.master_key)


@pytest.fixture
def service(second_replica: Gateway, gateway: Gateway) -> Iterator[LocalStack]:
    """Knows the first replica only."""
    with LocalStack.start(
        parameters={"GatewayCacheSeconds": str(CACHE_SECONDS)},
        litellm_url=str(gateway.http.base_url),
        litellm_master_key=gateway.master_key,
        workers_per_function=1,
    ) as stack:
        insert_models(stack.admin_dsn, [MODEL])
        yield stack


@pytest.fixture
def caller(service: LocalStack) -> Iterator[httpx.Client]:
    """Of the service's API."""
    subject = unique("caller")
    subscribe(service.admin_dsn, subject=subject, models=[MODEL])
    headers = {"authorization": f"Bearer {service.token(subject)}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False) as http:
        yield http


def create(caller: httpx.Client, *, gateway: Gateway) -> tuple[str, str]:
    """The new key's id and secret."""
    answer = caller.post("/api/v1/api-keys", json={"modelIds": [MODEL]})
    assert answer.status_code == 201, answer.text
    gateway.generated.append(hash_of(answer.json()["key"]))
    return answer.json()["id"], answer.json()["key"]


def delete(caller: httpx.Client, key_id: str) -> tuple[datetime, datetime]:
    """deletedAt and effectiveBy."""
    answer = caller.delete(f"/api/v1/api-keys/{key_id}")
    assert answer.status_code == 200, answer.text
    return datetime.fromisoformat(answer.json()["deletedAt"]), datetime.fromisoformat(answer.json()["effectiveBy"])


def use_until(end: datetime, key: str, *, replica: Gateway) -> list[Use]:
    uses: list[Use] = []
    while (now := datetime.now(UTC)) < end:
        uses.append(Use(now, replica.chat(key, model=MODEL).status_code))
        time.sleep(0.2)
    return uses


# Two systems start for it, a LiteLLM among them.
@pytest.mark.timeout(300)
def test_no_replica_accepts_a_deleted_key_after_effective_by(
    second_replica: Gateway, gateway: Gateway, caller: httpx.Client
):
    # Whatever is slow the first time, here or there, is over before the time counts.
    first_id, first_key = create(caller, gateway=gateway)
    assert second_replica.chat(first_key, model=MODEL).status_code == 200
    delete(caller, first_id)
    key_id, key = create(caller, gateway=gateway)
    # From here on the second replica knows the key by heart, and for as long after the delete as it ever can.
    assert second_replica.chat(key, model=MODEL).status_code == 200

    deleted_at, effective_by = delete(caller, key_id)

    assert gateway.chat(key, model=MODEL).status_code == 401
    uses = use_until(effective_by + timedelta(seconds=3), key, replica=second_replica)
    accepted = [use for use in uses if use.status == 200]
    late = [use for use in uses if use.sent_at >= effective_by]
    assert accepted, "the second replica had forgotten the key at once: this run proves nothing"
    assert {use.status for use in late} == {401}
    assert {use.status for use in uses} == {200, 401}
    logger.info(
        "%d requests accepted after the delete, the last %.2f s after deletedAt; %d refused after effectiveBy",
        len(accepted),
        (accepted[-1].sent_at - deleted_at).total_seconds(),
        len(late),
    )
