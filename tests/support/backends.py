"""Metrics backends for the tests."""

from __future__ import annotations

import math
import threading
from collections import Counter
from typing import Literal, NamedTuple


class Call(NamedTuple):
    """One call of a backend's method."""

    method: Literal["timing", "increment"]
    name: str
    value: float


class Recorder:
    """Records every call, in order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def timing(self, name: str, value: float) -> None:
        self.calls.append(Call("timing", name, value))

    def increment(self, name: str, value: int) -> None:
        self.calls.append(Call("increment", name, value))

    def sum_of(self, name: str) -> float:
        """What arrived under a name."""
        return sum(call.value for call in self.calls if call.name == name)

    def sums(self) -> Counter[str]:
        """What arrived, by name."""
        sums: Counter[str] = Counter()
        for call in self.calls:
            sums[call.name] += call.value  # type: ignore[assignment]
        return sums


class Outage(Exception):  # noqa: N818 - what a backend has, not what a programmer made
    """What a failing backend raises."""


class Flaky(Recorder):
    """Refuses what ``refuses`` says, by raising ``error``."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error or Outage("the metrics backend is down")
        self.refused: set[str] = set()

    def timing(self, name: str, value: float) -> None:
        self._refuse(name)
        super().timing(name, value)

    def increment(self, name: str, value: int) -> None:
        self._refuse(name)
        super().increment(name, value)

    def _refuse(self, name: str) -> None:
        if name in self.refused:
            raise self.error.with_traceback(None)  # else each raise keeps its frames alive


class Blocking(Recorder):
    """Blocks in every call until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.released = threading.Event()

    def increment(self, name: str, value: int) -> None:
        self.entered.set()
        assert self.released.wait(30)
        super().increment(name, value)


STATUS = "arroyo.producer.produce_status"
LATENCY = "arroyo.producer.callback_latency"


class TaggedCall(NamedTuple):
    """One call of a backend's method by a producer."""

    method: str
    name: str
    value: float
    tags: dict[str, str]


class ProducerBackend:
    """Records calls as a producer makes them, by keywords only, and may refuse some."""

    def __init__(self) -> None:
        self.calls: list[TaggedCall] = []
        self.error: BaseException | None = None
        self.accepts: float = math.inf

    def increment(self, *, name: str, value: int, tags: dict[str, str]) -> None:
        self._record("increment", name, value, tags)

    def timing(self, *, name: str, value: float, tags: dict[str, str]) -> None:
        self._record("timing", name, value, tags)

    def gauge(self, *_: object, **__: object) -> None: ...

    def _record(self, method: str, name: str, value: float, tags: dict[str, str]) -> None:
        if self.accepts <= 0:
            raise self.error or Outage
        self.accepts -= 1
        self.calls.append(TaggedCall(method, name, value, tags))

    def counts(self) -> Counter[str]:
        """Deliveries by status."""
        counts: Counter[str] = Counter()
        for call in self.calls:
            if call.name == STATUS:
                counts[call.tags["status"]] += int(call.value)
        return counts

    def latencies(self) -> list[float]:
        """Seconds, in the order they were sent."""
        return [call.value for call in self.calls if call.name == LATENCY]
