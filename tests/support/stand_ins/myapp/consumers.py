"""Its consumer, which asks for a shutdown when it has seen all messages there are."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from datetime import UTC, datetime

from arroyo.backends.abstract import Consumer
from arroyo.backends.local.backend import LocalBroker
from arroyo.backends.local.storages.memory import MemoryMessageStorage
from arroyo.processing.strategies import (
    CommitOffsets,
    ProcessingStrategy,
    ProcessingStrategyFactory,
    RunTask,
)
from arroyo.types import Commit, FilteredPayload, Message, Partition, Topic

MESSAGES = 10

topic = Topic("events")


def make_consumer() -> Consumer[int]:
    storage: MemoryMessageStorage[int] = MemoryMessageStorage()
    storage.create_topic(topic, 1)
    for number in range(MESSAGES):
        storage.produce(Partition(topic, 0), number, datetime.now(UTC))
    return LocalBroker(storage).get_consumer("events-readers", enable_end_of_partition=False)


def handle(message: Message[FilteredPayload | int]) -> FilteredPayload | int:
    if message.payload == MESSAGES - 1:
        signal.raise_signal(signal.SIGTERM)
    return message.payload


class MakeStrategies(ProcessingStrategyFactory[FilteredPayload | int]):
    def create_with_partitions(
        self, commit: Commit, partitions: Mapping[Partition, int]
    ) -> ProcessingStrategy[FilteredPayload | int]:
        return RunTask(handle, CommitOffsets(commit))
