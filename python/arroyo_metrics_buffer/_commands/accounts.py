"""Accounts: what buffers are given, what they deliver, and what goes wrong."""

# The classes that are tallied are any.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from arroyo.backends.kafka import consumer
from arroyo.processing import processor
from arroyo.utils.metrics import Metrics, Tags, configure_metrics, get_metrics

# What may take a consumer days has to happen in seconds here.
FLUSH_INTERVAL = 0.05  # seconds; arroyo's is 1
SWITCH_INTERVAL = 1e-6  # seconds; CPython's is 0.005


PRODUCE_STATUS = "arroyo.producer.produce_status"
CALLBACK_LATENCY = "arroyo.producer.callback_latency"


class Errors:
    """Counts errors by their text, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.texts: Counter[str] = Counter()

    def add(self, where: str, error: BaseException) -> None:
        with self._lock:
            self.texts[": ".join(filter(None, (where, type(error).__name__, str(error))))] += 1

    @contextmanager
    def counted(self, where: str) -> Generator[None]:
        """Counts the exception that ends the block, instead of letting it pass."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 whatever goes wrong is what the demo shows
            self.add(where, error)


class ThreadSums(threading.local):
    """Sums by metric, each thread its own."""

    def __init__(self, threads: list[defaultdict[str, float]]) -> None:
        # Called once in every thread that comes here.
        self.sums: defaultdict[str, float] = defaultdict(int)
        threads.append(self.sums)


class Tally:
    """Sums by metric, from any thread: ints for counters, floats for timers.

    Exact without a lock: that would keep threads apart that are meant to meet in the buffer.
    """

    def __init__(self) -> None:
        self._threads: list[defaultdict[str, float]] = []
        self._own = ThreadSums(self._threads)

    def add(self, metric: str, value: float) -> None:
        self._own.sums[metric] += value

    def totals(self) -> dict[str, float]:
        """The sums over all threads."""
        totals: defaultdict[str, float] = defaultdict(int)
        for sums in self._threads:
            for metric, value in sums.copy().items():  # whose thread may not have ended
                totals[metric] += value
        return totals


class TallyingBackend(Metrics):
    """A metrics backend that tallies what it is sent."""

    def __init__(self, delivered: Tally) -> None:
        self._delivered = delivered

    def increment(self, name: str, value: float = 1, tags: Tags | None = None) -> None:
        # arroyo's Produce strategy has a metric of this name too, without a buffer.
        if name != PRODUCE_STATUS or "producer_name" in (tags or {}):
            self._send(name, value)

    def timing(self, name: str, value: float, tags: Tags | None = None) -> None:  # noqa: ARG002
        if name == CALLBACK_LATENCY:
            # A producer sends the samples one by one: there is no sum to compare, but a number. To
            # make way at each of thousands would leave no time for flushes to meet.
            self._delivered.add(name, 1)
        else:
            self._send(name, value)

    def gauge(self, name: str, value: float, tags: Tags | None = None) -> None:
        """Nothing that a buffer sends."""

    def _send(self, name: str, value: float) -> None:
        # Lets other threads run in the middle of a flush, as a backend does that sends a datagram.
        time.sleep(0)
        self._delivered.add(name, value)


def tallying_buffer(buffer: Any, made: Tally) -> type:
    """A buffer class that tallies what it is given."""

    class TallyingBuffer(buffer):  # type: ignore[misc]
        def incr_counter(self, metric: str, delta: int) -> None:
            made.add(metric, delta)
            super().incr_counter(metric, delta)

        def incr_timing(self, metric: str, duration: float) -> None:
            # In multiples of 2**-20 s: sums of such floats are exact up to 2**33 s, in whatever
            # order they are added. Only so can made and delivered be compared to the last bit.
            duration = round(duration * 2**20) / 2**20
            made.add(metric, duration)
            super().incr_timing(metric, duration)

    return TallyingBuffer


def tallying_producer(producer: Any, made: Tally) -> type:
    """A producer class that tallies its deliveries."""

    class TallyingProducer(producer):  # type: ignore[misc]
        def _ConfluentProducer__metrics_delivery_callback(  # noqa: N802 - arroyo's name for it
            self, error: object, message: object, *sent_at: float
        ) -> None:
            made.add(PRODUCE_STATUS, 1)
            if sent_at:  # in releases of arroyo that measure the latency
                made.add(CALLBACK_LATENCY, 1)
            super()._ConfluentProducer__metrics_delivery_callback(error, message, *sent_at)

    return TallyingProducer


def tallied_buffers(made: Tally) -> AbstractContextManager[object]:
    """Tallies what the buffers are given that processors make, and has them flush often."""
    buffer = tallying_buffer(processor.MetricsBuffer, made)
    return patch.multiple(processor, MetricsBuffer=buffer, METRICS_FREQUENCY_SEC=FLUSH_INTERVAL)


def tallied_producers(made: Tally) -> AbstractContextManager[object]:
    """Tallies the deliveries of producers, and has them flush often."""
    producer = tallying_producer(consumer.ConfluentProducer, made)
    return patch.multiple(
        consumer, ConfluentProducer=producer, METRICS_FREQUENCY_SEC=FLUSH_INTERVAL
    )


@contextmanager
def tallied_backend(delivered: Tally) -> Generator[None]:
    """Tallies what buffers and producers deliver, and has threads change places often."""
    metrics, switch_interval = get_metrics(), sys.getswitchinterval()
    configure_metrics(TallyingBackend(delivered), force=True)
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(switch_interval)
        configure_metrics(metrics, force=True)


class Account(NamedTuple):
    """What became of a metric's increments: counts, or seconds. Of latencies, the samples."""

    metric: str
    made: float
    delivered: float

    @property
    def lost(self) -> float:
        """Negative if more was delivered than made."""
        return self.made - self.delivered


def balance(made: Tally, delivered: Tally) -> list[Account]:
    """An account for each metric that the buffers were given."""
    arrived = delivered.totals()
    return [
        Account(metric, total, type(total)(arrived.get(metric, 0)))
        for metric, total in sorted(made.totals().items())
    ]
