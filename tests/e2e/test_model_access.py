"""A stack with ModelAccess=any: subscriptions do not matter, LiteLLM says which models there are."""

from collections.abc import Iterator

import httpx
import pytest

from local.stack import LocalStack
from tests.e2e.service import Ledger, Person, Service, assert_asks_to_retry, violations_of
from tests.support.http_faults import FaultProxy


@pytest.fixture(scope="module")
def gateway_faults(service: Service) -> Iterator[FaultProxy]:
    with FaultProxy(service.stack.litellm_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def open_service(
    service: Service,
    gateway_faults: FaultProxy,
    tmp_path_factory: pytest.TempPathFactory,
    http: httpx.Client,
    ledger: Ledger,
) -> Iterator[Service]:
    shared, logs = service.stack, tmp_path_factory.mktemp("open")
    with LocalStack.start(
        parameters={"ModelAccess": "any", "DatabaseName": "open_models"},
        litellm_url=gateway_faults.url,
        litellm_master_key=shared.litellm_master_key,
        database=shared.database,
        aws=shared.aws,
        workers_per_function=2,
        log_directory=logs,
    ) as stack:
        running = Service(stack, http, ledger, logs, gateway_url=shared.litellm_url)
        yield running
        ledger.keep_texts_of(running)


@pytest.fixture
def dora(open_service: Service, gateway_faults: FaultProxy) -> Iterator[Person]:
    """Somebody new, without any subscription, and no model is known to the service."""
    open_service.rows("DELETE FROM subscriptions")
    open_service.rows("DELETE FROM models")
    yield open_service.person(is_known=False)
    gateway_faults.clear()


def test_any_model_of_litellms_is_allowed_and_becomes_known(open_service: Service, dora: Person):
    key = dora.has_key(modelIds=["claude-sonnet", "gpt-4o"])

    models = open_service.rows("SELECT id, name, provider FROM models ORDER BY id")
    assert key["modelDetails"] == [
        {"id": "claude-sonnet", "name": "claude-sonnet", "provider": "anthropic"},
        {"id": "gpt-4o", "name": "gpt-4o", "provider": "openai"},
    ]
    assert models == [
        {"id": "claude-sonnet", "name": "claude-sonnet", "provider": "anthropic"},
        {"id": "gpt-4o", "name": "gpt-4o", "provider": "openai"},
    ]
    assert dora.listed()[0]["models"] == ["claude-sonnet", "gpt-4o"]
    assert open_service.use(key["key"], model="claude-sonnet") == 200
    assert dora.delete(key["id"]).status_code == 200


def test_a_model_that_litellm_does_not_have_is_refused(open_service: Service, dora: Person):
    answer = dora.create({"modelIds": ["gpt-4o", "gpt-5-imagined"]})

    assert violations_of(answer) == [("modelIds", "notEntitled")]
    assert answer.json()["error"]["message"] == "The following models do not exist: gpt-5-imagined"
    assert dora.key_rows() == []
    assert open_service.rows("SELECT id FROM models WHERE id = 'gpt-5-imagined'") == []


def test_nothing_is_written_when_litellm_cannot_say_which_models_there_are(
    open_service: Service, dora: Person, gateway_faults: FaultProxy
):
    open_service.stack.retire_workers()
    gateway_faults.inject("/model/info", "reset_before")

    refused = dora.create({"modelIds": ["gpt-4o"]})

    assert_asks_to_retry(refused)
    assert dora.user is None
    assert open_service.rows("SELECT id FROM models") == []
    assert dora.create({"modelIds": ["gpt-4o"]}).status_code == 201


def test_litellm_is_asked_for_its_models_once_a_minute(open_service: Service, dora: Person, gateway_faults: FaultProxy):
    open_service.stack.retire_workers()
    gateway_faults.forget_calls()

    for _ in range(3):
        dora.has_key()

    assert len(gateway_faults.calls_of("/model/info")) == 1


def test_a_limit_of_keys_holds_without_subscriptions_too(dora: Person):
    for _ in range(10):
        dora.has_key()

    answer = dora.create({"modelIds": ["gpt-4o"]})

    assert violations_of(answer) == [("activeKeysCount", "keyLimit")]


def test_a_subscription_still_makes_a_key_for_its_model(open_service: Service, dora: Person):
    dora.has_key()
    open_service.rows("INSERT INTO subscriptions (user_id, model_id) VALUES (%(user)s, 'gpt-4o')", user=dora.user_id)
    [subscription] = open_service.rows("SELECT id::text FROM subscriptions WHERE user_id = %(u)s", u=dora.user_id)

    answer = dora.create({"subscriptionId": subscription["id"]})

    assert answer.status_code == 201
    assert answer.json()["models"] == ["gpt-4o"]
