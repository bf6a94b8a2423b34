"""What an application's remedy finds in the place of the private tables of arroyo's class.

Such code may hold a lock of its own meanwhile. The backend, a signal handler or another thread
would wait for that lock in the remedy's functions. So while this package's code is at work here,
calls of the buffer go to the methods of this package's class.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any
from weakref import ref

from arroyo_metrics_buffer._core import MetricsBuffer

from .log import log
from .patch import Attribute, changes, cure

_USERS = "_arroyo_metrics_buffer_users"

_told: set[str] = set()


class Table(MutableMapping[Any, Any]):
    """Looks like a table of totals to whoever flushes it, and adds what is added to it.

    Args:
        buffer: The buffer that it adds to and has flushed.
        add: The name of the method that adds.
        ours: The methods of the buffer's class, as this package has made them.
    """

    def __init__(self, buffer: MetricsBuffer, add: str, ours: Mapping[str, Any]) -> None:
        self._buffer = buffer
        self._add = add
        self._ours = ours

    def __getitem__(self, metric: object) -> int:
        return 0  # so that += sets what is to be added

    def __setitem__(self, metric: object, delta: object) -> None:
        with _in_use(self._buffer, self._ours):
            self._ours[self._add](self._buffer, metric, delta)

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
        """Flush the buffer, by this package's own method."""
        with _in_use(self._buffer, self._ours):
            self._ours["flush"](self._buffer)

    def copy(self) -> Table:
        """Return itself: whoever looks into a copy later has the buffer flushed then."""
        return self

    def __deepcopy__(self, _memo: object) -> Table:
        return self


@contextmanager
def _in_use(buffer: MetricsBuffer, ours: Mapping[str, Any]) -> Generator[None]:
    """Have calls of a buffer go to this package's methods meanwhile."""
    fields = vars(buffer)
    users: list[None] = fields.setdefault(_USERS, [])
    # Of several threads that come here at once, none goes on before all are there.
    if not fields.keys() >= ours.keys():
        for name in ours:
            fields.setdefault(name, _either(buffer, name, ours[name], users))
        _tell(buffer, ours)
    users.append(None)
    try:
        yield
    finally:
        users.pop()


def _either(buffer: MetricsBuffer, name: str, ours: Any, users: list[None]) -> Callable[..., Any]:
    """A method of one buffer: this package's while there are users, else what the class has."""
    of_buffer = ref(buffer)

    def call(*arguments: Any, **keywords: Any) -> Any:
        buffer: Any = of_buffer()
        method = ours if users else getattr(buffer.__class__, name)
        return method(buffer, *arguments, **keywords)

    return call


def _tell(buffer: MetricsBuffer, ours: Mapping[str, Any]) -> None:
    """Log whose functions work on the tables, once."""
    watched = (Attribute(type(buffer), *method) for method in ours.items())
    told = cure(change.what for change in changes(watched) if not change.is_extension)
    if told and told not in _told:
        _told.add(told)
        log(logging.WARNING, "arroyo.processing.processor.MetricsBuffer: %s", told)
