"""`python -m local.litellm --port N --master-key K`: prints one line when it takes calls, ends on SIGTERM or Ctrl-C."""

import argparse
import os
import socket
import sys

import uvicorn

from local.litellm.completions import KNOWN_MODELS
from local.litellm.server import application

# LiteLLM closes idle connections after 5.0 s; a client that keeps them longer must see the same here.
KEEP_ALIVE_SECONDS = 5


def listening_socket(port: int) -> socket.socket:
    # asyncio sets TCP_NODELAY only on sockets that name their protocol; without it answers wait for Nagle's timer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(256)
    return listener


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.litellm", description="A stand-in for a LiteLLM proxy.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; the ready line names it")
    parser.add_argument("--master-key", default=os.environ.get("LITELLM_MASTER_KEY"), help="or LITELLM_MASTER_KEY")
    parser.add_argument("--models", nargs="+", default=list(KNOWN_MODELS))
    parser.add_argument("--state", help="a file that keeps keys and users across restarts")
    parser.add_argument("--delay", type=float, default=0, help="seconds that each answer waits (default: %(default)s)")
    arguments = parser.parse_args()
    if not arguments.master_key:
        parser.error("a master key is needed")
    try:
        listener = listening_socket(arguments.port)
    except OSError as error:
        sys.exit(f"cannot listen on 127.0.0.1:{arguments.port}: {error.strerror}")
    config = uvicorn.Config(
        application(
            master_key=arguments.master_key,
            models=arguments.models,
            state_path=arguments.state,
            delay_seconds=arguments.delay,
        ),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
        lifespan="off",
    )
    print(f"LiteLLM stand-in ready: http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
