"""C12: what arroyo's producer counts and measures reaches the backend once, as arroyo sends it."""

from __future__ import annotations

import gc
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from arroyo.backends.kafka import consumer as arroyo_consumer

import arroyo_metrics_buffer
from arroyo_metrics_buffer._core import DeliveryBuffer
from support.backends import LATENCY, STATUS, Outage, ProducerBackend
from support.producers import closed_after_test
from support.threads import run_together
from support.times import UNIT

consumer: Any = arroyo_consumer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, for arroyo and for the buffers made from now on."""
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    arroyo_metrics_buffer.install(clock=lambda: time.time())  # noqa: PLW0108 - it is replaced
    return now


def made(**configuration: object) -> Any:
    return closed_after_test(consumer.ConfluentProducer({"log_level": 0, **configuration}))


def deliver(producer: Any, error: object = None, sent_at: float = 1000.0) -> None:
    producer._ConfluentProducer__metrics_delivery_callback(error, "message", sent_at)


def pending(producer: Any) -> DeliveryBuffer:
    buffer: DeliveryBuffer = vars(producer)["_ConfluentProducer__deliveries"]
    return buffer


# As arroyo sends it


def test_statuses_are_sent_before_latencies_in_the_order_of_first_touch(
    backend: ProducerBackend, clock: list[float]
) -> None:
    producer = made()
    clock[0] = 1000.25
    deliver(producer, error="down")
    deliver(producer)
    clock[0] = 1000.5
    deliver(producer, error="down")
    producer.flush(0)
    assert backend.calls == [
        ("increment", STATUS, 2, {"status": "error"}),
        ("increment", STATUS, 1, {"status": "success"}),
        ("timing", LATENCY, 0.25, {"producer_name": "N/A"}),
        ("timing", LATENCY, 0.25, {"producer_name": "N/A"}),
        ("timing", LATENCY, 0.5, {"producer_name": "N/A"}),
    ]
    assert [type(call.value) for call in backend.calls] == [int, int, float, float, float]


@pytest.mark.usefixtures("clock")
def test_a_client_id_is_in_the_tags(backend: ProducerBackend) -> None:
    producer = made(**{"client.id": "billing"})
    deliver(producer)
    producer.flush(0)
    assert backend.calls == [
        ("increment", STATUS, 1, {"status": "success", "producer_name": "billing"}),
        ("timing", LATENCY, 0.0, {"producer_name": "billing"}),
    ]


@pytest.mark.usefixtures("clock")
def test_the_name_and_the_backend_are_the_ones_the_producer_has_when_it_flushes(
    backend: ProducerBackend,
) -> None:
    producer = made()
    deliver(producer)
    producer.producer_name = ""
    producer.flush(0)
    deliver(producer)
    producer.producer_name = "later"
    producer._ConfluentProducer__metrics = other = ProducerBackend()
    producer.flush(0)
    assert [call.tags for call in backend.calls] == [
        {"status": "success"},
        {"producer_name": "N/A"},
    ]
    assert other.calls[0].tags == {"status": "success", "producer_name": "later"}


@pytest.mark.usefixtures("clock")
def test_each_call_has_tags_of_its_own(backend: ProducerBackend) -> None:
    producer = made()
    for _ in range(3):
        deliver(producer)
    producer.flush(0)
    tags = [call.tags for call in backend.calls]
    assert len({id(tag) for tag in tags}) == len(tags)


def test_a_delivery_flushes_once_more_than_the_interval_has_passed(
    backend: ProducerBackend, clock: list[float]
) -> None:
    producer = made()
    clock[0] = 1001.0
    deliver(producer)
    assert backend.calls == []
    clock[0] = 1001.5  # counted from when the producer was made
    deliver(producer)
    assert backend.counts() == {"success": 2}
    clock[0] = 1002.5
    deliver(producer)
    assert backend.counts() == {"success": 2}
    clock[0] = 1002.75
    deliver(producer)
    assert backend.counts() == {"success": 4}
    assert backend.latencies() == [1.0, 1.5, 2.5, 2.75]


def test_the_interval_is_arroyos_own(
    backend: ProducerBackend, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "METRICS_FREQUENCY_SEC", 10.0)
    producer = made()
    clock[0] = 1010.0
    deliver(producer)
    assert backend.calls == []
    clock[0] = 1010.5
    deliver(producer)
    assert backend.counts() == {"success": 2}


@pytest.mark.parametrize("interval", [0, -1])
def test_an_interval_of_zero_or_less_has_every_delivery_reported(
    backend: ProducerBackend, monkeypatch: pytest.MonkeyPatch, interval: float
) -> None:
    monkeypatch.setattr(consumer, "METRICS_FREQUENCY_SEC", interval)
    producer = made()
    for count in range(1, 4):
        deliver(producer)
        assert backend.counts() == {"success": count}


def test_nothing_pending_sends_nothing(backend: ProducerBackend) -> None:
    made().flush(0)
    assert backend.calls == []


def test_a_backend_needs_only_the_methods_that_are_called(backend: ProducerBackend) -> None:
    class Counts:
        increment = backend.increment

    producer = made()
    producer._ConfluentProducer__metrics = Counts()
    producer._ConfluentProducer__metrics_delivery_callback(None, "message")  # as arroyo 2.40.1 does
    producer.flush(0)
    assert backend.calls == [("increment", STATUS, 1, {"status": "success"})]


def test_flush_takes_arroyos_arguments_and_returns_what_librdkafka_says(
    backend: ProducerBackend,
) -> None:
    producer = made(**{"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 60_000})
    producer.produce("topic", b"value")
    assert producer.flush(0) == 1
    assert producer.flush(timeout=0.01) == 1
    producer.purge()
    assert producer.flush() == 0
    assert backend.counts() == {"error": 1}


# Errors


def test_what_the_backend_did_not_accept_is_pending_again(
    backend: ProducerBackend, clock: list[float]
) -> None:
    producer = made()
    for sent_at in (999.0, 998.0):
        deliver(producer, sent_at=sent_at)
    deliver(producer, error="down", sent_at=997.0)
    backend.accepts = 3
    with pytest.raises(Outage):
        producer.flush(0)
    assert pending(producer).snapshot() == ({}, [2.0, 3.0])
    backend.accepts = math.inf
    clock[0] += 0.5
    deliver(producer, sent_at=1000.0)
    producer.flush(0)
    assert backend.counts() == {"success": 3, "error": 1}
    assert backend.latencies() == [1.0, 2.0, 3.0, 0.5]


def test_what_is_put_back_comes_before_what_came_meanwhile(clock: list[float]) -> None:
    class Refusing(ProducerBackend):
        def _record(self, method: str, name: str, value: float, tags: dict[str, str]) -> None:
            if self.accepts <= 0:
                deliver(producer, "down", sent_at=998.0)
            super()._record(method, name, value, tags)

    producer = made()
    producer._ConfluentProducer__metrics = backend = Refusing()
    deliver(producer, sent_at=999.0)
    backend.accepts = 0
    with pytest.raises(Outage):
        producer.flush(0)
    counts, latencies = pending(producer).snapshot()
    assert list(counts.items()) == [("success", 1), ("error", 1)]
    assert latencies == [1.0, 2.0]
    assert clock == [1000.0]


# Classes: an exception that pytest keeps would keep the producer, by its traceback.
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.usefixtures("clock")
def test_an_error_that_ends_a_program_is_raised_and_puts_deliveries_back(
    backend: ProducerBackend, error: type[BaseException]
) -> None:
    arroyo_metrics_buffer.install(clock=time.time, on_backend_error="log")
    producer = made()
    deliver(producer)
    backend.accepts, backend.error = 0, error()
    with pytest.raises(error):
        producer.flush(0)
    assert pending(producer).snapshot() == ({"success": 1}, [0.0])


def test_an_error_is_raised_by_the_delivery_that_flushed_and_waits_for_the_next_interval(
    backend: ProducerBackend, clock: list[float]
) -> None:
    producer = made()
    backend.accepts = 0
    clock[0] = 1002.0
    with pytest.raises(Outage):
        deliver(producer)
    deliver(producer)
    assert pending(producer).snapshot()[0] == {"success": 2}


def test_a_backend_error_can_be_logged_instead_of_raised(
    backend: ProducerBackend, caplog: pytest.LogCaptureFixture
) -> None:
    arroyo_metrics_buffer.install(on_backend_error="log")
    producer = made()
    deliver(producer)
    backend.accepts = 1
    producer.flush(0)
    assert pending(producer).snapshot()[0] == {}
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        "an outage of the metrics backend begins: flush ended by support.backends.Outage;"
        " 1 of 2 entries sent, 1 kept for the next flush"
    )
    assert record.exc_info is not None


def test_samples_are_bounded_while_the_backend_is_down(
    backend: ProducerBackend, caplog: pytest.LogCaptureFixture
) -> None:
    buffer = DeliveryBuffer(flush_interval=math.inf)
    backend.accepts = 0
    for _ in range(3):
        buffer.add({"success": 500_000}, [0.5] * 500_000)
        with pytest.raises(Outage):
            buffer.flush(backend, None)
    buffer.record(None, 0.5)
    assert repr(buffer) == (
        "<DeliveryBuffer counts={'success': 1500001} latencies=1000000 dropped=500001>"
    )
    assert "500000 latency samples dropped, as 1000000 were waiting" in caplog.messages[-1]
    backend.accepts = math.inf
    caplog.clear()
    buffer.flush(backend, None)
    assert backend.counts() == {"success": 1_500_001}
    assert backend.latencies() == [0.5] * 1_000_000
    (message,) = caplog.messages
    assert message == (
        "flushed 1000001 entries; "
        "500001 latency samples dropped, as 1000000 were waiting; every delivery is counted"
    )
    assert repr(buffer) == "<DeliveryBuffer counts={} latencies=0 dropped=0>"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: b.record(None, "1"), TypeError, "latency must be a number, not str"),
        (
            lambda b: b.add({"lost": 1}, []),
            ValueError,
            "must be 'success' or 'error', not \"lost\"",
        ),
        (lambda b: b.add({"success": "1"}, []), TypeError, "cannot be interpreted as an integer"),
        (lambda b: b.add({"success": -1}, []), OverflowError, "convert"),
        (lambda b: b.add({"success": 2**64}, []), OverflowError, "convert"),
        (lambda b: b.add({"success": 1}, ["1"]), TypeError, "must be real number, not str"),
        (lambda b: b.add({"success": 1}, range(2**50)), TypeError, "not an instance of 'list'"),
        (lambda _: DeliveryBuffer(flush_interval=math.nan), ValueError, "not NaN"),
        (lambda _: DeliveryBuffer(flush_interval="1"), TypeError, "must be a number, not str"),  # type: ignore[arg-type]
        (lambda _: DeliveryBuffer(flush_interval=1, clock=1), TypeError, "must be callable"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_refused_and_changes_nothing(
    call: Callable[[Any], object], error: type[Exception], message: str
) -> None:
    buffer = DeliveryBuffer(flush_interval=math.inf)
    buffer.record(None, 0.5)
    with pytest.raises(error, match=message):
        call(buffer)
    assert buffer.snapshot() == ({"success": 1}, [0.5])


def test_counts_may_leave_64_bits_without_loss(backend: ProducerBackend) -> None:
    buffer = DeliveryBuffer(flush_interval=math.inf)
    for count in (2**64 - 1, 2):
        buffer.add({"success": count}, [])
    assert buffer.snapshot() == ({"success": 2**64 + 1}, [])
    buffer.flush(backend, None)
    assert backend.counts() == {"success": 2**64 + 1}


def test_a_delivery_without_a_time_is_refused_and_not_counted(backend: ProducerBackend) -> None:
    producer = made()
    with pytest.raises(TypeError):
        deliver(producer, sent_at="now")  # type: ignore[arg-type]
    producer.flush(0)
    assert backend.calls == []


# Threads, forks, reentrancy


@pytest.mark.usefixtures("tiny_switch_interval")
def test_threads_that_deliver_and_flush_lose_nothing_and_count_nothing_twice(
    backend: ProducerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "METRICS_FREQUENCY_SEC", 0.0)  # so that deliveries flush too
    deliveries = 20_000
    producer = made()
    monkeypatch.setattr(time, "time", lambda: 0.0)

    def work(error: object) -> None:
        for i in range(deliveries):
            deliver(producer, error, -i * UNIT)

    def flush() -> None:
        for _ in range(2_000):
            producer.flush(0)

    run_together(lambda: work(None), lambda: work("down"), flush, flush)
    producer.flush(0)
    assert backend.counts() == {"success": deliveries, "error": deliveries}
    assert sorted(backend.latencies()) == sorted([i * UNIT for i in range(deliveries)] * 2)


@pytest.mark.usefixtures("tiny_switch_interval")
def test_outages_among_threads_lose_nothing_and_count_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Flaky(ProducerBackend):
        def _record(self, method: str, name: str, value: float, tags: dict[str, str]) -> None:
            if next(self.turns) % 7 == 0:
                raise Outage
            super()._record(method, name, value, tags)

        turns = iter(range(10**9))

    monkeypatch.setattr(consumer, "METRICS_FREQUENCY_SEC", math.inf)
    producer = made()
    producer._ConfluentProducer__metrics = backend = Flaky()
    monkeypatch.setattr(time, "time", lambda: 0.0)

    def work() -> None:
        for i in range(10_000):
            deliver(producer, None, -i * UNIT)

    def flush() -> None:
        for _ in range(500):
            deliver(producer, "down", 0.0)
            with suppress(Outage):
                producer.flush(0)

    run_together(work, work, flush, flush)
    while any(pending(producer).snapshot()):
        with suppress(Outage):
            producer.flush(0)
    assert backend.counts() == {"success": 20_000, "error": 1_000}
    expected = [i * UNIT for i in range(10_000)] * 2 + [0.0] * 1_000
    assert sorted(backend.latencies()) == sorted(expected)


@pytest.mark.parametrize("depth", [3])
def test_the_backend_may_deliver_and_flush(backend: ProducerBackend, depth: int) -> None:
    class Reentrant(ProducerBackend):
        def _record(self, method: str, name: str, value: float, tags: dict[str, str]) -> None:
            super()._record(method, name, value, tags)
            if len(self.calls) < depth:
                deliver(producer)
                producer.flush(0)

    assert backend.calls == []
    producer = made()
    producer._ConfluentProducer__metrics = inner = Reentrant()
    deliver(producer)
    producer.flush(0)
    assert inner.counts() == {"success": depth}
    assert len(inner.latencies()) == depth


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork()")
@pytest.mark.parametrize("at", [0, 1, 2])
def test_where_the_backend_forks_the_rest_is_the_parents(at: int) -> None:
    class Forking(ProducerBackend):
        pid = -1

        def _record(self, method: str, name: str, value: float, tags: dict[str, str]) -> None:
            super()._record(method, name, value, tags)
            if len(self.calls) == at + 1:
                self.pid = os.fork()

    buffer, backend = DeliveryBuffer(flush_interval=math.inf), Forking()
    for _ in range(2):
        buffer.record(None, 0.5)
    buffer.flush(backend, None)
    if backend.pid == 0:
        os._exit(0 if len(backend.calls) == at + 1 and buffer.snapshot() == ({}, []) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(backend.pid, 0)[1]) == 0
    assert len(backend.calls) == 3


def test_a_slow_backend_holds_nobody_up(backend: ProducerBackend) -> None:
    entered, released = threading.Event(), threading.Event()

    class Slow(ProducerBackend):
        def _record(self, method: str, name: str, value: float, tags: dict[str, str]) -> None:
            entered.set()
            assert released.wait(30)
            super()._record(method, name, value, tags)

    producer = made()
    producer._ConfluentProducer__metrics = slow = Slow()
    deliver(producer)
    flushing = threading.Thread(target=producer.flush, args=(0,))
    flushing.start()
    assert entered.wait(30)
    for _ in range(1_000):
        deliver(producer)
    producer._ConfluentProducer__metrics = backend
    producer.flush(0)
    assert backend.counts() == {"success": 1_000}
    released.set()
    flushing.join(30)
    assert slow.counts() == {"success": 1}


# Memory


def test_a_producer_is_freed_with_its_last_reference() -> None:
    gc.disable()
    try:
        producer = made()
        deliver(producer)
        gone = weakref.ref(producer)
        del producer
        assert gone() is None
    finally:
        gc.enable()


def test_a_buffer_in_a_cycle_with_its_clock_is_collected() -> None:
    class Clock:
        buffer: DeliveryBuffer

        def __call__(self) -> float:
            return 0.0

    clock = Clock()
    clock.buffer = DeliveryBuffer(flush_interval=1, clock=clock)
    gone = weakref.ref(clock)
    del clock
    gc.collect()
    assert gone() is None
