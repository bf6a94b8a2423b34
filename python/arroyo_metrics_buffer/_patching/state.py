"""What this package has changed in this process."""

from __future__ import annotations

import os
import sys
import threading

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
        self.is_hooked = False
        """Whether the imports of all targets are waited for."""
        self.patches: dict[Target, Patch] = {}
        self.reported: dict[Target, Finding] = {}
        """What was last logged about each target."""

    def renew_lock(self) -> None:
        """Let a child go on that was forked while another thread had the lock."""
        self.lock = threading.RLock()


installation = Installation()

if sys.platform != "win32":
    os.register_at_fork(after_in_child=installation.renew_lock)
