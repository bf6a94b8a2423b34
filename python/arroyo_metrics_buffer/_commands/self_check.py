"""Tries the buffers that are in place: threads add to one while others flush it."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from arroyo_metrics_buffer import BufferedMetricsBackend, MetricsBuffer, stats

MIN_FLUSHES = 10  # for a self-check to tell anything
TIMEOUT = 5.0  # seconds, for that many flushes to happen where the machine is busy


class Metric(StrEnum):
    """Names that arroyo uses. Members of an enum, as its older releases want them."""

    RUN_COUNT = "arroyo.consumer.run.count"
    POLL_TIME = "arroyo.consumer.poll.time"
    PROCESSING_TIME = "arroyo.consumer.processing.time"


@dataclass(frozen=True)
class SelfCheck:
    """What became of increments that threads made while others flushed.

    Attributes:
        seconds: How long it took.
        threads: How many took part.
        flushes: How many there were.
        made: Increments, each of 1.
        delivered: Their sum as the backend got it.
        errors: What was raised, in words.
    """

    seconds: float
    threads: int
    flushes: int
    made: int
    delivered: float
    errors: tuple[str, ...]

    def is_exact(self) -> bool:
        """Whether there was no error, nothing lost and nothing counted twice."""
        return not self.errors and self.made == self.delivered

    def __str__(self) -> str:
        outcome = "exact" if self.is_exact() else "NOT exact"
        return ", ".join(
            [
                f"{self.threads} threads",
                f"{self.made:,} increments made and {self.delivered:,.0f} delivered",
                f"{self.flushes:,} flushes in {self.seconds:.1f} s",
                *self.errors,
                outcome,
            ]
        )


class Backend:
    """Sums what it gets."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self._lock = threading.Lock()

    def increment(self, name: str, value: float, tags: object = None) -> None:  # noqa: ARG002
        with self._lock:
            self.sums[name] += value  # type: ignore[assignment]

    timing = increment


def check_metrics_buffer(cls: type[MetricsBuffer], seconds: float = 0.5) -> SelfCheck:
    """Try the class that processors make their buffers from."""
    # As older releases' constructors want other arguments, not through cls itself.
    buffer = MetricsBuffer.__new__(cls)
    MetricsBuffer.__init__(buffer, backend := Backend())

    def write() -> int:
        buffer.incr_counter(Metric.RUN_COUNT, 1)
        buffer.incr_timing(Metric.POLL_TIME, 1.0)
        buffer.incr_timing(Metric.PROCESSING_TIME, 1.0)
        return 3

    return _check(write, buffer.flush, backend, lambda: stats().consumer.flushes, seconds)


def check_streams(cls: type[BufferedMetricsBackend], seconds: float = 0.5) -> SelfCheck:
    """Try the class that sentry-streams makes its buffer from."""
    buffer = cls(backend := Backend(), throttle_interval_sec=1.0)

    def write() -> int:
        buffer.increment("input.messages", 1, tags={"step": "self-check"})
        buffer.timing("duration", 1.0, tags={"step": "self-check"})
        return 2

    return _check(write, buffer.flush, backend, lambda: stats().streams.flushes, seconds)


def _check(
    write: Callable[[], int],
    flush: Callable[[], None],
    backend: Backend,
    flushes: Callable[[], int],
    seconds: float,
) -> SelfCheck:
    """Have two threads write to a buffer and two flush it, until some flushes met some writes."""
    made: list[int] = []
    errors: list[str] = []
    together = threading.Barrier(4, timeout=TIMEOUT)
    before, start = flushes(), time.monotonic()

    def goes_on() -> bool:
        passed = time.monotonic() - start
        return passed < seconds or (
            flushes() - before < MIN_FLUSHES and passed < TIMEOUT and not errors
        )

    def repeat(job: Callable[[], int | None]) -> None:
        count = 0
        try:
            together.wait()
            while goes_on():
                count += job() or 0
        except Exception as error:  # noqa: BLE001 - to be told
            errors.append(f"{type(error).__name__}: {error}")
        made.append(count)

    jobs: list[Any] = [write, write, flush, flush]
    threads = [threading.Thread(target=repeat, args=(job,)) for job in jobs]
    with _frequent_thread_switches():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with suppress(Exception):  # then something is missing
        flush()
    return SelfCheck(
        seconds=time.monotonic() - start,
        threads=len(threads),
        flushes=flushes() - before,
        made=sum(made),
        delivered=backend.sums.total(),
        errors=tuple(errors),
    )


@contextmanager
def _frequent_thread_switches() -> Generator[None]:
    """Let the interpreter switch threads as often as it can."""
    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(switch_interval)
