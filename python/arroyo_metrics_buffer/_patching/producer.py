"""The metrics methods of arroyo's ``ConfluentProducer``, with a buffer that is safe among threads.

They take the place of arroyo's in the class itself, which keeps its name: producers and subclasses
that exist already change with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakValueDictionary

from arroyo_metrics_buffer._core import DeliveryBuffer

_DELIVERIES = "_ConfluentProducer__deliveries"


# Those that have a buffer, by id. gc.get_objects() would find them too, but breaks other threads: a
# tuple that it has seen in the making can't be finished (CPython issue 39117).
_producers: WeakValueDictionary[int, Any] = WeakValueDictionary()


class _Deliveries:
    """The buffer of a producer, made when it is first asked for."""

    def __init__(self, arroyo: ModuleType) -> None:
        self._arroyo = arroyo

    def __get__(self, producer: object, _class: type | None = None) -> Any:
        if producer is None:
            return self
        buffer = DeliveryBuffer(flush_interval=self._arroyo.METRICS_FREQUENCY_SEC)
        # Of several threads that come here at once, all get the buffer of the first. From then on
        # the attribute is the instance's own, and this is not called any more.
        buffer = vars(producer).setdefault(_DELIVERIES, buffer)
        _producers[id(producer)] = producer
        return buffer


def is_patched(cls: object) -> bool:
    """Whether a class has these methods, or inherits from one that has."""
    method = getattr(cls, "_ConfluentProducer__flush_metrics", None)
    return getattr(method, "__module__", None) == __name__


def methods(arroyo: ModuleType, cls: Any) -> dict[str, Any]:
    """What to set on arroyo's class, which gets the buffers at once.

    It keeps those for good: when the methods are put back, a thread may be in the midst of one.
    """
    setattr(cls, _DELIVERIES, _Deliveries(arroyo))
    arroyos_init = cls.__init__

    class ConfluentProducer:
        # Named as arroyo's class, so that the private names in it are the same.

        producer_name: str | None
        __metrics: Any
        __produce_counters: MutableMapping[str, int]
        __deliveries: _Deliveries

        def __init__(self, configuration: Mapping[str, Any]) -> None:
            arroyos_init(self, configuration)
            _ = self.__deliveries  # made here, since now its first flush interval begins

        def __flush_metrics(self) -> None:
            if self.__produce_counters:
                take_over(self, self.__deliveries)
            self.__deliveries.flush(self.__metrics, self.producer_name or None)

        # Without the time where deliveries are counted only, in arroyo 2.31.2 to 2.40.1.
        def __metrics_delivery_callback(  # pyright: ignore[reportUnusedFunction]
            self, error: object, _message: object, time_of_produce: float | None = None
        ) -> None:
            latency = None if time_of_produce is None else time.time() - time_of_produce
            if self.__deliveries.record(error, latency):
                self.__flush_metrics()

        def flush(self, timeout: float | None = -1) -> int:
            self.__flush_metrics()
            try:
                undelivered: int = super(cls, self).flush(timeout)  # type: ignore[misc]
            finally:
                self.__flush_metrics()  # what was delivered meanwhile
            return undelivered

    return {
        name: value
        for name, value in vars(ConfluentProducer).items()
        if isinstance(value, FunctionType)
    }


def take_over(producer: Any, buffer: DeliveryBuffer) -> None:
    """Move to the buffer what arroyo's own methods counted before they were replaced."""
    counters, latencies = _arroyos_own(producer)
    # Piece by piece: one of arroyo's methods may be at work in another thread.
    counts = {status: counters.pop(status, 0) for status in list(counters)}
    samples: list[float] = []
    with suppress(IndexError):
        while True:
            samples.append(latencies.pop())
    buffer.add(counts, samples[::-1])


def hand_back(cls: type) -> None:
    """Move what is pending in buffers of a class's producers to where arroyo's methods find it."""
    for reference in _producers.valuerefs():
        if isinstance(producer := reference(), cls):
            counters, latencies = _arroyos_own(producer)
            counts, samples = vars(producer)[_DELIVERIES].drain()
            for status, count in counts.items():
                counters[status] += count
            latencies += samples


def _arroyos_own(producer: object) -> tuple[MutableMapping[str, int], list[float]]:
    """The counters and the latencies, of which arroyo 2.31.2 to 2.40.1 has none."""
    fields = vars(producer)
    return (
        fields["_ConfluentProducer__produce_counters"],
        fields.get("_ConfluentProducer__callback_latency", []),
    )
