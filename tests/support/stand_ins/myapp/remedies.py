"""Remedies for the race in arroyo's buffer, as applications write them, for arroyo's own class.

Each has its own loops, as such code has: one that calls a helper can't be judged before the import.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

LOCK = threading.Lock()


def reads_and_resets(self: Any) -> None:
    counters = dict(self._MetricsBuffer__counters)
    timers = dict(self._MetricsBuffer__timers)
    for name, total in counters.items():
        self.metrics.increment(name, total)
    for name, total in timers.items():
        self.metrics.timing(name, total)
    self._MetricsBuffer__reset()


def snapshots_resets_sends(self: Any) -> None:
    timers = list(self._MetricsBuffer__timers.items())
    counters = list(self._MetricsBuffer__counters.items())
    self._MetricsBuffer__reset()
    for name, total in timers:
        self.metrics.timing(name, total)
    for name, total in counters:
        self.metrics.increment(name, total)


def copies_and_clears_under_a_lock(self: Any) -> None:
    with LOCK:
        timers = self._MetricsBuffer__timers.copy()
        counters = dict(self._MetricsBuffer__counters)
        self._MetricsBuffer__timers.clear()
        self._MetricsBuffer__counters.clear()
        self._MetricsBuffer__last_record_time = time.time()
    for name, total in timers.items():
        self.metrics.timing(name, total)
    for name, total in counters.items():
        self.metrics.increment(name, total)


def swaps_under_a_lock(self: Any) -> None:
    with LOCK:
        timers, self._MetricsBuffer__timers = self._MetricsBuffer__timers, defaultdict(float)
        counters, self._MetricsBuffer__counters = self._MetricsBuffer__counters, defaultdict(int)
        self._MetricsBuffer__last_record_time = time.time()
    for name, total in timers.items():
        self.metrics.timing(name, total)
    for name, total in counters.items():
        self.metrics.increment(name, total)


def swaps_under_the_buffers_lock(self: Any) -> None:
    with self.lock:
        timers, self._MetricsBuffer__timers = self._MetricsBuffer__timers, defaultdict(float)
        counters, self._MetricsBuffer__counters = self._MetricsBuffer__counters, defaultdict(int)
        self._MetricsBuffer__last_record_time = time.time()
    for name, total in timers.items():
        self.metrics.timing(name, total)
    for name, total in counters.items():
        self.metrics.increment(name, total)


def reads_total_by_total(self: Any) -> None:
    for name in list(self._MetricsBuffer__timers):
        self.metrics.timing(name, self._MetricsBuffer__timers.pop(name))
    while self._MetricsBuffer__counters:
        self.metrics.increment(*self._MetricsBuffer__counters.popitem())
    self._MetricsBuffer__reset()


def adds_a_timing_under_a_lock(self: Any, metric: str, duration: float) -> None:
    with LOCK:
        self._MetricsBuffer__timers[metric] += duration
    self._MetricsBuffer__throttled_record()


def adds_a_count_under_a_lock(self: Any, metric: str, delta: int) -> None:
    with LOCK:
        self._MetricsBuffer__counters[metric] += delta
    self._MetricsBuffer__throttled_record()


def with_a_lock(init: Callable[..., None]) -> Callable[..., None]:
    def make(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        self.lock = threading.Lock()

    return make


WRITES = {"incr_timing": adds_a_timing_under_a_lock, "incr_counter": adds_a_count_under_a_lock}
METHODS: dict[str, dict[str, Callable[..., None]]] = {
    "reads and resets": {"flush": reads_and_resets},
    "snapshots, resets, sends": {"flush": snapshots_resets_sends},
    "copies and clears under a lock": {"flush": copies_and_clears_under_a_lock},
    "swaps under a lock": {"flush": swaps_under_a_lock},
    "swaps under the buffer's lock": {"flush": swaps_under_the_buffers_lock},
    "reads total by total": {"flush": reads_total_by_total},
    "writes them too": {"flush": swaps_under_a_lock, **WRITES},
}


def apply(form: str, cls: Any) -> None:
    """Put a remedy into a class."""
    for name, function in METHODS[form].items():
        setattr(cls, name, function)
    if form == "swaps under the buffer's lock":
        cls.__init__ = with_a_lock(cls.__init__)
