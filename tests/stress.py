"""Threads that run into each other, and interpreters that run alone."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

DEADLINE = 60.0  # seconds; far beyond what any job takes, so passing it is a hang


def run_together(*jobs: Callable[[], object]) -> None:
    """Run every job in a thread of its own, from the same moment on, and raise what one raised."""
    start = threading.Barrier(len(jobs))
    errors: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        try:
            start.wait(DEADLINE)
            job()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in an interpreter of its own: no other test disturbs it, and a hang fails."""

    @functools.wraps(test)
    def run(**parameters: object) -> None:
        call = f"tests.{test.__name__}.__wrapped__(**{parameters!r})"
        code = f"import {test.__module__} as tests; {call}"
        folder = Path(__file__).parent
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=2 * DEADLINE)

    return run
