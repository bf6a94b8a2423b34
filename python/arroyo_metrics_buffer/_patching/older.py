"""Buffers for older releases of arroyo, whose own class is made or called in another way."""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar

from arroyo_metrics_buffer._core import MetricsBuffer


class WithOriginalConstructor(MetricsBuffer):
    """Takes what arroyo's constructor takes, and the backend that arroyo's chooses."""

    original: ClassVar[type]
    """arroyo's own class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        original: object = self.original(*args, **kwargs)
        fields = vars(original)
        # Private until 2.14.24.
        name = "metrics" if "metrics" in fields else "_MetricsBuffer__metrics"
        super().__init__(fields[name])


class WithEnumNames(WithOriginalConstructor):
    """Its metrics are members of enums, whose values the backend gets."""

    def incr_timing(self, metric: Enum, duration: float) -> None:  # type: ignore[override]
        super().incr_timing(metric.value, duration)

    def incr_counter(self, metric: Enum, delta: int) -> None:  # type: ignore[override]
        super().incr_counter(metric.value, delta)


class TimersOnly(WithEnumNames):
    """Has timers only."""

    def increment(self, metric: Enum, duration: float) -> None:
        self.incr_timing(metric, duration)


def replacement(original: type, base: type[MetricsBuffer]) -> type[MetricsBuffer]:
    """What takes the place of arroyo's own class."""
    if not issubclass(base, WithOriginalConstructor):
        return base
    return type(base.__name__, (base,), {"original": original, "__module__": __name__})
