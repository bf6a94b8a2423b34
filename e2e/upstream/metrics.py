"""A metrics backend that records the calls it gets."""

from __future__ import annotations

from typing import NamedTuple

from arroyo.utils.metrics import MetricName, Metrics, Tags


class MetricCall(NamedTuple):
    """Equal to any other with the same arguments: the tests mistake one method for another."""

    name: MetricName
    value: float
    tags: Tags | None


class Increment(MetricCall):
    """A call of ``increment()``."""


class Gauge(MetricCall):
    """A call of ``gauge()``."""


class Timing(MetricCall):
    """A call of ``timing()``."""


class _TestingMetricsBackend(Metrics):
    def __init__(self) -> None:
        self.calls: list[MetricCall] = []

    def increment(self, name: MetricName, value: float = 1, tags: Tags | None = None) -> None:
        self.calls.append(Increment(name, value, tags))

    def gauge(self, name: MetricName, value: float, tags: Tags | None = None) -> None:
        self.calls.append(Gauge(name, value, tags))

    def timing(self, name: MetricName, value: float, tags: Tags | None = None) -> None:
        self.calls.append(Timing(name, value, tags))


TestingMetricsBackend = _TestingMetricsBackend()  # the tests know the only one by this name
