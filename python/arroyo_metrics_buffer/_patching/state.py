"""What this package has changed in this process."""

from __future__ import annotations

import os
import threading

from .hook import ImportHook
from .patch import Patch
from .targets import Finding, Target


class Installation:
    """Which of arroyo's classes are patched, and whether more may be.

    ``lock`` guards the other attributes, and arroyo's classes while they change. Nothing is
    imported and nothing is logged while it is held: both may wait for a thread that is in the
    import hook and waits for the lock. It is reentrant for signal handlers, which may ask for the
    status.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.disabled: str | None = "install() was not called"
        """Why nothing is patched, in words; None while classes are to be patched."""
        self.patches: dict[Target, Patch] = {}
        self.reverted: dict[Target, Patch] = {}
        """What ``uninstall()`` has put back last."""
        self.reported: dict[Target, Finding] = {}
        """What was last logged about each target."""
        self.hook = ImportHook()


installation = Installation()


def _after_fork_in_child() -> None:
    installation.lock.release()
    # A thread that the child lacks may have been in the middle of install().
    installation.hook.catch_up()


if hasattr(os, "register_at_fork"):
    # A fork waits for a thread that patches: the child gets each class whole, and a free lock.
    os.register_at_fork(
        before=installation.lock.acquire,
        after_in_parent=installation.lock.release,
        after_in_child=_after_fork_in_child,
    )
