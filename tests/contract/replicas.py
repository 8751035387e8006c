"""One more replica of the real LiteLLM under test, on the same database, by the harness that started the first."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from local.loopback import free_port
from local.processes import last_lines, spawn

CHECKOUT = Path(__file__).parents[2]
HARNESS = (CHECKOUT / os.environ.get("LITELLM_HARNESS", "../shared/litellm")).resolve()
START_SECONDS = 150.0

# start.sh leaves LiteLLM in a session of its own, where no signal to our process group reaches it. So this shell stays as
# long as the replica shall, and stops it and keeps its log at the end; when the tests are killed, the guardian of
# local.processes ends the shell.
KEEP_ONE_RUNNING = """
trap '"$0/stop.sh"; . "$0/env.sh"; mv "$RUN/litellm-$LITELLM_PORT.log" "$1"' EXIT
trap 'exit 1' TERM
"$0/start.sh" & wait $! || exit
sleep infinity & wait
"""
# The first replica's process, by the file that start.sh wrote.
IS_RUNNING = '. "$0/env.sh" && kill -0 "$(cat "$RUN/litellm-$1.pid")"'


def why_not() -> str | None:
    """Why there can be no second replica; None when there can."""
    url = urlsplit(os.environ.get("LITELLM_URL", ""))
    if not url.hostname:
        return "the stand-in has no cache and no replicas: this needs a real LiteLLM"
    if not (HARNESS / "start.sh").exists():
        return "there is no harness in LITELLM_HARNESS to start a second LiteLLM with"
    if url.hostname != "127.0.0.1" or not _is_running(port=url.port or 80):
        return "LITELLM_URL is not a LiteLLM of the harness: a second one would be on another database"
    return None


@contextmanager
def another_replica(*, cache_seconds: float, directory: Path) -> Iterator[str]:
    """Its URL; it forgets a key after `cache_seconds`. It ends with the block, and with this process however that ends."""
    port = free_port()
    config = directory / "litellm.yaml"
    config.write_text(_config(cache_seconds))
    log_path = directory / "replica.log"
    with log_path.open("wb") as log:
        keeper = spawn(
            ["bash", "-c", KEEP_ONE_RUNNING, str(HARNESS), str(directory)],
            # The database is the first replica's as well.
            environment={**_environment(), "LITELLM_PORT": str(port), "LITELLM_CONFIG": str(config), "KEEP_PG": "1"},
            output=log,
            directory=HARNESS,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        # Not "already runs": that would be somebody else's, with other settings.
        while "LiteLLM ready" not in log_path.read_text(errors="replace"):
            assert keeper.exit_code() is None, f"the second LiteLLM did not start: {last_lines(log_path, count=5)}"
            assert time.monotonic() < deadline, "the second LiteLLM took too long to start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        # stop.sh itself kills after 10 s.
        keeper.end(grace_seconds=30)


def _config(cache_seconds: float) -> str:
    first = Path(os.environ.get("LITELLM_CONFIG") or HARNESS / "config.yaml")
    config = yaml.safe_load(first.read_text())
    config["general_settings"]["user_api_key_cache_ttl"] = cache_seconds
    return yaml.safe_dump(config)


def _is_running(*, port: int) -> bool:
    command = ["bash", "-c", IS_RUNNING, str(HARNESS), str(port)]
    return subprocess.run(command, env=_environment(), capture_output=True, check=False).returncode == 0


def _environment() -> dict[str, str]:
    """The harness's own settings, as the first replica got them."""
    return {name: value for name, value in os.environ.items() if name != "LITELLM_URL"}
