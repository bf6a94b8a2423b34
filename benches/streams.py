"""What a call of sentry-streams' buffer costs, the library's own beside this package's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from arroyo_metrics_buffer import BufferedMetricsBackend
from measuring import OURS, Case, nanoseconds
from support.streams import streams_own

CALLS = 10_000  # a batch
NEVER = 1e9  # seconds, as an interval
ENTRIES = 100
TAGS = {"step": "map", "pipeline": "billing"}
CLASSES: dict[str, Any] = {"sentry-streams": streams_own(), OURS: BufferedMetricsBackend}


class Nothing:
    """A metrics backend."""

    def increment(self, name: str, value: float, tags: object) -> None:
        pass

    timing = gauge = increment


def cases() -> Iterator[Case]:
    for title, call in {
        "increment, no tags": "buffer.increment('input.messages')",
        "increment, two tags": "buffer.increment('input.messages', 1, TAGS)",
        "timing, two tags": "buffer.timing('duration', 0.25, TAGS)",
        "gauge, two tags": "buffer.gauge('input.bytes', 1, TAGS)",
    }.items():
        yield Case("streams", title, "ns", 100, {n: job(c, call) for n, c in CLASSES.items()})
    adding = "; ".join(f"buffer.increment('x', 1, {{'step': '{i}'}})" for i in range(ENTRIES))
    flushing = {n: job(c, f"{adding}; buffer.flush()", 1_000) for n, c in CLASSES.items()}
    yield Case("streams", f"{ENTRIES} of one tag and a flush", "ns", 30, flushing)


def job(cls: Any, call: str, calls: int = CALLS) -> Callable[[], float]:
    buffer = cls(Nothing(), NEVER)
    buffer.increment("the first call flushes")
    return nanoseconds(call, {"buffer": buffer, "TAGS": TAGS}, calls)
