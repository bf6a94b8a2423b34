"""What a consumer does, counted by itself in a file that outlives it, even by SIGKILL."""

from __future__ import annotations

import itertools
import mmap
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from arroyo.utils.metric_defs import MetricName

PRODUCE_STATUS = "arroyo.producer.produce_status"
# By status, which is a tag.
SUCCEEDED, FAILED = f"{PRODUCE_STATUS} success", f"{PRODUCE_STATUS} error"
CALLBACK_LATENCY = "arroyo.producer.callback_latency"
# Names that arroyo writes too, so that threads meet in one sum, and names of the threads' own.
COUNTERS = (
    *("arroyo.consumer.run.count", "arroyo.consumer.pause"),
    *(f"e2e.counter.{number}" for number in range(8)),
)
TIMERS = (
    *("arroyo.consumer.poll.time", "arroyo.consumer.join.time"),
    *(f"e2e.timer.{number}" for number in range(4)),
)
METRICS = sorted({*get_args(MetricName), *COUNTERS, *TIMERS, SUCCEEDED, FAILED} - {PRODUCE_STATUS})
FACTS = ["patched", "messages", "assignments", "signals", "forks", "ended", "errors"]
FACTS += ["packets", "dropped"]

COLUMNS = {name: index for index, name in enumerate(("time", *FACTS, *METRICS))}
WIDTH = len(COLUMNS)
ROWS = 32  # threads of a process
SAMPLES = 8192  # with one every 50 ms, seven minutes


class Ledger:
    """A row for each thread, so that sums are exact without a lock, and samples of their totals.

    The memory is shared with children that fork: a child writes to the row of the thread that
    forked, which has to wait for it.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._cells = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")
        self._own = threading.local()
        self._rows = itertools.count()
        self._samples = itertools.count(ROWS)

    def add(self, name: str, value: float = 1) -> None:
        try:
            start = self._own.start
        except AttributeError:
            row = next(self._rows)
            if row >= ROWS:
                raise RuntimeError("more threads than the ledger has rows") from None
            start = self._own.start = row * WIDTH
        self._cells[start + COLUMNS[name]] += value

    def sample(self) -> None:
        """Note the totals of this moment."""
        totals = sums(self._cells)
        totals[COLUMNS["time"]] = time.monotonic()
        start = next(self._samples) * WIDTH
        self._cells[start : start + WIDTH] = memoryview(totals)


class Record:
    """A ledger as another process sees it, who makes the file and gives it away."""

    def __init__(self, path: Path) -> None:
        with path.open("w+b") as file:
            file.truncate((ROWS + SAMPLES) * WIDTH * 8)
            self._cells = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")

    def fact(self, name: str) -> int:
        column = COLUMNS[name]
        return round(sum(self._cells[row * WIDTH + column] for row in range(ROWS)))

    def totals(self) -> dict[str, float]:
        return dict(zip(COLUMNS, sums(self._cells), strict=True))

    def samples(self) -> Iterator[dict[str, float]]:
        """The latest first."""
        for row in reversed(range(ROWS, ROWS + SAMPLES)):
            cells = self._cells[row * WIDTH : (row + 1) * WIDTH]
            if cells[COLUMNS["time"]]:
                yield dict(zip(COLUMNS, cells, strict=True))


def sums(cells: memoryview[float]) -> array[float]:
    """The sums over all threads."""
    rows = (cells[row * WIDTH : (row + 1) * WIDTH] for row in range(ROWS))
    return array("d", map(sum, zip(*rows, strict=True)))
