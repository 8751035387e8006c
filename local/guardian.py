"""A process that outlives its parent just long enough to end the parent's children and remove its directories.

Run by path with a bare interpreter, so it imports nothing but the standard library.
"""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

PATIENCE_SECONDS = 3.0


def main() -> None:
    """Read orders from standard input, one JSON object a line, until the parent closes it by dying or by leaving."""
    # A Ctrl-C reaches the whole terminal group: the parent answers it, this process must still be there afterwards.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    end_signals: dict[int, int] = {}
    directories: list[str] = []
    for line in sys.stdin:
        order = json.loads(line)
        if "watch" in order:
            end_signals[order["watch"]] = order["signal"]
        elif "forget" in order:
            end_signals.pop(order["forget"], None)
        elif "remove" in order:
            directories.append(order["remove"])
    _end(end_signals)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _end(end_signals: dict[int, int]) -> None:
    for process_id, end_signal in end_signals.items():
        _signal_group(process_id, end_signal)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(_is_alive(process_id) for process_id in end_signals) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process_id in end_signals:
        _signal_group(process_id, signal.SIGKILL)


def _signal_group(process_id: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process_id, number)


def _is_alive(process_id: int) -> bool:
    try:
        os.killpg(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # One that nobody has fetched yet still answers to signals.
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


if __name__ == "__main__":
    main()
