"""Sends what is pending when the process ends: C15."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from arroyo_metrics_buffer._core import (
    BufferedMetricsBackend,
    MetricsBuffer,
    buffers,
    fork_generation,
    set_ending,
    stats,
)

from . import producer

# Its children end by os._exit(), and up to Python 3.12 run no handler of atexit's. They run the
# finalizers of this module.
_MULTIPROCESSING = "multiprocessing.util"

# Before a queue of multiprocessing's is closed, at 10, and a pool is ended, at 15: a backend may
# use one. What is counted after that is sent at once.
_PRIORITY = 20


class Ending:
    """What is done at the end of the process."""

    def __init__(self) -> None:
        self.is_on = True
        """Whether anything is, as ``install()`` was told."""
        self._known: ModuleType | None = None
        """The module of multiprocessing's that calls back in its children."""
        self._ended: int | None = None
        """The fork generation of the process that has sent all."""

    def send_all(self) -> None:
        """Flush every buffer once, and have each later call that adds flush at once.

        One pass, however often it is called: threads that go on counting do not keep it going, and
        a backend that fails is tried and told once. Nothing is raised, not even what is no
        Exception: the process is to end as it would without this.
        """
        if self.is_on:
            with suppress(BaseException):
                if self._ended != (generation := fork_generation()):
                    self._ended = generation
                    set_ending(True)
                    _tell([each for each in _buffers() if each.failed()])

    def join_multiprocessing(self) -> None:
        """Have multiprocessing's children send all, and this process if it is one of them."""
        if util := self._join():
            util.Finalize(None, self.send_all, exitpriority=_PRIORITY)

    def after_fork_in_child(self) -> None:
        """Have this process send all, should it turn out to be a child of multiprocessing's."""
        with suppress(Exception):  # of what stands in the place of the module
            self._join()

    def _join(self) -> Any:
        # Nothing is imported: where the module is not loaded, no child is made by it.
        util: Any = sys.modules.get(_MULTIPROCESSING)
        if not hasattr(util, "Finalize") or not hasattr(util, "register_after_fork"):
            return None
        if self._known is not util:
            util.register_after_fork(util, self._begin_child)
            self._known = util
        return util

    def _begin_child(self, util: Any) -> None:
        """Do what a child needs that has just dropped the finalizers of its parent."""
        set_ending(False)  # the parent may be at its own end
        util.Finalize(None, self.send_all, exitpriority=_PRIORITY)


class _Buffer(NamedTuple):
    """One that has to be flushed at the end."""

    flush: Callable[[], object]
    snapshot: Callable[[], tuple[Any, ...]]
    kind: int
    """The place of its kind in what ``stats()`` returns."""
    errors: list[BaseException | str]

    def failed(self) -> bool:
        """Flush it, and tell whether that failed."""
        before = self._stats()["backend_errors"]
        try:
            self.flush()
        except BaseException as error:  # noqa: BLE001 - whatever a backend, or an override, raises
            self.errors.append(error)
        else:
            if (now := self._stats())["backend_errors"] > before:  # it was logged
                self.errors.append(now["last_backend_error"])
        return bool(self.errors)

    def entries(self) -> int:
        """How many are pending."""
        return sum(map(len, self.snapshot()))

    def _stats(self) -> dict[str, Any]:
        return stats()[self.kind]


def _buffers() -> Iterator[_Buffer]:
    """Those that are alive, each kind in the order in which they were made."""
    # Those of sentry-streams come last, as the others may send to them.
    yield from _of_class(MetricsBuffer, 0)
    for each in _alive(producer.producers):
        deliveries = producer.deliveries_of(each)
        yield _Buffer(partial(producer.send_at_end, each), deliveries.snapshot, 1, [])
    yield from _of_class(BufferedMetricsBackend, 2)


def _of_class(cls: Any, kind: int) -> Iterator[_Buffer]:
    for buffer in buffers():
        if isinstance(buffer, cls):
            # Not before it is called: to look an attribute up may raise too.
            yield _Buffer(partial(_flush, buffer), partial(cls.snapshot, buffer), kind, [])


def _alive(objects: WeakValueDictionary[int, Any]) -> Iterator[Any]:
    for reference in objects.valuerefs():
        if (each := reference()) is not None:
            yield each


def _flush(buffer: MetricsBuffer | BufferedMetricsBackend) -> None:
    buffer.flush()


def _tell(failed: list[_Buffer]) -> None:
    """Log that what is pending is lost, since there will be no flush that sends it."""
    entries = sum(each.entries() for each in failed)
    if entries:
        first = failed[0].errors[0]
        logging.getLogger("arroyo_metrics_buffer").error(
            "%d entries were not sent at the end of the process, as flushes of %d buffers failed,"
            " the first by %s",
            entries,
            len(failed),
            first if isinstance(first, str) else repr(first),
            exc_info=first if isinstance(first, BaseException) else None,
        )


ending = Ending()
atexit.register(ending.send_all)
with suppress(Exception):  # as above
    ending.join_multiprocessing()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ending.after_fork_in_child)
