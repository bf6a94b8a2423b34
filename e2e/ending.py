"""How a script ends: together with everything that it started, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

# The second is that of a terminal that is closed, the third that of a script's own timeout.
STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


class Failed(Exception):  # noqa: N818 - what a run has, not what a programmer made
    """What was asked for did not come about."""


def fail_on_signals() -> None:
    """From now on raise Failed in the main thread on any of those signals, as Ctrl-C does its."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, fail)


def fail(number: int, _frame: object) -> NoReturn:
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)  # a closed terminal tells twice; once is enough
    raise Failed(f"stopped by {signal.Signals(number).name}")


@contextmanager
def process_group() -> Iterator[int]:
    """A process group apart from Ctrl-C, which is for the script itself.

    Yields:
        Its number. What is in it at the end of the block is killed, and so it is as soon as the
        script is gone, be it by SIGKILL.
    """
    # Its first member waits for the end of a pipe that nobody writes to, and the script holds.
    with subprocess.Popen(
        ["sh", "-c", "read _; kill -KILL 0"], stdin=subprocess.PIPE, process_group=0
    ) as watcher:
        try:
            yield watcher.pid
        finally:
            os.killpg(watcher.pid, signal.SIGKILL)
