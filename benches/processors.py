"""Messages per second through arroyo's StreamProcessor, with its own buffer and with ours.

The consumer hands out the same message for ever, so that what is measured is arroyo's run loop,
with four calls of the buffer for every message, and a strategy that takes so many microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from unittest import mock

from arroyo.backends.abstract import Consumer
from arroyo.processing import StreamProcessor
from arroyo.processing.strategies.abstract import ProcessingStrategy, ProcessingStrategyFactory
from arroyo.types import BrokerValue, Message, Partition, Topic

import arroyo_metrics_buffer
from measuring import OURS, Case

MICROSECONDS = (0, 1, 10, 100)
SPAN = 0.03  # seconds that a round takes, about
PARTITION = Partition(Topic("topic"), 0)


def cases() -> Iterator[Case]:
    for duration in MICROSECONDS:
        arroyo_metrics_buffer.uninstall()
        plain = run(make_processor(duration), duration)
        arroyo_metrics_buffer.install()
        patched = run(make_processor(duration), duration)
        title = f"strategy of {duration} µs"
        yield Case("processor", title, "messages/s", 50, {"arroyo": plain, OURS: patched})


class Busy(ProcessingStrategy[bytes]):
    """Keeps the processor busy for some time with each message."""

    def __init__(self, microseconds: int) -> None:
        self._nanoseconds = microseconds * 1_000

    def poll(self) -> None:
        pass

    def submit(self, message: Message[bytes]) -> None:  # noqa: ARG002
        if self._nanoseconds:
            end = time.perf_counter_ns() + self._nanoseconds
            while time.perf_counter_ns() < end:
                pass

    def close(self) -> None:
        pass

    def terminate(self) -> None:
        pass

    def join(self, timeout: float | None = None) -> None:
        pass


def make_processor(microseconds: int) -> StreamProcessor[bytes]:
    """A processor with whichever buffer is installed, assigned to one partition."""

    class Factory(ProcessingStrategyFactory[bytes]):
        def create_with_partitions(self, _commit: Any, _partitions: Any) -> Busy:
            return Busy(microseconds)

    consumer = mock.Mock(spec=Consumer)
    processor = StreamProcessor(consumer, PARTITION.topic, Factory())
    consumer.tell.return_value = {}
    consumer.subscribe.call_args.kwargs["on_assign"]({PARTITION: 0})
    value = BrokerValue(b"", PARTITION, 0, datetime.now())  # noqa: DTZ005 - as arroyo's consumers
    consumer.poll = lambda timeout: value  # noqa: ARG005 - a mock would cost more than arroyo
    return processor


def run(processor: StreamProcessor[bytes], microseconds: int) -> Callable[[], float]:
    run_once = processor._run_once  # noqa: SLF001 - what run() calls in a loop
    messages = round(SPAN / (6e-6 + microseconds * 1e-6))

    def messages_per_second() -> float:
        start = time.perf_counter()
        for _ in range(messages):
            run_once()
        return messages / (time.perf_counter() - start)

    return messages_per_second
