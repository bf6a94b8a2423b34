"""Threads that outlive the test that started them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DEADLINE = 10.0  # seconds for a thread to end that is about to, which takes milliseconds

TASKS = Path("/proc/self/task")  # on Linux: librdkafka's threads too, which Python does not know


def alive() -> dict[int | None, str]:
    """The names of the threads of this process, by the system's number."""
    python = {thread.native_id: thread.name for thread in threading.enumerate()}
    if not TASKS.is_dir():
        return python
    names: dict[int | None, str] = {}
    for task in TASKS.iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            name = (task / "comm").read_text(encoding="utf-8", errors="replace").strip()
            names[int(task.name)] = python.get(int(task.name), name)
    return names


@contextmanager
def no_threads_left(deadline: float = DEADLINE) -> Iterator[None]:
    """Every thread that is started in the block ends in it, or at once after it.

    The system has a thread for a moment longer than those who join it.
    """
    before = alive()
    yield
    end = time.monotonic() + deadline
    while left := {number: name for number, name in alive().items() if number not in before}:
        assert time.monotonic() < end, f"threads are left: {', '.join(sorted(left.values()))}"
        time.sleep(0.001)
