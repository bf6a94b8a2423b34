"""How long a call takes while another thread is stuck in the backend with a flush."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from contenders import BUFFERS, COUNTER, Contender, Nothing
from measuring import OURS, Figure

CALLS = 2_000_000
STUCK = 0.1  # seconds in each call of the backend
PERCENTILES = {"p50": 50, "p99": 99, "p99.9": 99.9, "max": 100}


def figures() -> Iterator[tuple[str, dict[str, Figure]]]:
    """Microseconds per call, by percentile and contender."""
    latencies = {name: calls_during_a_flush(contender) for name, contender in BUFFERS.items()}
    for title, percentile in PERCENTILES.items():
        at = {
            name: values[round(percentile / 100 * (CALLS - 1))]
            for name, values in latencies.items()
        }
        yield title, {n: Figure(v, v / at[OURS], v / at[OURS], v / at[OURS]) for n, v in at.items()}


class Stuck(Nothing):
    """A backend that takes its time."""

    def increment(self, name: str, value: int) -> None:  # noqa: ARG002
        time.sleep(STUCK)


def calls_during_a_flush(contender: Contender) -> list[float]:
    """Microseconds of every call, sorted."""
    buffer: Any = contender.make(Stuck())
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            with suppress(RuntimeError):  # arroyo's own
                buffer.flush()

    flusher = threading.Thread(target=flush)
    buffer.incr_counter(COUNTER, 1)
    flusher.start()
    clock = time.perf_counter_ns
    nanoseconds = []
    for _ in range(CALLS):
        start = clock()
        buffer.incr_counter(COUNTER, 1)
        nanoseconds.append(clock() - start)
    done.set()
    flusher.join()
    return sorted(each / 1e3 for each in nanoseconds)
