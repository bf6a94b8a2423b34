"""Messages per second through arroyo's StreamProcessor, with its own buffer and with ours.

The consumer hands out the same message for ever and the strategy does nothing, so that what is
measured is arroyo's run loop: four calls of the buffer for every message. Rounds alternate between
the two; each gives one ratio, and the table shows their median and quartiles.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from datetime import datetime
from typing import Any
from unittest import mock

from arroyo.backends.abstract import Consumer
from arroyo.processing import StreamProcessor
from arroyo.processing.strategies.abstract import ProcessingStrategy, ProcessingStrategyFactory
from arroyo.types import BrokerValue, Message, Partition, Topic

import arroyo_metrics_buffer

MESSAGES = 5_000  # a round; some tens of milliseconds
PARTITION = Partition(Topic("topic"), 0)


class Nothing(ProcessingStrategy[bytes]):
    """Does nothing with a message."""

    def poll(self) -> None:
        pass

    def submit(self, message: Message[bytes]) -> None:
        pass

    def close(self) -> None:
        pass

    def terminate(self) -> None:
        pass

    def join(self, timeout: float | None = None) -> None:
        pass


class Factory(ProcessingStrategyFactory[bytes]):
    """Makes one."""

    def create_with_partitions(self, _commit: Any, _partitions: Any) -> Nothing:
        return Nothing()


def make_processor() -> StreamProcessor[bytes]:
    """A processor with whichever buffer is installed, assigned to one partition."""
    consumer = mock.Mock(spec=Consumer)
    processor = StreamProcessor(consumer, PARTITION.topic, Factory())
    consumer.tell.return_value = {}
    consumer.subscribe.call_args.kwargs["on_assign"]({PARTITION: 0})
    value = BrokerValue(b"", PARTITION, 0, datetime.now())  # noqa: DTZ005 - as arroyo's consumers
    consumer.poll = lambda timeout: value  # noqa: ARG005 - a mock would cost more than arroyo
    return processor


def messages_per_second(processor: StreamProcessor[bytes]) -> float:
    run_once = processor._run_once  # noqa: SLF001 - what run() calls in a loop
    start = time.perf_counter()
    for _ in range(MESSAGES):
        run_once()
    return MESSAGES / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    arroyo_metrics_buffer.uninstall()
    plain = make_processor()
    arroyo_metrics_buffer.install()
    patched = make_processor()
    samples = [(messages_per_second(patched), messages_per_second(plain)) for _ in range(rounds)]
    low, median, high = statistics.quantiles([a / b for a, b in samples], n=4)
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}")
    print(f"messages per second, median of {rounds} rounds [quartiles]")
    print(f"  patched / plain   {median:5.2f} [{low:.2f} to {high:.2f}]")
    for name, rates in zip(("patched", "plain"), zip(*samples, strict=True), strict=True):
        print(f"  {name:<17} {statistics.median(rates):9,.0f}")


if __name__ == "__main__":
    main()
