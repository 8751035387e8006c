"""Functions in real runtime processes: what Lambda does to them, and what they see of it."""

import concurrent.futures
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.stack import WORKERS_PER_FUNCTION, LocalStack
from local.workers import InvocationFailed


def obey(stack: LocalStack, **order: Any) -> Any:
    return stack.invoke("Obey", order)


def pid_of_a_call(stack: LocalStack) -> int:
    return int(obey(stack, do="nothing")["body"])


def test_one_worker_serves_one_call_after_another(stack: LocalStack) -> None:
    pids = {pid_of_a_call(stack) for _ in range(10)}

    assert len(pids) == 1


def test_calls_at_the_same_time_have_a_worker_each(stack: LocalStack, tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(WORKERS_PER_FUNCTION) as threads:
        calls = [
            threads.submit(obey, stack, do="meet", place=str(tmp_path), name=str(number), count=WORKERS_PER_FUNCTION)
            for number in range(WORKERS_PER_FUNCTION)
        ]
        pids = {call.result()["body"] for call in calls}

    # Each waited for all the others: none could have been served after another.
    assert len(pids) == WORKERS_PER_FUNCTION
    assert pids == {str(pid) for pid in stack.worker_pids("Obey")}


def test_more_calls_than_workers_wait_for_their_turn(stack: LocalStack) -> None:
    with concurrent.futures.ThreadPoolExecutor(20) as threads:
        pids = list(threads.map(lambda _: pid_of_a_call(stack), range(40)))

    assert len(pids) == 40
    assert len(set(pids)) <= WORKERS_PER_FUNCTION
    assert len(stack.worker_pids("Obey")) <= WORKERS_PER_FUNCTION


def test_function_over_its_time_is_killed_before_the_caller_hears_of_it(
    stack: LocalStack, api: httpx.Client, tmp_path: Path
) -> None:
    late = tmp_path / "late"

    answer = api.post("/obey", json={"do": "sleep", "seconds": 1.5, "then_write": str(late)})

    assert answer.status_code == 500
    assert answer.text == '{"message":"Internal Server Error"}'
    assert not late.exists()
    assert "Task timed out after 1.00 seconds" in stack.log_path.read_text()
    assert int(obey(stack, do="nothing")["body"])


def test_timeout_is_told_to_who_invoked_directly(stack: LocalStack, tmp_path: Path) -> None:
    with pytest.raises(InvocationFailed, match=r"Task timed out after 1\.00 seconds") as failure:
        obey(stack, do="sleep", seconds=60, then_write=str(tmp_path / "late"))

    assert failure.value.error_type == "Sandbox.Timedout"


def test_time_limit_of_a_call_starts_anew_with_each_event(stack: LocalStack) -> None:
    stack.invoke("Echo", {})
    time.sleep(0.3)

    context = json.loads(stack.invoke("Echo", {})["body"])["context"]

    assert 700 < context["remaining_ms"] <= 1000


def test_worker_that_dies_is_replaced(stack: LocalStack, api: httpx.Client) -> None:
    answer = api.post("/obey", json={"do": "exit", "code": 3})

    assert answer.status_code == 500
    assert "Runtime exited with error: exit status 3" in stack.log_path.read_text()
    assert api.post("/obey", json={"do": "nothing"}).status_code == 200


def test_idle_worker_killed_from_outside_is_replaced(stack: LocalStack) -> None:
    victim = pid_of_a_call(stack)

    os.kill(victim, signal.SIGKILL)
    while victim in stack.worker_pids("Obey"):
        time.sleep(0.01)

    assert pid_of_a_call(stack) != victim


def test_exception_is_told_with_its_type(stack: LocalStack) -> None:
    with pytest.raises(InvocationFailed) as failure:
        obey(stack, do="raise", message="no such thing")

    assert (failure.value.error_type, failure.value.error_message) == ("ValueError", "no such thing")


def test_exception_is_500_to_the_caller(api: httpx.Client) -> None:
    answer = api.post("/obey", json={"do": "raise", "message": "secret detail"})

    assert answer.status_code == 500
    assert answer.text == '{"message":"Internal Server Error"}'


@pytest.mark.parametrize(
    ("function", "error_type", "message"),
    [
        pytest.param("Broken", "RuntimeError", "no settings", id="import raises"),
        pytest.param("Missing", "Runtime.HandlerNotFound", "Handler 'nowhere' missing", id="handler is not there"),
    ],
)
def test_function_that_cannot_start_says_why_every_time(
    stack: LocalStack, function: str, error_type: str, message: str
) -> None:
    for _ in range(2):
        with pytest.raises(InvocationFailed, match=message) as failure:
            stack.invoke(function)

        assert failure.value.error_type == error_type


def test_answer_over_6_mb_is_refused_and_the_next_call_works(stack: LocalStack) -> None:
    with pytest.raises(InvocationFailed, match="Response payload size exceeded"):
        obey(stack, do="fill", bytes=6 * 1024 * 1024 + 100)

    assert obey(stack, do="nothing")["statusCode"] == 200


def test_large_answer_within_the_limit_arrives_whole(stack: LocalStack) -> None:
    assert len(obey(stack, do="fill", bytes=5 * 1024 * 1024)["body"]) == 5 * 1024 * 1024


def test_what_a_function_prints_is_in_the_log(stack: LocalStack) -> None:
    obey(stack, do="print", text="a line for the log\n")

    assert "a line for the log" in stack.log_path.read_text()


def test_function_sees_lambda_and_not_this_machine(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-of-the-developer")
    stack.retire_workers()

    shown = json.loads(stack.invoke("Echo", {})["body"])

    environment = {
        name: value
        for name, value in shown["environment"].items()
        if not name.startswith(("COVERAGE_", "_X_AMZN")) and name != "_"
    }
    assert environment.keys() == {
        *("AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_EXECUTION_ENV", "AWS_REGION"),
        *("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION"),
        *("AWS_LAMBDA_INITIALIZATION_TYPE", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME"),
        *("AWS_LAMBDA_RUNTIME_API", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        *("COLOUR", "HOME", "LAMBDA_TASK_ROOT", "LANG", "PATH", "PYTHONPATH", "TZ", "_HANDLER"),
    }
    assert environment["COLOUR"] == "blue"
    assert environment["AWS_EXECUTION_ENV"] == "AWS_Lambda_python3.13"
    context = shown["context"]
    assert context["function_name"] == environment["AWS_LAMBDA_FUNCTION_NAME"] == "keyservice-local-Echo"
    assert context["invoked_function_arn"].endswith(":function:keyservice-local-Echo:live")


def test_retired_workers_give_way_to_a_cold_start(stack: LocalStack) -> None:
    before = pid_of_a_call(stack)

    stack.retire_workers()

    assert pid_of_a_call(stack) != before
