"""What others' code finds in the place of the private tables of arroyo's class.

A table is a dict like arroyo's. Whoever looks into it finds what is pending in the buffer, which is
moved there at that moment. What is added to it goes out with the next flush, whoever makes that.
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
        buffer: The buffer.
        zero: What the total of a new name is: ``float`` or ``int``.
        totals: What is in it.
    """

    def __init__(self, buffer: MetricsBuffer, zero: type, totals: Iterable[Any] = ()) -> None:
        super().__init__(zero, totals)
        self._buffer: Any = ref(buffer)

    def fill(self) -> None:
        """Move here what is pending in the buffer."""
        if (buffer := self._buffer()) is not None:
            with _moving:
                self.add(drain_totals(buffer, counters=self.default_factory is int))

    def detach(self) -> None:
        """Leave what is pending from now on to the table that takes the place of this one."""
        self.fill()
        self._buffer = lambda: None

    def add(self, totals: Mapping[str, float]) -> None:
        """Add totals, without a look."""
        for name, total in totals.items():
            self[name] += total

    def take(self) -> dict[Any, Any]:
        """Take all that is in it, without a look."""
        taken: dict[Any, Any] = {}
        with suppress(KeyError):
            while True:
                name, total = self.popitem()
                taken[name] = total
        return taken

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
        if totals is not self._tables.get(name):
            self.remove(name)
            zero = float if name == "timers" else int
            self._tables[name] = Table(buffer, zero, totals)

    def remove(self, name: str) -> None:
        """Take a table away, with what is pending."""
        if (table := self._tables.pop(name, None)) is not None:
            table.detach()

    def clear(self) -> None:
        """Drop what is in the tables. What nobody has looked at is pending in the buffer still."""
        for table in list(self._tables.values()):
            table.clear()

    def absorb(self, buffer: MetricsBuffer) -> None:
        """Move what is in the tables into the buffer, which is about to be flushed."""
        with _moving:
            taken = {name: table.take() for name, table in list(self._tables.items())}
            add_totals(buffer, taken.get("timers", {}), taken.get("counters", {}))
