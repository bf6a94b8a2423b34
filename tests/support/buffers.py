"""All buffers in one shape, for what is tested of all."""

from __future__ import annotations

from typing import Any, TypeAlias

from arroyo_metrics_buffer import BufferedMetricsBackend, MetricsBuffer
from arroyo_metrics_buffer._core import DeliveryBuffer

STATUS = {"count": "success", "errors": "error"}


class DeliveryAdapter:
    """A delivery buffer that looks like a metrics buffer with three metrics.

    They are the counters ``count``, of successes, and ``errors``, and the timer ``time``.
    """

    def __init__(self, metrics: Any, *, flush_interval: float) -> None:
        self.metrics = metrics
        self._buffer = DeliveryBuffer(flush_interval=flush_interval)

    def incr_counter(self, metric: str, delta: int) -> None:
        self._buffer.add({STATUS[metric]: delta - 1}, [])
        if self._buffer.record("down" if metric == "errors" else None):
            self.flush()

    def incr_timing(self, metric: str, duration: float) -> None:
        assert metric == "time"
        self._buffer.add({}, [duration])

    def flush(self) -> None:
        self._buffer.flush(self, None)

    def snapshot(self) -> tuple[dict[str, float], dict[str, int]]:
        counts, latencies = self._buffer.snapshot()
        counters = {name: counts[status] for name, status in STATUS.items() if status in counts}
        return {"time": sum(latencies)} if latencies else {}, counters

    def increment(self, *, name: str, value: int, tags: dict[str, str]) -> None:
        assert name == "arroyo.producer.produce_status"
        metric = next(metric for metric, status in STATUS.items() if status == tags["status"])
        self.metrics.increment(metric, value)

    def timing(self, *, name: str, value: float, tags: dict[str, str]) -> None:
        assert name == "arroyo.producer.callback_latency"
        self.metrics.timing("time", value)


TAGS = {"step": "map", "pipeline": "billing"}


class BackendAdapter:
    """A buffer of sentry-streams that looks like a metrics buffer."""

    def __init__(self, metrics: Any, *, flush_interval: float) -> None:
        self.metrics = metrics
        self._buffer = BufferedMetricsBackend(self, flush_interval)
        self._buffer.flush()  # the first call does

    def incr_counter(self, metric: str, delta: int) -> None:
        self._buffer.increment(metric, delta, TAGS)

    def incr_timing(self, metric: str, duration: float) -> None:
        self._buffer.timing(metric, duration, TAGS)

    def flush(self) -> None:
        self._buffer.flush()

    def snapshot(self) -> tuple[dict[str, float], dict[str, int]]:
        timers, counters, gauges = self._buffer.snapshot()
        assert gauges == []
        return (
            {name: value for name, value, _ in timers},
            {name: int(value) for name, value, _ in counters},
        )

    def increment(self, name: str, value: int, *, tags: dict[str, str]) -> None:
        assert tags is TAGS
        self.metrics.increment(name, value)

    def timing(self, name: str, value: float, *, tags: dict[str, str]) -> None:
        assert tags is TAGS
        self.metrics.timing(name, value)


AnyBuffer: TypeAlias = MetricsBuffer | DeliveryAdapter | BackendAdapter
