"""Threads that run into each other."""

from __future__ import annotations

import threading
from collections.abc import Callable

DEADLINE = 300.0  # seconds; beyond what any job takes on a busy machine, so passing it is a hang


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
