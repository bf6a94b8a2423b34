"""What others' code finds in the place of the private tables of arroyo's class.

A table is a dict like arroyo's. Whoever looks into it finds what is pending in the buffer, which is
moved there at that moment. What is added to it goes out with the next flush, whoever makes that.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import ref

from arroyo_metrics_buffer._core import MetricsBuffer, drain_totals, move_totals

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
        buffer: The buffer.
        zero: What the total of a new name is: ``float`` or ``int``.
        totals: What is in it.
    """

    def __init__(self, buffer: MetricsBuffer, zero: type, totals: Iterable[Any] = ()) -> None:
        super().__init__(zero, totals)
        self._buffer: Any = ref(buffer)
        self._has_counters = zero is int
        self._drained: dict[Any, Any] = {}
        """What was pending in the buffer, on its way here."""

    def fill(self) -> None:
        """Move here what is pending in the buffer."""
        with _moving:
            self._merge()
            if (buffer := self._buffer()) is not None:
                self._drained = drain_totals(buffer, counters=self._has_counters)
                self._merge()

    def _merge(self) -> None:
        # Total by total, so that each is in one of the two dicts if memory ends.
        for name in list(self._drained):
            self[name] += self._drained[name]
            del self._drained[name]

    def detach(self) -> None:
        """Leave what is pending from now on to the table that takes the place of this one."""
        self.fill()
        self._buffer = lambda: None

    def move_to(self, buffer: MetricsBuffer) -> None:
        """Move all that is in it to the buffer, without a look. What that does not take stays."""
        for totals in (self, self._drained):
            move_totals(totals, buffer, counters=self._has_counters)

    def copy(self) -> Any:
        """Return a dict of its own, like a copy of arroyo's."""
        self.fill()
        return defaultdict(self.default_factory, self)

    def __copy__(self) -> Any:
        return self.copy()

    def __deepcopy__(self, _memo: object) -> Any:
        return self.copy()

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()


def _looking(name: str) -> Any:
    of_dict = getattr(defaultdict, name)

    def look(self: Table, *arguments: Any) -> Any:
        self.fill()
        return of_dict(self, *arguments)

    return look


for _name in (
    *("__contains__", "__eq__", "__iter__", "__len__", "__ne__", "__reversed__"),
    *("get", "items", "keys", "values"),
):
    setattr(Table, _name, _looking(_name))


class Tables:
    """The tables of a buffer, ``timers`` and ``counters``."""

    def __init__(self, buffer: MetricsBuffer) -> None:
        self._tables = {"timers": Table(buffer, float), "counters": Table(buffer, int)}

    def __getitem__(self, name: str) -> Table:
        return self._tables[name]

    def replace(self, name: str, buffer: MetricsBuffer, totals: Mapping[Any, Any]) -> None:
        """Put another dict in the place of a table, which keeps what was pending."""
        if totals is not (old := self._tables.get(name)):
            new = Table(buffer, float if name == "timers" else int, totals)
            if old is not None:
                old.detach()
            self._tables[name] = new

    def remove(self, name: str) -> None:
        """Take a table away, with what is pending."""
        if (table := self._tables.get(name)) is not None:
            table.detach()
            self._tables.pop(name, None)

    def clear(self) -> None:
        """Drop what is in the tables. What nobody has looked at is pending in the buffer still."""
        for table in list(self._tables.values()):
            table.clear()

    def absorb(self, buffer: MetricsBuffer) -> None:
        """Move what is in the tables into the buffer, which is about to be flushed."""
        with _moving:
            for table in list(self._tables.values()):
                table.move_to(buffer)
