"""C13 and C14: what others put in the place of the producer's methods loses and doubles nothing."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from arroyo.backends.kafka import consumer as arroyo_consumer

import arroyo_metrics_buffer
from support.backends import ProducerBackend
from support.producers import closed_after_test

CALLBACK = "_ConfluentProducer__metrics_delivery_callback"
FLUSH_METRICS = "_ConfluentProducer__flush_metrics"
COUNTERS = "_ConfluentProducer__produce_counters"

consumer: Any = arroyo_consumer


@pytest.fixture
def cls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """arroyo's class, patched, whose deliveries never flush. It is as before after the test."""
    monkeypatch.setattr(consumer, "METRICS_FREQUENCY_SEC", math.inf)
    arroyo_metrics_buffer.uninstall()
    cls: Any = consumer.ConfluentProducer
    before = dict(vars(cls))
    arroyo_metrics_buffer.install()
    yield cls
    arroyo_metrics_buffer.uninstall()
    for name in "__init__", CALLBACK, FLUSH_METRICS, "flush":
        setattr(cls, name, before[name])


def made(cls: Any) -> Any:
    return closed_after_test(cls({"log_level": 0}))


def deliver(producer: Any) -> None:
    getattr(producer, CALLBACK)(None, "message", 1000.0)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


@pytest.mark.parametrize("owner", ["class", "producer"])
@pytest.mark.parametrize("wrap", [lambda mocked: mocked, functools.partial])
def test_what_is_no_function_is_called_as_arroyo_calls_it(
    cls: Any, backend: ProducerBackend, owner: str, wrap: Any
) -> None:
    producer = made(cls)
    theirs = mock.Mock()
    with mock.patch.object(cls if owner == "class" else producer, FLUSH_METRICS, wrap(theirs)):
        deliver(producer)
        producer.flush(0)
    assert theirs.call_args_list == [mock.call()] * 2
    assert backend.counts() == {"success": 1}


def test_a_method_of_another_object_may_stand_for_one(cls: Any, backend: ProducerBackend) -> None:
    class Reporter:
        calls = 0

        def report(self) -> None:
            self.calls += 1

    reporter = Reporter()
    setattr(cls, FLUSH_METRICS, reporter.report)
    producer = made(cls)
    deliver(producer)
    producer.flush(0)
    assert reporter.calls == 2
    assert backend.counts() == {"success": 1}
