"""The private names of arroyo's class, for others' code that works on them.

An application may have a remedy for the race: functions in the place of ``flush()`` and others that
read, clear and swap the tables of arroyo's class. This package's class has no tables. It lends such
code their names: what is added to a table is added to the buffer, and whoever looks into a table
has the buffer flushed first, and finds it empty. So the remedy runs on and has nothing to do.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from arroyo_metrics_buffer._core import MetricsBuffer

from .patch import Attribute

METHODS = ("incr_timing", "incr_counter", "flush")
"""The methods that a buffer's safety depends on."""

# As they are before anyone else can replace them.
_init, _snapshot = MetricsBuffer.__init__, MetricsBuffer.snapshot
_ours: dict[type, Mapping[str, Any]] = {}


def lend(methods: Mapping[type[MetricsBuffer], Iterable[Attribute]]) -> None:
    """Give this package's classes, whose methods are told, the private names of arroyo's."""
    for cls, of_class in methods.items():
        _ours[cls] = {method.name: method.value for method in of_class}
    for name, value in _NAMES.items():
        setattr(MetricsBuffer, f"_MetricsBuffer__{name}", value)


class _Name:
    """The name of a table, to which a method adds."""

    def __init__(self, add: str) -> None:
        self._add = add

    def __get__(self, buffer: MetricsBuffer | None, _class: type | None = None) -> Any:
        if buffer is None:
            return self
        from .tables import Table  # noqa: PLC0415 - seldom needed

        ours = next(_ours[cls] for cls in type(buffer).__mro__ if cls in _ours)
        return Table(buffer, self._add, ours)

    def __set__(self, buffer: MetricsBuffer, totals: Mapping[Any, Any]) -> None:
        try:
            _snapshot(buffer)
        except RuntimeError:  # a remedy's constructor has not called this package's
            _init(buffer, getattr(buffer, "metrics", None))
        table = self.__get__(buffer)
        if type(totals) is not type(table):
            table.update(totals)

    def __delete__(self, buffer: MetricsBuffer) -> None:
        """Nothing goes with the name."""


def _reset(buffer: Any) -> None:
    _NAMES["counters"].__get__(buffer).clear()
    buffer._MetricsBuffer__last_record_time = time.time()  # noqa: SLF001 - lent


def _throttled_record(buffer: Any) -> None:
    # For a remedy that has tables of its own. This package's class has a throttle of its own.
    arroyo = sys.modules.get("arroyo.processing.processor")
    interval = getattr(arroyo, "METRICS_FREQUENCY_SEC", 1.0)
    if time.time() - buffer._MetricsBuffer__last_record_time > interval:  # noqa: SLF001 - lent
        buffer.flush()


_NAMES: Mapping[str, Any] = {
    "timers": _Name("incr_timing"),
    "counters": _Name("incr_counter"),
    "data": _Name("incr_timing"),  # as arroyo before 2.10.3 has it
    "metrics": MetricsBuffer.metrics,  # as arroyo before 2.14.25 has it
    "reset": _reset,
    "throttled_record": _throttled_record,
    "last_record_time": time.time(),
}
