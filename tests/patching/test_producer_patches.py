"""C13 and C14: what others put in the place of the producer's methods loses and doubles nothing."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import confluent_kafka
import pytest
import wrapt
from arroyo.backends.kafka import consumer as arroyo_consumer

import arroyo_metrics_buffer
from support.backends import ProducerBackend
from support.producers import closed_after_test
from support.targets import PRODUCER, status_of

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


# An application's remedy for the race, all under one lock


def nothing() -> None: ...


def put_remedy_in(
    owner: Any,
    while_locked: Callable[[], None] = nothing,
    when_sent: Callable[[], None] = nothing,
) -> None:
    """Replace the methods that flush."""
    lock = threading.Lock()

    def flush_metrics(self: Any) -> None:
        with lock:
            counts = dict(getattr(self, COUNTERS))
            while_locked()
            self._ConfluentProducer__reset_metrics()
        for status, count in counts.items():
            metrics = self._ConfluentProducer__metrics
            metrics.increment(
                name="arroyo.producer.produce_status", value=count, tags={"status": status}
            )
        when_sent()

    def flush(self: Any, timeout: float = -1) -> int:
        undelivered: int = confluent_kafka.Producer.flush(self, timeout)
        getattr(self, FLUSH_METRICS)()
        return undelivered

    setattr(owner, FLUSH_METRICS, flush_metrics)
    owner.flush = flush


def test_deliveries_are_counted_where_both_methods_that_flush_are_others(
    cls: Any, backend: ProducerBackend, caplog: pytest.LogCaptureFixture
) -> None:
    producers = [made(cls), made(cls)]
    for producer in producers:
        deliver(producer)
    put_remedy_in(cls)
    for producer in producers:
        deliver(producer)
        deliver(producer)
        producer.flush(0)
    assert backend.counts() == {"success": 6}
    (warning,) = warnings(caplog)
    for name in "flush", "flush_metrics":
        assert f"is test_producer_patches.put_remedy_in.<locals>.{name} ({__file__}:" in warning
    assert warning.endswith(": remove that patch")
    assert not status_of(PRODUCER).protected


def test_they_are_again_counted_in_the_buffer_when_one_of_the_two_is_put_back(
    cls: Any, backend: ProducerBackend
) -> None:
    ours = cls.flush
    put_remedy_in(cls)
    producer = made(cls)
    deliver(producer)
    cls.flush = ours
    deliver(producer)
    assert vars(producer)["_ConfluentProducer__deliveries"].snapshot()[0] == {"success": 1}
    producer.flush(0)
    assert backend.counts() == {"success": 2}


def wrapped_in_closure(inner: Any) -> Any:
    def wrapper(*arguments: Any) -> Any:
        return inner(*arguments)

    return wrapper


def wrapped_as_known(inner: Any) -> Any:
    return functools.wraps(inner)(wrapped_in_closure(inner))


@pytest.mark.parametrize("wrap", [wrapped_in_closure, wrapped_as_known])
@pytest.mark.parametrize("interval", [math.inf, 0.0])
def test_wrappers_around_arroyos_own_have_everything_sent_after_install(
    cls: Any,
    backend: ProducerBackend,
    caplog: pytest.LogCaptureFixture,
    wrap: Any,
    interval: float,
) -> None:
    arroyo_metrics_buffer.uninstall()
    for name in "flush", FLUSH_METRICS:
        setattr(cls, name, wrap(vars(cls)[name]))
    for _ in range(2):  # one WARNING each
        arroyo_metrics_buffer.install()
        consumer.METRICS_FREQUENCY_SEC = interval
        producer = made(cls)
        deliver(producer)
        deliver(producer)
        producer.flush(0)
        arroyo_metrics_buffer.uninstall()
    assert backend.counts() == {"success": 4}
    assert len(backend.latencies()) == 4
    told = [warning for warning in warnings(caplog) if "its method flush() is " in warning]
    assert len(told) == 2


def test_a_wrapper_that_is_replaced_in_its_turn_is_judged_anew(
    cls: Any, backend: ProducerBackend
) -> None:
    ours = vars(cls)[FLUSH_METRICS]
    put_remedy_in(cls)
    theirs = vars(cls)[FLUSH_METRICS]
    setattr(cls, FLUSH_METRICS, wrapped_as_known(ours))
    producer = made(cls)
    deliver(producer)
    assert not getattr(producer, COUNTERS)
    setattr(cls, FLUSH_METRICS, theirs)
    deliver(producer)
    assert getattr(producer, COUNTERS) == {"success": 2}
    producer.flush(0)
    assert backend.counts() == {"success": 2}


def test_flush_waits_as_long_as_arroyos_own_if_no_timeout_is_given(cls: Any) -> None:
    ours = inspect.signature(cls.flush).parameters["timeout"].default
    arroyo_metrics_buffer.uninstall()
    assert ours == inspect.signature(cls.flush).parameters["timeout"].default == -1


def wrapped_by_wrapt(inner: Any) -> Any:
    return wrapt.FunctionWrapper(inner, lambda wrapped, _, args, kwargs: wrapped(*args, **kwargs))


@pytest.mark.parametrize("wrap", [wrapped_in_closure, wrapped_as_known, wrapped_by_wrapt])
def test_wrappers_around_this_packages_have_everything_sent(
    cls: Any, backend: ProducerBackend, caplog: pytest.LogCaptureFixture, wrap: Any
) -> None:
    for name in "flush", FLUSH_METRICS:
        setattr(cls, name, wrap(vars(cls)[name]))
    producer = made(cls)
    for _ in range(3):
        deliver(producer)
        producer.flush(0)
    assert backend.counts() == {"success": 3}
    assert len(warnings(caplog)) == (wrap is wrapped_in_closure)


def test_arroyos_own_callback_flushes_at_intervals_where_it_is_used(
    cls: Any, backend: ProducerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "flush", FLUSH_METRICS:
        setattr(cls, name, wrapped_in_closure(getattr(cls, name)))
    producer = made(cls)
    monkeypatch.setattr(consumer, "METRICS_FREQUENCY_SEC", 1000.0)
    vars(producer)["_ConfluentProducer__last_record_time"] = 0.0
    for _ in range(5):
        deliver(producer)
    assert backend.counts() == {"success": 1}
    producer.flush(0)
    assert backend.counts() == {"success": 5}


def test_what_a_remedy_is_about_to_send_is_not_sent_by_another_thread_too(
    cls: Any, backend: ProducerBackend
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def while_locked() -> None:
        if threading.current_thread() is other:
            entered.set()
            assert go_on.wait(30)

    def when_sent() -> None:
        if threading.current_thread() is not other:
            getattr(producer, COUNTERS)["success"] += 5
            other.start()
            assert entered.wait(30)

    put_remedy_in(cls, while_locked, when_sent)
    producer = made(cls)
    getattr(producer, COUNTERS)["success"] += 1  # by the remedy's callback
    other = threading.Thread(target=getattr(producer, FLUSH_METRICS))
    vars(cls)["_ConfluentProducer__deliveries"].flush(producer)
    go_on.set()
    other.join()
    assert backend.counts() == {"success": 6}


# Of CPython 3.13, where arroyo's own code looks a partial up in the class too.
@pytest.mark.filterwarnings("ignore:functools.partial will be a method descriptor:FutureWarning")
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
    # In a class, a partial is bound like a function from CPython 3.14 on.
    is_bound = owner == "class" and wrap is functools.partial and sys.version_info >= (3, 14)
    assert theirs.call_args_list == [mock.call(producer) if is_bound else mock.call()] * 2
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
