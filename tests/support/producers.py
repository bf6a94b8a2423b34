"""Producers that are closed when the test that makes them ends.

Otherwise their threads live on for as long as anything refers to them, and start others meanwhile.
"""

from __future__ import annotations

from typing import Any, TypeVar
from weakref import WeakSet

from arroyo.backends.kafka import KafkaProducer
from confluent_kafka import Producer

DEADLINE = 30  # seconds for a thread that polls ten times a second

AnyProducer = TypeVar("AnyProducer", bound=Producer | KafkaProducer)

_open: WeakSet[Any] = WeakSet()  # a test may prove that a producer is freed


def closed_after_test(producer: AnyProducer) -> AnyProducer:
    """Have a producer closed, if by then the test has not dropped it."""
    _open.add(producer)
    return producer


def close_all() -> None:
    while _open:
        close(_open.pop())


def close(producer: Any) -> None:
    """Close a producer, whatever is waiting in it and whatever its backend raises."""
    if isinstance(producer, KafkaProducer):
        inner = vars(producer)["_KafkaProducer__producer"]
        inner.purge()
        producer.close().exception(DEADLINE)
        producer = inner
    producer.purge()
    producer.close()
