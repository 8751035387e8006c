import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support.fixtures import LiteLLM
from tests.support.http_faults import FaultProxy

OWN_KEY = "sk-lmk_test-of-the-fault-proxy-"


@pytest.fixture
def client(gateway_faults: FaultProxy, litellm: LiteLLM) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=gateway_faults.url,
        headers={"Authorization": f"Bearer {litellm.master_key}"},
        timeout=30,
        trust_env=False,
    ) as client:
        yield client


def key_exists(litellm: LiteLLM, key: str) -> bool:
    answer = httpx.get(
        f"{litellm.url}/key/info", params={"key": key}, headers={"Authorization": f"Bearer {litellm.master_key}"}
    )
    return answer.status_code == 200


def test_without_faults_calls_pass_and_are_kept(client: httpx.Client, gateway_faults: FaultProxy, litellm: LiteLLM):
    answer = client.post("/key/generate", json={"key": OWN_KEY + "passes"})

    assert answer.status_code == 200
    assert answer.json()["key"] == OWN_KEY + "passes"
    (call,) = gateway_faults.calls
    assert (call.method, call.path, call.status, call.body) == (
        "POST",
        "/key/generate",
        200,
        {"key": OWN_KEY + "passes"},
    )
    assert key_exists(litellm, OWN_KEY + "passes")


def test_several_calls_use_one_kept_connection(client: httpx.Client, gateway_faults: FaultProxy):
    for _ in range(3):
        assert client.get("/health/liveliness").json() == "I'm alive!"

    assert [call.path for call in gateway_faults.calls] == ["/health/liveliness"] * 3


def test_an_idle_connection_is_closed_as_litellm_does(litellm: LiteLLM):
    with FaultProxy(litellm.url, keep_alive_seconds=0.1) as proxy:
        host, port = proxy.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"GET /health/liveliness HTTP/1.1\r\nHost: x\r\n\r\n")

            with connection.makefile("rb") as stream:
                answer = stream.read()

    assert answer.endswith(b'\r\n\r\n"I\'m alive!"')


def test_status_answers_without_forwarding(client: httpx.Client, gateway_faults: FaultProxy, litellm: LiteLLM):
    gateway_faults.inject("/key/generate", "status", status=503, body={"why": "test"})

    broken = client.post("/key/generate", json={"key": OWN_KEY + "status"})
    existed_after_the_fault = key_exists(litellm, OWN_KEY + "status")
    repeated = client.post("/key/generate", json={"key": OWN_KEY + "status"})

    assert (broken.status_code, broken.json()) == (503, {"why": "test"})
    assert not existed_after_the_fault
    assert repeated.status_code == 200
    assert [call.status for call in gateway_faults.calls] == [503, 200]


def test_reset_before_forwards_nothing(client: httpx.Client, gateway_faults: FaultProxy, litellm: LiteLLM):
    gateway_faults.inject("/key/generate", "reset_before")

    with pytest.raises(httpx.ReadError):
        client.post("/key/generate", json={"key": OWN_KEY + "reset-before"})

    assert not key_exists(litellm, OWN_KEY + "reset-before")
    assert gateway_faults.calls[0].upstream_status is None


def test_reset_after_lets_the_work_be_done(client: httpx.Client, gateway_faults: FaultProxy, litellm: LiteLLM):
    gateway_faults.inject("/key/generate", "reset_after")

    with pytest.raises(httpx.ReadError):
        client.post("/key/generate", json={"key": OWN_KEY + "reset-after"})

    assert key_exists(litellm, OWN_KEY + "reset-after")
    assert (gateway_faults.calls[0].status, gateway_faults.calls[0].upstream_status) == (None, 200)


def test_hang_never_answers_and_forwards_nothing(client: httpx.Client, gateway_faults: FaultProxy, litellm: LiteLLM):
    gateway_faults.inject("/key/generate", "hang")

    with pytest.raises(httpx.ReadTimeout):
        client.post("/key/generate", json={"key": OWN_KEY + "hang"}, timeout=0.2)

    assert not key_exists(litellm, OWN_KEY + "hang")


def test_hang_ends_the_connection_after_its_seconds(client: httpx.Client, gateway_faults: FaultProxy):
    gateway_faults.inject("/key/generate", "hang", seconds=0.1)

    with pytest.raises(httpx.ReadError):
        client.post("/key/generate", json={})


def test_late_is_carried_out_after_the_client_gave_up(
    client: httpx.Client, gateway_faults: FaultProxy, litellm: LiteLLM
):
    injection = gateway_faults.inject("/key/generate", "late")
    with pytest.raises(httpx.ReadTimeout):
        client.post("/key/generate", json={"key": OWN_KEY + "late"}, timeout=0.2)
    existed_at_first = key_exists(litellm, OWN_KEY + "late")

    injection.release()

    assert injection.wait()
    assert not existed_at_first
    assert key_exists(litellm, OWN_KEY + "late")
    assert gateway_faults.calls_of("/key/generate")[0].upstream_status == 200


def test_late_is_carried_out_by_itself_after_its_seconds(
    client: httpx.Client, gateway_faults: FaultProxy, litellm: LiteLLM
):
    gateway_faults.inject("/key/generate", "late", seconds=0.3)

    with pytest.raises(httpx.ReadTimeout):
        client.post("/key/generate", json={"key": OWN_KEY + "late-alone"}, timeout=0.2)

    assert gateway_faults.wait_for_late_calls()
    assert key_exists(litellm, OWN_KEY + "late-alone")


def test_delay_withholds_the_answer_not_the_work(client: httpx.Client, gateway_faults: FaultProxy, litellm: LiteLLM):
    gateway_faults.inject("/key/generate", "delay")

    with pytest.raises(httpx.ReadTimeout):
        client.post("/key/generate", json={"key": OWN_KEY + "delay"}, timeout=0.5)

    assert key_exists(litellm, OWN_KEY + "delay")


def test_a_delayed_answer_is_the_upstreams(client: httpx.Client, gateway_faults: FaultProxy):
    gateway_faults.inject("/key/generate", "delay", seconds=0.1)

    answer = client.post("/key/generate", json={"key": OWN_KEY + "delayed-answer"})

    assert answer.json()["key"] == OWN_KEY + "delayed-answer"


def test_callbacks_run_before_and_after_the_work(client: httpx.Client, gateway_faults: FaultProxy, litellm: LiteLLM):
    seen: list[bool] = []
    for fault in ("call_before", "call_after"):
        gateway_faults.inject(
            "/key/generate", fault, call=lambda: seen.append(key_exists(litellm, OWN_KEY + "callbacks"))
        )

    client.post("/key/generate", json={"key": OWN_KEY + "callbacks"})
    client.post("/key/generate", json={"key": OWN_KEY + "callbacks"})

    assert seen == [False, True]


def test_only_the_meant_calls_are_broken(client: httpx.Client, gateway_faults: FaultProxy):
    gateway_faults.inject("/key/*", "status", method="POST", matches=lambda body: body.get("key") == "meant", times=2)

    statuses = [
        client.get("/key/info", params={"key": "meant"}).status_code,
        client.post("/key/update", json={"key": "other"}).status_code,
        client.post("/key/update", json={"key": "meant"}).status_code,
        client.post("/key/block", json={"key": "meant"}).status_code,
        client.post("/key/update", json={"key": "meant"}).status_code,
    ]

    assert statuses == [404, 404, 500, 500, 404]


def test_times_zero_breaks_until_cleared(client: httpx.Client, gateway_faults: FaultProxy):
    gateway_faults.inject("*", "status", times=0)
    broken = [client.get("/health/readiness").status_code for _ in range(3)]
    gateway_faults.clear()

    assert broken == [500, 500, 500]
    assert client.get("/health/readiness").status_code == 200


def test_an_upstream_that_is_down_looks_like_a_cut(litellm: LiteLLM):
    with FaultProxy("http://127.0.0.1:9") as proxy, pytest.raises(httpx.ReadError):
        httpx.get(f"{proxy.url}/health/liveliness", trust_env=False)


def test_closing_ends_hanging_clients_at_once(litellm: LiteLLM):
    proxy = FaultProxy(litellm.url)
    proxy.inject("*", "hang")
    failures: list[type[Exception]] = []

    def call() -> None:
        try:
            httpx.get(f"{proxy.url}/health/liveliness", trust_env=False, timeout=60)
        except httpx.HTTPError as error:
            failures.append(type(error))

    client = threading.Thread(target=call)
    client.start()
    while not proxy.calls:
        time.sleep(0.01)

    proxy.close()
    client.join(10)

    assert not client.is_alive()
    assert len(failures) == 1
