"""What others' code finds in the place of the private tables of arroyo's class.

A table is a dict like arroyo's. Whoever looks into it finds what is pending in the buffer, which is
moved here at that moment; what is added to it goes out with the next flush, whoever makes that.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any
from weakref import ref

from arroyo_metrics_buffer._core import MetricsBuffer, add_totals, drain_totals

# Of two threads that move totals, one waits: a sum is read and written in two steps. No code of
# others runs meanwhile, and a fork waits too.
_moving = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_moving.acquire, after_in_parent=_moving.release, after_in_child=_moving.release
    )


class Table(defaultdict[Any, Any]):
    """One table of a buffer.

    Args:
        tables: Both of the buffer's.
        zero: What the total of a new name is: ``float`` or ``int``.
        totals: What is in it.
    """

    def __init__(self, tables: Tables, zero: type, totals: Iterable[Any] = ()) -> None:
        super().__init__(zero, totals)
        self._tables = ref(tables)

    def fill(self) -> None:
        """Move what is pending in the buffer here; this may have been taken out of it since."""
        if (tables := self._tables()) is not None:
            tables.fill(self)

    def add(self, totals: Mapping[str, float]) -> None:
        """Add totals, without a look."""
        for name, total in totals.items():
            self[name] += total

    def copy(self) -> Any:
        """Return a dict of its own, like a copy of arroyo's."""
        self.fill()
        return defaultdict(self.default_factory, self)

    def __copy__(self) -> Any:
        return self.copy()

    def __deepcopy__(self, _memo: object) -> Any:
        return self.copy()


def _looking(name: str) -> Any:
    of_dict = getattr(defaultdict, name)

    def look(self: Table, *arguments: Any) -> Any:
        self.fill()
        return of_dict(self, *arguments)

    return look


for _name in (
    *("__contains__", "__eq__", "__iter__", "__len__", "__ne__", "__or__", "__reversed__"),
    *("__ror__", "get", "items", "keys", "values"),
):
    setattr(Table, _name, _looking(_name))


class Tables:
    """Both tables of a buffer."""

    def __init__(self, buffer: MetricsBuffer) -> None:
        self._buffer = ref(buffer)
        self.timers = Table(self, float)
        self.counters = Table(self, int)

    def fill(self, asked: Table) -> None:
        """Move what is pending in the buffer into its tables, or into one that was taken out."""
        if (buffer := self._buffer()) is None:
            return
        timers, counters = self.timers, self.counters
        if asked.default_factory is float:
            timers = asked
        else:
            counters = asked
        with _moving:
            seconds, counts = drain_totals(buffer)
            timers.add(seconds)
            counters.add(counts)

    def absorb(self, buffer: MetricsBuffer) -> None:
        """Move what is in the tables into the buffer, which is about to be flushed."""
        with _moving:
            add_totals(buffer, *map(_taken, (self.timers, self.counters)))

    def replace(self, name: str, totals: Iterable[Any]) -> None:
        """Put another dict in the place of a table."""
        zero = float if name == "timers" else int
        setattr(self, name, totals if type(totals) is Table else Table(self, zero, dict(totals)))

    def clear(self) -> None:
        """Drop what is in the tables. What nobody has looked at is pending in the buffer still."""
        self.timers.clear()
        self.counters.clear()


def _taken(table: Table) -> dict[Any, Any]:
    taken: dict[Any, Any] = {}
    with suppress(KeyError):
        while True:
            name, total = table.popitem()
            taken[name] = total
    return taken
