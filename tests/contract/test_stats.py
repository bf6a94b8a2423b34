"""What stats() tells of the buffers of a process."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest
from arroyo.backends.kafka.consumer import ConfluentProducer

import arroyo_metrics_buffer
from arroyo_metrics_buffer import BufferStats, MetricsBuffer, stats
from arroyo_metrics_buffer._core import DeliveryBuffer
from support.backends import Flaky, Outage, ProducerBackend, Recorder
from support.new_interpreter import in_new_interpreter
from support.producers import closed_after_test
from support.threads import run_together

NOTHING_DONE = BufferStats(0, 0, 0, 0, 0, 0, None, None)


def counts(of: BufferStats, **more: int) -> dict[str, int]:
    """The counts, and so many more."""
    all_fields = asdict(of)
    del all_fields["last_backend_error"], all_fields["seconds_since_last_backend_error"]
    return {name: count + more.pop(name, 0) for name, count in all_fields.items()}


@in_new_interpreter
def test_a_new_process_has_done_nothing() -> None:
    assert stats() == arroyo_metrics_buffer.Stats(*[NOTHING_DONE] * 3)


@in_new_interpreter
def test_every_entry_that_is_sent_is_counted_and_a_flush_of_nothing_is_none() -> None:
    buffers = [MetricsBuffer(Recorder(), flush_interval=math.inf) for _ in range(2)]
    for buffer in buffers:
        buffer.flush()
        buffer.incr_counter("a", 5)
        buffer.incr_counter("b", 1)
        buffer.incr_timing("c", 0.5)
        buffer.flush()
        buffer.incr_counter("a", 1)  # pending, so not counted yet
    assert stats().consumer == replace(NOTHING_DONE, flushes=2, entries_sent=6)
    assert stats().producer == NOTHING_DONE


@in_new_interpreter
def test_entries_of_deliveries_are_counted_as_the_producers() -> None:
    buffer = DeliveryBuffer(flush_interval=math.inf)
    buffer.record(None, 0.5)
    buffer.record(None, 0.5)
    buffer.flush(ProducerBackend(), None)
    assert stats().producer == replace(NOTHING_DONE, flushes=1, entries_sent=3)
    assert stats().consumer == NOTHING_DONE


@pytest.mark.parametrize("on_backend_error", ["raise", "log"])
def test_a_backend_error_is_counted_and_told_and_what_it_put_back(on_backend_error: Any) -> None:
    arroyo_metrics_buffer.install(on_backend_error=on_backend_error)
    backend = Flaky()
    backend.refused = {"b"}
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    for name in "abc":
        buffer.incr_counter(name, 1)
    before = stats().consumer
    for _ in range(2):
        with contextlib.suppress(Outage):
            buffer.flush()
    after = stats().consumer
    assert counts(after) == counts(
        before, flushes=2, entries_sent=1, entries_put_back=4, backend_errors=2, outages=1
    )
    assert after.last_backend_error == "support.backends.Outage: the metrics backend is down"
    assert after.seconds_since_last_backend_error is not None
    assert 0 <= after.seconds_since_last_backend_error < 600
    backend.refused = set()
    buffer.flush()
    recovered = stats().consumer
    assert (recovered.flushes, recovered.entries_sent) == (
        after.flushes + 1,
        after.entries_sent + 2,
    )
    assert recovered.last_backend_error == after.last_backend_error
    age = recovered.seconds_since_last_backend_error
    assert age is not None
    assert age >= after.seconds_since_last_backend_error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError(111, "Connection refused"),
            "ConnectionRefusedError: [Errno 111] Connection refused",
        ),
        (ValueError(), "ValueError"),
        (
            Outage("x" * 5000),
            "support.backends.Outage: " + "x" * (1000 - len("support.backends.Outage: ")),
        ),
        (ValueError("\ud800"), "ValueError: \\ud800"),
    ],
)
def test_the_text_of_the_last_backend_error_is_what_a_traceback_ends_with(
    error: Exception, text: str
) -> None:
    buffer = MetricsBuffer(Raising(error), flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    with pytest.raises(type(error)):
        buffer.flush()
    assert stats().consumer.last_backend_error == text


class Raising:
    """A backend that raises the same error again and again."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def increment(self, name: str, value: int) -> None:
        raise self.error


class MuteError(Exception):
    """An error whose text raises."""

    def __init__(self, raised: BaseException) -> None:
        super().__init__()
        self.raised = raised

    def __str__(self) -> str:
        raise self.raised


def test_an_error_that_has_no_text_is_still_the_one_that_is_raised(
    unraisable: list[BaseException | None],
) -> None:
    mute = ZeroDivisionError()
    buffer = MetricsBuffer(Raising(MuteError(mute)), flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    with pytest.raises(MuteError):
        buffer.flush()
    assert unraisable == [mute]
    assert buffer.snapshot() == ({}, {"x": 1})
    assert stats().consumer.last_backend_error == "an error that can't be told in words"


def test_an_interrupt_while_the_text_is_made_is_raised_and_nothing_is_lost() -> None:
    buffer = MetricsBuffer(Raising(MuteError(KeyboardInterrupt())), flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    before = stats().consumer
    with pytest.raises(KeyboardInterrupt):
        buffer.flush()
    assert buffer.snapshot() == ({}, {"x": 1})
    after = stats().consumer
    assert counts(after) == counts(
        before, flushes=1, entries_put_back=1, backend_errors=1, outages=1
    )
    assert after.last_backend_error == "an error that can't be told in words"


@pytest.mark.parametrize("exit_", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_is_no_error_of_the_backend(exit_: type[BaseException]) -> None:
    buffer = MetricsBuffer(Raising(exit_()), flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    before = stats().consumer
    with pytest.raises(exit_):
        buffer.flush()
    after = stats().consumer
    assert after.backend_errors == before.backend_errors
    assert after.last_backend_error == before.last_backend_error
    assert after.entries_put_back == before.entries_put_back + 1


def test_samples_that_are_dropped_are_counted_once() -> None:
    buffer = DeliveryBuffer(flush_interval=math.inf)
    backend = ProducerBackend()
    backend.accepts = 0
    before = stats().producer.samples_dropped
    for _ in range(3):
        buffer.add({"success": 750_000}, [0.5] * 750_000)
        with pytest.raises(Outage):
            buffer.flush(backend, None)
    assert stats().producer.samples_dropped - before == 1_250_000
    backend.accepts = math.inf
    buffer.flush(backend, None)
    buffer.record(None, 0.5)
    buffer.flush(backend, None)
    assert stats().producer.samples_dropped - before == 1_250_000


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_child_counts_from_zero_and_its_parent_goes_on() -> None:
    buffer = MetricsBuffer(Raising(Outage("before the fork")), flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    with pytest.raises(Outage):
        buffer.flush()
    before = stats()
    reader, writer = os.pipe()
    if not (child := os.fork()):
        with contextlib.suppress(BaseException):
            assert stats() == arroyo_metrics_buffer.Stats(*[NOTHING_DONE] * 3)
            buffer.metrics = Recorder()
            buffer.incr_counter("x", 1)
            buffer.flush()
            assert stats().consumer == replace(NOTHING_DONE, flushes=1, entries_sent=1)
            os.write(writer, b"right")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        assert answer.read() == b"right"
    os.waitpid(child, 0)
    assert counts(stats().consumer) == counts(before.consumer)


def test_a_fork_in_the_backend_counts_the_entries_of_each_process_where_they_were_sent() -> None:
    class Forking:
        child: int | None = None

        def increment(self, name: str, value: int) -> None:
            if self.child is None:
                self.child = os.fork()

    backend = Forking()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    buffer.incr_counter("y", 1)
    before = stats().consumer
    is_right = False
    try:
        buffer.flush()
        is_right = stats().consumer == NOTHING_DONE
    finally:
        if backend.child == 0:  # not to go on as a second test runner, whatever was raised
            os._exit(0 if is_right else 1)
    assert backend.child is not None
    assert os.waitpid(backend.child, 0)[1] == 0
    assert counts(stats().consumer) == counts(before, flushes=1, entries_sent=2)


def test_a_fork_while_the_text_is_made_leaves_the_error_to_the_parent() -> None:
    class ForkingError(Exception):
        child: int | None = None

        def __str__(self) -> str:
            self.child = os.fork()
            return "forked"

    error = ForkingError()
    buffer = MetricsBuffer(Raising(error), flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    before = stats().consumer
    is_right = False
    try:
        with contextlib.suppress(ForkingError):
            buffer.flush()
        is_right = stats().consumer == NOTHING_DONE and buffer.snapshot() == ({}, {})
    finally:
        if error.child == 0:
            os._exit(0 if is_right else 1)
    assert error.child is not None
    assert os.waitpid(error.child, 0)[1] == 0
    assert counts(stats().consumer) == counts(
        before, flushes=1, entries_put_back=1, backend_errors=1, outages=1
    )


def test_what_uninstall_hands_back_is_not_counted_as_sent() -> None:
    producer = closed_after_test(ConfluentProducer({"log_level": 0}))
    vars(ConfluentProducer)["_ConfluentProducer__metrics_delivery_callback"](
        producer, None, "message", 0.0
    )
    before = stats().producer
    arroyo_metrics_buffer.uninstall()
    assert counts(stats().producer) == counts(before)
    assert vars(producer)["_ConfluentProducer__produce_counters"] == {"success": 1}
    assert len(vars(producer)["_ConfluentProducer__callback_latency"]) == 1


def test_samples_that_uninstall_finds_dropped_are_counted() -> None:
    producer = closed_after_test(ConfluentProducer({"log_level": 0}))
    deliver = vars(ConfluentProducer)["_ConfluentProducer__metrics_delivery_callback"]
    deliver(producer, None, "message", 0.0)
    (buffer,) = (value for value in vars(producer).values() if isinstance(value, DeliveryBuffer))
    buffer.add({"success": 1_000_000}, [0.5] * 1_000_000)
    before = stats().producer
    arroyo_metrics_buffer.uninstall()
    assert counts(stats().producer) == counts(before, samples_dropped=1)
    assert vars(producer)["_ConfluentProducer__produce_counters"] == {"success": 1_000_001}
    assert len(vars(producer)["_ConfluentProducer__callback_latency"]) == 1_000_000


@pytest.mark.usefixtures("tiny_switch_interval")
def test_threads_that_flush_at_once_are_all_counted() -> None:
    before = stats().consumer
    backend = Recorder()

    def write_and_flush() -> None:
        buffer = MetricsBuffer(backend, flush_interval=math.inf)
        for _ in range(1000):
            buffer.incr_counter("x", 1)
            buffer.flush()

    run_together(*[write_and_flush] * 4)
    assert counts(stats().consumer) == counts(before, flushes=4000, entries_sent=4000)


def test_stats_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        stats().consumer = NOTHING_DONE  # type: ignore[misc]
