"""`python -m local.dev`: the service on this machine until Ctrl-C, with a user who may create keys."""

import argparse
import os
import shlex
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

import httpx

from local.errors import StartFailed
from local.seed import insert_models, model_names, subscribe
from local.stack import LocalStack

DEFAULT_PORT = 8080
_END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SUBJECT = "alice"
TOKEN_SECONDS = 24 * 60 * 60

_READY = """
The API is at {url}

  export TOKEN={token}

  # create a key; its secret is shown this once
  curl -s {url}/api/v1/api-keys -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d {body}; echo

  # list the keys
  curl -s {url}/api/v1/api-keys -H "Authorization: Bearer $TOKEN"; echo

  # delete one, by the id from the answers above
  curl -s -X DELETE {url}/api/v1/api-keys/$KEY_ID -H "Authorization: Bearer $TOKEN"; echo

LiteLLM     {litellm_url}
PostgreSQL  {dsn}
Log         {log_path}

Ctrl-C ends everything.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m local.dev",
        description="Keeps the service up on this machine, with a database, KMS, a token issuer and LiteLLM.",
        epilog="LITELLM_URL and LITELLM_MASTER_KEY in the environment make it use that LiteLLM.",
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="of the API (default: %(default)s)")
    port: int = parser.parse_args().port
    for number in _END_SIGNALS:
        signal.signal(number, _end)
    try:
        with LocalStack.start(
            port=port,
            litellm_url=os.environ.get("LITELLM_URL") or None,
            litellm_master_key=os.environ.get("LITELLM_MASTER_KEY") or None,
            report=lambda step: print(f"{step} ...", flush=True),
        ) as stack:
            print(_welcome(stack), flush=True)
            threading.Event().wait()
    except StartFailed as failure:
        sys.exit(_advice(str(failure), port=port))
    except KeyboardInterrupt:
        print("\nended", flush=True)


def _welcome(stack: LocalStack) -> str:
    try:
        models = model_names(stack.litellm_url, master_key=stack.litellm_master_key)
    except httpx.HTTPError as error:
        raise StartFailed(f"LiteLLM at {stack.litellm_url} does not list its models: {error}") from error
    insert_models(stack.admin_dsn, models)
    subscribe(stack.admin_dsn, subject=SUBJECT, models=models)
    listed = ", ".join(f'"{model}"' for model in models[:2])
    return _READY.format(
        url=stack.url,
        token=stack.token(SUBJECT, ttl_seconds=TOKEN_SECONDS),
        body=shlex.quote(f'{{"name": "my first key", "modelIds": [{listed}]}}'),
        litellm_url=stack.litellm_url,
        dsn=stack.admin_dsn,
        log_path=stack.log_path,
    )


def _advice(reason: str, *, port: int) -> str:
    if f"port {port} is taken" in reason:
        remedy = f"End the program that listens there, or choose another: python -m local.dev --port {port + 1}"
        return f"Port {port} is taken. {remedy}"
    return f"The local stack did not start: {reason}"


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    # The end has begun and takes less than a second: an impatient second Ctrl-C would only cut it short.
    for number in _END_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
