"""What is measured: arroyo's buffer, the fixes that go round, other ways to count, and ours."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from arroyo.processing import processor
from datadog.dogstatsd.base import DogStatsd
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, Counter

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer
from empty_method import Empty  # type: ignore[attr-defined]
from measuring import OURS

NEVER = 1e9  # seconds, as an interval
COUNTER = "arroyo.consumer.run.count"
TIMER = "arroyo.consumer.poll.time"

arroyo_metrics_buffer.uninstall()
Upstream: Any = processor.MetricsBuffer
processor.METRICS_FREQUENCY_SEC = NEVER  # a flush is measured by itself


class Nothing:
    """A metrics backend."""

    def timing(self, name: str, value: float) -> None:
        pass

    def increment(self, name: str, value: int) -> None:
        pass


class Snapshot:
    """arroyo's buffer with the fix that goes round: iterate over a copy. Loses counts."""

    def __init__(self, metrics: Any) -> None:
        self.metrics = metrics
        self._timers: defaultdict[str, float] = defaultdict(float)
        self._counters: defaultdict[str, int] = defaultdict(int)
        self._flushed_at = time.time()

    def incr_timing(self, metric: str, duration: float) -> None:
        self._timers[metric] += duration
        self._flush_if_due()

    def incr_counter(self, metric: str, delta: int) -> None:
        self._counters[metric] += delta
        self._flush_if_due()

    def _flush_if_due(self) -> None:
        if time.time() - self._flushed_at > NEVER:
            self.flush()

    def flush(self) -> None:
        for name, seconds in list(self._timers.items()):
            self.metrics.timing(name, seconds)
        for name, count in list(self._counters.items()):
            self.metrics.increment(name, count)
        self._timers.clear()
        self._counters.clear()
        self._flushed_at = time.time()


class Locked(Snapshot):
    """The right fix in Python: a lock, and a swap. Loses what a failing backend did not accept."""

    def __init__(self, metrics: Any) -> None:
        super().__init__(metrics)
        self._lock = threading.Lock()

    def incr_timing(self, metric: str, duration: float) -> None:
        with self._lock:
            self._timers[metric] += duration
        self._flush_if_due()

    def incr_counter(self, metric: str, delta: int) -> None:
        with self._lock:
            self._counters[metric] += delta
        self._flush_if_due()

    def flush(self) -> None:
        with self._lock:
            timers, self._timers = self._timers, defaultdict(float)
            counters, self._counters = self._counters, defaultdict(int)
            self._flushed_at = time.time()
        for name, seconds in timers.items():
            self.metrics.timing(name, seconds)
        for name, count in counters.items():
            self.metrics.increment(name, count)


def upstream(metrics: Any) -> Any:
    buffer = Upstream()
    buffer.metrics = metrics
    return buffer


def ours(metrics: Any) -> MetricsBuffer:
    return MetricsBuffer(metrics, flush_interval=NEVER)


def prometheus(_metrics: Any) -> Any:
    return Counter("count", "", registry=CollectorRegistry())


def opentelemetry(_metrics: Any) -> Any:
    provider = MeterProvider([InMemoryMetricReader()])
    counter: Any = provider.get_meter("bench").create_counter("count")
    counter.provider = provider  # which shuts down when it is collected
    return counter


def datadog_aggregation(_metrics: Any) -> Any:
    return DogStatsd(disable_aggregation=False, flush_interval=NEVER, disable_telemetry=True)


class Contender(NamedTuple):
    """A way to count, and a call of it."""

    make: Callable[[Any], Any]
    """Makes a counter that sends to a backend."""
    method: str = "incr_counter"
    arguments: str = "{name}, 1"

    def call(self, name: str) -> str:
        """Source code of a call, with that of a name."""
        return f"counter.{self.method}({self.arguments.format(name=name)})"


BUFFERS = {
    "arroyo": Contender(upstream),
    "arroyo, snapshot fix": Contender(Snapshot),
    "arroyo, lock and swap": Contender(Locked),
    OURS: Contender(ours),
}
"""Those that have arroyo's interface, and a flush."""

OTHERS = {
    "empty method in Rust": Contender(lambda _: Empty()),
    "prometheus_client": Contender(prometheus, "inc", "1"),
    "OpenTelemetry": Contender(opentelemetry, "add", "1"),
    "datadog, aggregating": Contender(datadog_aggregation, "increment"),
}
