"""Children of a fork: made, watched, and put to the test."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from support.backends import Recorder
from support.buffers import AnyBuffer
from support.threads import run_together
from support.times import UNIT

DEADLINE = 30  # seconds for a child, which needs milliseconds


def exit_after(job: Callable[[], object]) -> NoReturn:
    """Do a child's job and end the child, with 0 if nothing was raised."""
    signal.alarm(2 * DEADLINE)  # a child does not outlive its test, should its parent be killed
    try:
        job()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - nothing may reach the test runner, which is the parent's
        os.write(2, traceback.format_exc().encode())
        os._exit(1)


def fork_child(job: Callable[[], object], fork: Callable[[], int] | None = None) -> int:
    pid = (fork or os.fork)()
    assert pid >= 0, "no process could be made"  # and -1, to kill(), is every process there is
    return pid or exit_after(job)


def wait_for_child(
    pid: int, deadline: float = DEADLINE, kill: Callable[[int, int], None] = os.kill
) -> None:
    """Wait for a child that has to exit with 0."""
    end = time.monotonic() + deadline
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("a child hangs")
        time.sleep(0.0005)
    assert os.waitstatus_to_exitcode(ended[1]) == 0, "a child failed, see its stderr"


def assert_empty_and_working(*buffers: AnyBuffer) -> None:
    """The buffers are empty and work, for several threads too."""
    for buffer in buffers:
        assert buffer.snapshot() == ({}, {})
        buffer.metrics = backend = Recorder()

        def work(buffer: AnyBuffer = buffer) -> None:
            for _ in range(10):
                buffer.incr_counter("count", 1)
                buffer.incr_timing("time", UNIT)
                buffer.flush()

        work()
        run_together(work, work)
        assert backend.sums() == {"count": 30, "time": 30 * UNIT}
        assert buffer.snapshot() == ({}, {})
