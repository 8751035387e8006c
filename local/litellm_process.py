"""The LiteLLM stand-in as a process that can be stopped and started again without forgetting its keys."""

import sys
from pathlib import Path

from local.loopback import free_port, wait_for_port
from local.processes import Child, base_environment, spawn

CHECKOUT = Path(__file__).parent.parent


class LiteLLMProcess:
    """Starts at once; `wait_until_ready` waits for it. Each answer waits `delay_seconds`."""

    def __init__(self, *, master_key: str, state_path: Path, log_path: Path, delay_seconds: float = 0) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = log_path
        self._master_key = master_key
        self._state_path = state_path
        self._delay_seconds = delay_seconds
        self._process = self._spawn()

    def wait_until_ready(self) -> None:
        """Raises StartFailed."""
        wait_for_port(self.port, owner=self._process, name="the LiteLLM stand-in", log_path=self.log_path)

    def start(self) -> None:
        """Returns when it takes calls; nothing happens when it already runs."""
        if self._process.exit_code() is not None:
            self._process = self._spawn()
        self.wait_until_ready()

    def stop(self) -> None:
        self._process.end()

    def kill(self) -> None:
        self._process.kill()

    def restart(self, *, master_key: str | None = None, delay_seconds: float | None = None) -> None:
        """With another master key or delay, if one is given, and all the keys it had."""
        self.stop()
        self._master_key = master_key or self._master_key
        if delay_seconds is not None:
            self._delay_seconds = delay_seconds
        self.start()

    def _spawn(self) -> Child:
        command = [
            *(sys.executable, "-m", "local.litellm", "--port", str(self.port)),
            *("--master-key", self._master_key, "--state", str(self._state_path)),
            *("--delay", str(self._delay_seconds)),
        ]
        with self.log_path.open("ab") as log:
            return spawn(command, environment=base_environment(), output=log, directory=CHECKOUT)
