"""As much of a processor as Lambda gives a function of some memory: a control group of Linux with a quota.

Of cgroup v1 or v2 (kernel documentation, sched-bwc and cgroup-v2); making one takes the right to, which a container's root
may lack.
"""

import secrets
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

# One whole processor at 1,769 MB, in proportion below (Lambda developer guide, memory).
WHOLE_PROCESSOR_MEGABYTES = 1769
# A quota is given out anew each period. AWS does not say how long Lambda's is; seen from outside it is 20 ms
# (arXiv 2506.01283, 2025).
_PERIOD_MICROSECONDS = 20_000


class ProcessorShare:
    def __init__(self, group: Path, interpreter: Path) -> None:
        self.group = group
        # Starts what the interpreter would, within the group.
        self.interpreter = interpreter

    def limit_to(self, megabytes: int) -> None:
        quota = _PERIOD_MICROSECONDS * megabytes // WHOLE_PROCESSOR_MEGABYTES
        if (self.group / "cpu.cfs_quota_us").exists():
            (self.group / "cpu.cfs_period_us").write_text(str(_PERIOD_MICROSECONDS))
            (self.group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (self.group / "cpu.max").write_text(f"{quota} {_PERIOD_MICROSECONDS}")


@contextmanager
def processor_share(directory: Path, *, interpreter: Path) -> Generator[ProcessorShare | None]:
    """None where no such group can be made. Whatever runs in it has to end within the block."""
    root = Path("/sys/fs/cgroup/cpu")
    group = (root if root.exists() else root.parent) / f"keyservice-bench-{secrets.token_hex(4)}"
    starter = directory / "python"
    starter.write_text(f'#!/bin/sh\necho $$ >{group}/cgroup.procs && exec {shlex.quote(str(interpreter))} "$@"\n')
    starter.chmod(0o700)
    share = ProcessorShare(group, starter)
    try:
        group.mkdir()
        share.limit_to(WHOLE_PROCESSOR_MEGABYTES)
    except OSError:
        share = None
    try:
        yield share
    finally:
        if group.exists():
            group.rmdir()
