"""The private names of arroyo's class, for others' code that works on them.

An application may have a remedy for the race: functions in the place of ``flush()`` and others that
read, clear and swap the tables of arroyo's class. This package's class has no tables. It lends such
code their names: what is added to a table is added to the buffer, and whoever looks into a table
has the buffer flushed first, and finds it empty. So the remedy runs on and has nothing to do.

Such code may hold a lock of its own meanwhile. The backend, a signal handler or another thread
would wait for that lock in the remedy's functions. So while this package's code is at work here,
calls of the buffer go to the methods of this package's class.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any
from weakref import ref

from arroyo_metrics_buffer._core import MetricsBuffer

from .log import log
from .patch import Attribute, changes

METHODS = ("incr_timing", "incr_counter", "flush")
"""The methods that a buffer's safety depends on."""

_USERS = "_arroyo_metrics_buffer_users"

# As they are before anyone else can replace them.
_init, _flush, _snapshot = MetricsBuffer.__init__, MetricsBuffer.flush, MetricsBuffer.snapshot
_originals: dict[type, Mapping[str, Any]] = {}
_told: set[str] = set()


def lend(methods: Mapping[type[MetricsBuffer], Iterable[Attribute]]) -> None:
    """Give this package's classes, whose methods are told, the private names of arroyo's."""
    for cls, of_class in methods.items():
        _originals[cls] = {method.name: method.value for method in of_class}
    for name, value in _NAMES.items():
        setattr(MetricsBuffer, f"_MetricsBuffer__{name}", value)


class _Table(MutableMapping[Any, Any]):
    """Looks like a table of totals to whoever flushes it, and adds what is added to it."""

    def __init__(self, buffer: MetricsBuffer, method: str) -> None:
        self._buffer = buffer
        self._method = method

    def __getitem__(self, metric: object) -> int:
        return 0  # so that += sets what is to be added

    def __setitem__(self, metric: object, delta: object) -> None:
        with _in_use(self._buffer):
            _ours(self._buffer)[self._method](self._buffer, metric, delta)

    def __delitem__(self, metric: object) -> None:
        self.clear()

    def __iter__(self) -> Iterator[Any]:
        self.clear()
        return iter(())

    def __len__(self) -> int:
        self.clear()
        return 0

    def __contains__(self, metric: object) -> bool:
        return False

    def clear(self) -> None:
        with _in_use(self._buffer):
            _flush(self._buffer)

    def copy(self) -> _Table:
        return self

    def __deepcopy__(self, _memo: object) -> _Table:
        return self


class _Name:
    """A table's name."""

    def __init__(self, method: str) -> None:
        self._method = method

    def __get__(self, buffer: MetricsBuffer | None, _class: type) -> Any:
        return self if buffer is None else _Table(buffer, self._method)

    def __set__(self, buffer: MetricsBuffer, totals: Mapping[Any, Any]) -> None:
        _make(buffer)
        if not isinstance(totals, _Table):
            _Table(buffer, self._method).update(totals)

    def __delete__(self, buffer: MetricsBuffer) -> None:
        """Nothing goes with the name."""


def _make(buffer: MetricsBuffer) -> None:
    """Do what the constructor of this package's class does, where a remedy's has not called it."""
    try:
        _snapshot(buffer)
    except RuntimeError:
        _init(buffer, getattr(buffer, "metrics", None))


def _reset(buffer: Any) -> None:
    with _in_use(buffer):
        _flush(buffer)
    buffer._MetricsBuffer__last_record_time = time.time()  # noqa: SLF001 - lent


def _throttled_record(buffer: Any) -> None:
    # For a remedy that has tables of its own. This package's class has a throttle of its own.
    arroyo = sys.modules.get("arroyo.processing.processor")
    interval = getattr(arroyo, "METRICS_FREQUENCY_SEC", 1.0)
    if time.time() - buffer._MetricsBuffer__last_record_time > interval:  # noqa: SLF001 - lent
        buffer.flush()


_NAMES = {
    "timers": _Name("incr_timing"),
    "counters": _Name("incr_counter"),
    "data": _Name("incr_timing"),  # as arroyo before 2.10.3 has it
    "metrics": MetricsBuffer.metrics,  # as arroyo before 2.14.25 has it
    "reset": _reset,
    "throttled_record": _throttled_record,
    "last_record_time": time.time(),
}


def _ours(buffer: MetricsBuffer) -> Mapping[str, Any]:
    return next(_originals[cls] for cls in type(buffer).__mro__ if cls in _originals)


@contextmanager
def _in_use(buffer: MetricsBuffer) -> Generator[None]:
    """Have calls of a buffer go to this package's methods, while its private names are in use."""
    fields = vars(buffer)
    if (users := fields.get(_USERS)) is None:
        users = fields.setdefault(_USERS, [])
        for name, ours in _ours(buffer).items():
            fields[name] = _either(buffer, name, ours, users)
        _tell(buffer)
    users.append(None)
    try:
        yield
    finally:
        users.pop()


def _either(buffer: MetricsBuffer, name: str, ours: Any, users: list[None]) -> Callable[..., Any]:
    """A method of one buffer: this package's while there are users, else what the class has."""
    of_buffer = ref(buffer)

    def call(*arguments: Any) -> Any:
        buffer: Any = of_buffer()
        method = ours if users else getattr(buffer.__class__, name)
        return method(buffer, *arguments)

    return call


def _tell(buffer: MetricsBuffer) -> None:
    """Log whose functions they are, once."""
    watched = (Attribute(type(buffer), *method) for method in _ours(buffer).items())
    cures = ", ".join(change.cure for change in changes(watched) if not change.is_extension)
    if cures and cures not in _told:
        _told.add(cures)
        log(logging.WARNING, "arroyo.processing.processor.MetricsBuffer: %s", cures)
