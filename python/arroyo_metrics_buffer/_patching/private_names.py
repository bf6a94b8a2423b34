"""The private names of arroyo's class, for others' code that works on them.

An application may have a remedy for the race: functions in the place of ``flush()`` and others that
read, clear and swap the tables of arroyo's class. This package's class has no tables. It lends such
code two when it asks for them, and the code works on as with arroyo's own class.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from arroyo_metrics_buffer._core import MetricsBuffer

from .log import log
from .patch import Attribute, changes, cure

if TYPE_CHECKING:
    from .tables import Tables

METHODS = ("incr_timing", "incr_counter", "flush")
"""The methods that a buffer's safety depends on."""

_TABLES = "_arroyo_metrics_buffer_tables"
"""The attribute of a buffer that has its tables. A flush looks for it."""

# As they are before anyone else can replace them.
_init, _snapshot = MetricsBuffer.__init__, MetricsBuffer.snapshot
_ours: dict[type, tuple[Attribute, ...]] = {}
_told: set[str] = set()


def lend(methods: Mapping[type[MetricsBuffer], Iterable[Attribute]]) -> None:
    """Give this package's classes, whose methods are told, the private names of arroyo's."""
    for cls, of_class in methods.items():
        _ours[cls] = tuple(of_class)
    for name, value in _NAMES.items():
        setattr(MetricsBuffer, f"_MetricsBuffer__{name}", value)
    setattr(MetricsBuffer, _TABLES, None)


def _tables(buffer: MetricsBuffer) -> Tables:
    tables: Tables | None = vars(buffer).get(_TABLES)
    if tables is None:
        from .tables import Tables  # noqa: PLC0415 - seldom needed

        try:
            _snapshot(buffer)
        except RuntimeError:  # a remedy's constructor has not called this package's
            _init(buffer, getattr(buffer, "metrics", None))
        # Of several threads that come here at once, all get the tables of the first.
        made: Tables = vars(buffer).setdefault(_TABLES, Tables(buffer))
        _tell(buffer)
        return made
    return tables


def _tell(buffer: MetricsBuffer) -> None:
    """Log whose functions work on the tables, once."""
    ours = next(_ours[cls] for cls in type(buffer).__mro__ if cls in _ours)
    watched = (method._replace(owner=type(buffer)) for method in ours)
    told = cure(change.what for change in changes(watched) if not change.is_extension)
    if told and told not in _told:
        _told.add(told)
        log(logging.WARNING, "arroyo.processing.processor.MetricsBuffer: %s", told)


class _Name:
    """The name of a table."""

    def __init__(self, table: str) -> None:
        self._table = table

    def __get__(self, buffer: MetricsBuffer | None, _class: type | None = None) -> Any:
        if buffer is None:
            return self
        try:
            return _tables(buffer)[self._table]
        except KeyError:
            raise AttributeError(self._table, obj=buffer) from None

    def __set__(self, buffer: MetricsBuffer, totals: Mapping[Any, Any]) -> None:
        _tables(buffer).replace(self._table, buffer, totals)

    def __delete__(self, buffer: MetricsBuffer) -> None:
        # With what is in it: mock.patch.object() puts the same table back after that.
        _tables(buffer).remove(self._table)


def _reset(buffer: Any) -> None:
    _tables(buffer).clear()
    buffer._MetricsBuffer__last_record_time = time.time()  # noqa: SLF001 - lent


def _throttled_record(buffer: Any) -> None:
    # For a remedy that adds to the tables. This package's methods have a throttle of their own.
    arroyo = sys.modules.get("arroyo.processing.processor")
    interval = getattr(arroyo, "METRICS_FREQUENCY_SEC", 1.0)
    if time.time() - buffer._MetricsBuffer__last_record_time > interval:  # noqa: SLF001 - lent
        buffer._MetricsBuffer__last_record_time = time.time()  # noqa: SLF001 - lent
        buffer.flush()


_NAMES: Mapping[str, Any] = {
    "timers": _Name("timers"),
    "counters": _Name("counters"),
    "data": _Name("timers"),  # as arroyo before 2.10.3 has it
    "metrics": MetricsBuffer.metrics,  # as arroyo before 2.14.25 has it
    "reset": _reset,
    "throttled_record": _throttled_record,
    "last_record_time": time.time(),
}
