"""The hooks of Lambda SnapStart: what happens before the snapshot that a version's environments start from, and after."""

from keyservice import wiring


def register() -> None:
    """Once for each process, when its handler is made; nothing unless a snapshot is going to be taken."""
    if not wiring.is_snapshot_taken():
        return
    # Part of Lambda's Python runtime, and needed nowhere else.
    from snapshot_restore_py import (  # pyright: ignore[reportMissingTypeStubs]
        register_after_restore,
        register_before_snapshot,
    )

    register_before_snapshot(wiring.prepare_snapshot)
    register_after_restore(wiring.open_afresh)
