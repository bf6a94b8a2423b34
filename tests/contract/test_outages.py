"""C6: an outage of the metrics backend is told as one, and telling it ends no consumer."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer, stats
from arroyo_metrics_buffer._core import DeliveryBuffer, drain_totals
from support.backends import Blocking, Flaky, Outage, ProducerBackend
from support.children import fork_child, wait_for_child
from support.threads import DEADLINE
from support.times import ManualClock

LOGGER = logging.getLogger("arroyo_metrics_buffer")
ERROR, WARNING = logging.ERROR, logging.WARNING
BEGINS = "an outage of the metrics backend begins: flush ended by "
DOWN = "support.backends.Outage: the metrics backend is down"
KEPT = "0 of 1 entries sent, 1 kept for the next flush"
Errors = list[BaseException | None]

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
logs = pytest.mark.parametrize("on_backend_error", ["log", [].append])


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def backend() -> Flaky:
    backend = Flaky()
    backend.refused = {"x"}
    return backend


@pytest.fixture
def buffer(backend: Flaky, clock: ManualClock) -> MetricsBuffer:
    """A buffer with a counter that the backend refuses."""
    buffer = MetricsBuffer(backend, flush_interval=math.inf, clock=clock)
    buffer.incr_counter("x", 1)
    return buffer


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """The records since this was last asked: level and text, of which an ERROR has a traceback."""
    records = [*caplog.records]
    caplog.clear()
    assert [bool(each.exc_info) for each in records] == [each.levelno == ERROR for each in records]
    return [(each.levelno, each.getMessage()) for each in records]


def flush_until(end: int, buffer: MetricsBuffer, clock: ManualClock) -> None:
    """Flush once a second."""
    while clock.now < end:
        clock.now += 1
        buffer.flush()


# What the log shows


@logs
def test_an_outage_is_told_when_it_begins_once_a_minute_and_when_it_ends(
    on_backend_error: Any,
    buffer: MetricsBuffer,
    backend: Flaky,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arroyo_metrics_buffer.install(on_backend_error=on_backend_error)
    buffer.flush()
    assert told(caplog) == [(ERROR, f"{BEGINS}{DOWN}; {KEPT}")]
    flush_until(59, buffer, clock)
    assert told(caplog) == []
    backend.error = ValueError("another")
    flush_until(60, buffer, clock)
    goes_on = (
        "the outage of the metrics backend goes on: 61 flushes failed in 60 s, 60 of them since"
        f" the last record; the last was ended by ValueError: another; {KEPT}"
    )
    assert told(caplog) == [(WARNING, goes_on)]
    flush_until(119, buffer, clock)
    assert told(caplog) == []
    backend.refused = set()
    buffer.incr_counter("y", 1)
    flush_until(121, buffer, clock)
    is_over = (
        "the outage of the metrics backend is over: 120 flushes failed in 120 s;"
        " this one sent 2 entries"
    )
    assert told(caplog) == [(WARNING, is_over)]
    backend.refused = {"x"}
    buffer.incr_counter("x", 1)
    buffer.flush()
    assert told(caplog) == [(ERROR, f"{BEGINS}ValueError: another; {KEPT}")]


def test_an_error_that_is_raised_is_told_by_a_record_each_and_its_end_by_none(
    buffer: MetricsBuffer, backend: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        with pytest.raises(Outage):
            buffer.flush()
    backend.refused = set()
    buffer.flush()
    assert told(caplog) == [(WARNING, f"flush ended by {DOWN}; {KEPT}")] * 2


def test_an_outage_that_began_while_errors_were_raised_is_told_once_they_are_logged(
    buffer: MetricsBuffer, backend: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    before = arroyo_metrics_buffer.stats().consumer.outages
    with pytest.raises(Outage):
        buffer.flush()
    arroyo_metrics_buffer.install(on_backend_error="log")
    caplog.clear()
    buffer.flush()
    buffer.flush()
    assert told(caplog) == [(ERROR, f"{BEGINS}{DOWN}; {KEPT}")]
    assert arroyo_metrics_buffer.stats().consumer.outages == before + 1
    backend.refused = set()
    buffer.flush()
    assert [level for level, _ in told(caplog)] == [WARNING]


def test_a_flush_with_nothing_to_send_or_sent_in_part_ends_no_outage(
    buffer: MetricsBuffer, backend: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    arroyo_metrics_buffer.install(on_backend_error="log")
    buffer.flush()
    buffer.incr_timing("accepted", 1)
    buffer.flush()
    assert [call.name for call in backend.calls] == ["accepted"]
    drain_totals(buffer, counters=True)
    buffer.flush()
    assert [level for level, _ in told(caplog)] == [ERROR]
    buffer.incr_counter("y", 1)
    buffer.flush()
    assert [level for level, _ in told(caplog)] == [WARNING]


@logs
def test_what_ends_a_program_neither_begins_an_outage_nor_ends_one(
    on_backend_error: Any,
    buffer: MetricsBuffer,
    backend: Flaky,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arroyo_metrics_buffer.install(on_backend_error=on_backend_error)
    before = stats().consumer.outages
    interrupted = (WARNING, f"flush ended by KeyboardInterrupt; {KEPT}")
    for errors in ([KeyboardInterrupt()], [Outage(), KeyboardInterrupt(), Outage()]):
        for backend.error in errors:
            with contextlib.suppress(KeyboardInterrupt):
                buffer.flush()
    begins = (ERROR, f"{BEGINS}support.backends.Outage; {KEPT}")
    assert told(caplog) == [interrupted, begins, interrupted]
    assert stats().consumer.outages == before + 1


def test_each_buffer_has_outages_of_its_own_and_stats_count_them(
    backend: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    arroyo_metrics_buffer.install(on_backend_error="log")
    before = stats()
    buffers = [MetricsBuffer(backend, flush_interval=math.inf) for _ in range(2)]
    for _ in range(2):
        for buffer in buffers:
            buffer.incr_counter("x", 1)
            buffer.flush()
    deliveries, refusing = DeliveryBuffer(flush_interval=math.inf), ProducerBackend()
    deliveries.record(None)
    refusing.accepts = 0
    deliveries.flush(refusing, None)
    assert [level for level, _ in told(caplog)] == [ERROR] * 3
    assert stats().consumer.outages == before.consumer.outages + 2
    assert stats().producer.outages == before.producer.outages + 1


def test_samples_that_are_dropped_in_an_outage_are_told_in_its_records(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    arroyo_metrics_buffer.install(on_backend_error="log")
    buffer = DeliveryBuffer(flush_interval=math.inf, clock=clock)
    backend = ProducerBackend()
    backend.accepts = 0
    buffer.add({"success": 1_000_001}, [0.5] * 1_000_001)

    def texts(flushes: int) -> list[str]:
        for _ in range(flushes):
            buffer.record(None, 0.5)
            buffer.flush(backend, None)
        return [text.partition("; ")[2] for _, text in told(caplog)]

    dropped = "latency samples dropped, as 1000000 were waiting; every delivery is counted"
    kept = "0 of 1000001 entries sent, 1000001 kept for the next flush"
    assert texts(10) == [f"{kept}; 2 {dropped}"]
    clock.now = 60.0
    assert texts(1) == [f"the last was ended by support.backends.Outage; {kept}; 12 {dropped}"]
    backend.accepts = math.inf
    assert texts(1) == [f"this one sent 1000001 entries; 13 {dropped}"]
    assert texts(1) == []


def test_samples_that_are_dropped_while_a_backend_is_slow_are_told_without_an_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    arroyo_metrics_buffer.install(on_backend_error="log")
    buffer = DeliveryBuffer(flush_interval=math.inf)
    buffer.add({"success": 1_000_002}, [0.5] * 1_000_002)
    buffer.flush(ProducerBackend(), None)
    (record,) = told(caplog)
    dropped = "2 latency samples dropped, as 1000000 were waiting; every delivery is counted"
    assert record == (WARNING, f"flushed 1000001 entries; {dropped}")


# A callable


def test_the_callable_gets_the_error_of_each_flush_that_failed(
    buffer: MetricsBuffer, backend: Flaky
) -> None:
    given: list[Exception] = []
    arroyo_metrics_buffer.install(on_backend_error=given.append)
    errors = [Outage("one"), Outage("two"), ValueError("three")]
    for backend.error in errors:
        buffer.flush()
    assert given == errors
    assert [error.__traceback__ is not None for error in given] == [True] * 3
    backend.refused = set()
    buffer.flush()
    assert given == errors
    assert buffer.snapshot() == ({}, {})


@pytest.mark.parametrize("exit_", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_what_ends_a_program_is_raised_and_not_given_to_the_callable(
    exit_: BaseException, buffer: MetricsBuffer, backend: Flaky
) -> None:
    given: list[Exception] = []
    arroyo_metrics_buffer.install(on_backend_error=given.append)
    backend.error = exit_
    with pytest.raises(type(exit_)) as raised:
        buffer.flush()
    assert raised.value is exit_
    assert given == []
    assert buffer.snapshot() == ({}, {"x": 1})


def test_the_callable_may_call_any_method_of_the_buffer(
    buffer: MetricsBuffer, backend: Flaky
) -> None:
    def call_in(_error: Exception) -> None:
        buffer.incr_counter("again", 1)
        buffer.incr_timing("again", 1)
        backend.refused = set()
        buffer.flush()
        buffer.snapshot()
        repr(buffer)
        buffer.metrics = buffer.metrics

    arroyo_metrics_buffer.install(on_backend_error=call_in)
    buffer.flush()
    assert backend.sums() == {"x": 1, "again": 2}
    assert buffer.snapshot() == ({}, {})


@pytest.mark.usefixtures("unraisable")
def test_a_callable_that_flushes_into_the_outage_again_and_again_loses_nothing(
    buffer: MetricsBuffer, backend: Flaky
) -> None:
    limit, before = sys.getrecursionlimit(), stats().consumer.backend_errors
    arroyo_metrics_buffer.install(on_backend_error=lambda _error: buffer.flush())
    sys.setrecursionlimit(150)
    try:
        buffer.flush()
    finally:
        sys.setrecursionlimit(limit)
    assert stats().consumer.backend_errors > before + 1
    assert buffer.snapshot() == ({}, {"x": 1})
    backend.refused = set()
    buffer.flush()
    assert backend.calls == [("increment", "x", 1)]


def test_other_threads_go_on_while_the_callable_runs(buffer: MetricsBuffer, backend: Flaky) -> None:
    def wait_for_another_thread(_error: Exception) -> None:
        thread = threading.Thread(target=go_on)
        thread.start()
        thread.join(DEADLINE)
        assert not thread.is_alive()

    def go_on() -> None:
        buffer.incr_counter("y", 1)
        backend.refused = set()
        buffer.flush()
        arroyo_metrics_buffer.install()
        stats()

    arroyo_metrics_buffer.install(on_backend_error=wait_for_another_thread)
    buffer.flush()
    assert backend.sums() == {"x": 1, "y": 1}


class ForkingError(Exception):
    """An error whose text forks."""

    def __init__(self, fork: Callable[[], object]) -> None:
        super().__init__()
        self.fork = fork

    def __str__(self) -> str:
        self.fork()
        return "forked"


@needs_fork
@pytest.mark.parametrize("forks_in", ["the callable", "a logging filter", "the error's text"])
def test_a_child_of_a_fork_in_telling_returns_and_leaves_the_rest_to_its_parent(
    forks_in: str, buffer: MetricsBuffer, backend: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks, given = list[int](), list[Exception]()

    def fork_once(*_: object) -> bool:
        if not forks:
            forks.append(os.fork())
        return True

    def is_right_in_child() -> bool:
        signal.alarm(60)
        is_empty = buffer.snapshot() == ({}, {})
        has_told = len(given) == (forks_in == "the callable")
        has_counted = stats().consumer.backend_errors or stats().consumer.flushes
        buffer.incr_counter("y", 2)
        buffer.flush()
        return is_empty and has_told and not has_counted and backend.sums() == {"y": 2}

    def give(error: Exception) -> None:
        given.append(error)
        if forks_in == "the callable":
            fork_once()

    if forks_in == "a logging filter":
        monkeypatch.setattr(LOGGER, "filters", [fork_once])
    backend.error = ForkingError(fork_once) if forks_in == "the error's text" else Outage()
    arroyo_metrics_buffer.install(on_backend_error=give)
    before = stats().consumer.backend_errors
    is_right = False
    try:
        buffer.flush()
        is_right = forks[0] > 0 or is_right_in_child()
    finally:
        if forks == [0]:  # not to go on as a second test runner, whatever was raised
            os._exit(0 if is_right else 1)
    wait_for_child(forks[0])
    assert given == [backend.error]
    assert stats().consumer.backend_errors == before + 1
    assert buffer.snapshot() == ({}, {"x": 1})


@needs_fork
def test_a_forked_child_is_in_no_outage_of_its_parents(
    buffer: MetricsBuffer, backend: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    arroyo_metrics_buffer.install(on_backend_error="log")
    buffer.flush()
    caplog.clear()

    def child() -> None:
        backend.refused = set()
        buffer.incr_counter("x", 1)
        buffer.flush()
        assert told(caplog) == []
        backend.refused = {"x"}
        buffer.incr_counter("x", 1)
        buffer.flush()
        assert told(caplog) == [(ERROR, f"{BEGINS}{DOWN}; {KEPT}")]
        assert stats().consumer.outages == 1

    wait_for_child(fork_child(child))
    backend.refused = set()
    buffer.flush()
    assert [level for level, _ in told(caplog)] == [WARNING]


# What fails in telling


def test_what_the_callable_raises_is_reported_and_ends_no_consumer(
    buffer: MetricsBuffer, unraisable: Errors
) -> None:
    error = ZeroDivisionError()
    arroyo_metrics_buffer.install(on_backend_error=raiser_of(error))
    buffer.flush()
    assert unraisable == [error]
    assert buffer.snapshot() == ({}, {"x": 1})


def raiser_of(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: object, **__: object) -> object:
        raise error

    return raise_it


def test_an_exit_that_the_callable_raises_is_raised_and_loses_nothing(
    buffer: MetricsBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    arroyo_metrics_buffer.install(on_backend_error=raiser_of(SystemExit("enough")))
    with pytest.raises(SystemExit, match="enough"):
        buffer.flush()
    assert [level for level, _ in told(caplog)] == [ERROR]
    assert buffer.snapshot() == ({}, {"x": 1})


@pytest.mark.parametrize("what", ["findCaller", "makeRecord", "isEnabledFor", "handle"])
def test_the_callable_gets_the_error_also_if_no_record_can_be_made(
    what: str,
    buffer: MetricsBuffer,
    backend: Flaky,
    monkeypatch: pytest.MonkeyPatch,
    unraisable: Errors,
) -> None:
    given, error = list[Exception](), MemoryError()
    arroyo_metrics_buffer.install(on_backend_error=given.append)
    monkeypatch.setattr(LOGGER, what, raiser_of(error))
    buffer.flush()
    assert unraisable == [error]
    assert given == [backend.error]


def test_an_error_without_words_is_told_all_the_same(
    buffer: MetricsBuffer,
    backend: Flaky,
    caplog: pytest.LogCaptureFixture,
    unraisable: Errors,
) -> None:
    raised = ZeroDivisionError()

    class MuteError(Exception):
        __str__ = raiser_of(raised)

    given: list[Exception] = []
    arroyo_metrics_buffer.install(on_backend_error=given.append)
    backend.error = MuteError()
    LOGGER.propagate = False  # formatting the traceback would ask for the text too
    handler = logging.NullHandler()
    LOGGER.addHandler(handler)
    records: list[logging.LogRecord] = []
    handler.handle = records.append  # type: ignore[assignment, method-assign]
    try:
        buffer.flush()
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.propagate = True
    assert caplog.records == []
    (record,) = records
    assert record.getMessage() == f"{BEGINS}an error that can't be told in words; {KEPT}"
    assert unraisable == [raised]
    assert given == [backend.error]


@logs
def test_an_error_in_telling_that_an_outage_is_over_ends_no_consumer(
    on_backend_error: Any,
    buffer: MetricsBuffer,
    backend: Flaky,
    monkeypatch: pytest.MonkeyPatch,
    unraisable: Errors,
) -> None:
    arroyo_metrics_buffer.install(on_backend_error=on_backend_error)
    buffer.flush()
    backend.refused = set()
    error = ZeroDivisionError()
    monkeypatch.setattr(LOGGER, "filters", [raiser_of(error)])
    buffer.flush()
    assert unraisable == [error]
    assert buffer.snapshot() == ({}, {})
    monkeypatch.setattr(LOGGER, "filters", [raiser_of(KeyboardInterrupt())])
    backend.refused = {"x"}
    for error_or_end in ({"x"}, set[str]()):
        backend.refused = error_or_end
        buffer.incr_counter("x", 1)
        with pytest.raises(KeyboardInterrupt):
            buffer.flush()
    assert backend.sums() == {"x": 3}


# The setting


def test_the_callable_lives_as_long_as_it_is_the_setting() -> None:
    class Reporter:
        def __call__(self, error: Exception) -> None: ...

    reporter = Reporter()
    assert arroyo_metrics_buffer.install(on_backend_error=reporter).on_backend_error is reporter
    alive = weakref.ref(reporter)
    del reporter
    gc.collect()
    assert alive() is not None
    arroyo_metrics_buffer.install()
    gc.collect()
    assert alive() is None


def test_a_callable_may_die_while_the_setting_changes_and_change_it_again() -> None:
    class Reporter:
        def __call__(self, error: Exception) -> None: ...

        def __del__(self) -> None:
            arroyo_metrics_buffer.install(on_backend_error="log")

    arroyo_metrics_buffer.install(on_backend_error=Reporter())
    arroyo_metrics_buffer.install()
    gc.collect()
    assert arroyo_metrics_buffer.status().on_backend_error == "log"


def test_the_setting_that_is_in_force_when_the_backend_fails_holds() -> None:
    given: list[Exception] = []
    backend = Blocking()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    thread = threading.Thread(target=buffer.flush)
    thread.start()
    assert backend.entered.wait(DEADLINE)
    arroyo_metrics_buffer.install(on_backend_error=given.append)
    backend.calls = None  # type: ignore[assignment]
    backend.released.set()
    thread.join(DEADLINE)
    assert [type(error) for error in given] == [AttributeError]
