"""C4: a call flushes once more than the interval has passed since the last flush began."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from unittest import mock

import pytest
from arroyo.processing import processor

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer
from support.backends import Recorder
from support.threads import DEADLINE, run_together
from support.times import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def backend() -> Recorder:
    return Recorder()


@pytest.fixture
def buffer(backend: Recorder, clock: ManualClock) -> MetricsBuffer:
    return MetricsBuffer(backend, flush_interval=1.0, clock=clock)


def test_nothing_is_sent_before_more_than_the_interval_has_passed(
    buffer: MetricsBuffer, backend: Recorder, clock: ManualClock
) -> None:
    clock.now = 1.0
    buffer.incr_counter("x", 1)
    assert backend.calls == []
    clock.now = 1.0000001
    buffer.incr_counter("x", 1)
    assert backend.calls == [("increment", "x", 2)]


@pytest.mark.parametrize("method", ["incr_counter", "incr_timing"])
def test_the_call_that_finds_the_interval_passed_is_part_of_the_flush(
    buffer: MetricsBuffer, backend: Recorder, clock: ManualClock, method: str
) -> None:
    clock.now = 2.0
    getattr(buffer, method)("x", 1)
    assert len(backend.calls) == 1
    getattr(buffer, method)("x", 1)
    assert len(backend.calls) == 1


def test_an_explicit_flush_starts_the_interval_anew(
    buffer: MetricsBuffer, backend: Recorder, clock: ManualClock
) -> None:
    clock.now = 0.9
    buffer.flush()
    clock.now = 1.8
    buffer.incr_counter("x", 1)
    assert backend.calls == []
    clock.now = 2.0
    buffer.incr_counter("x", 1)
    assert len(backend.calls) == 1


def test_the_interval_counts_from_the_beginning_of_a_flush(clock: ManualClock) -> None:
    class Backend(Recorder):
        def increment(self, name: str, value: int) -> None:
            clock.now += 5
            super().increment(name, value)

    backend = Backend()
    buffer = MetricsBuffer(backend, flush_interval=1.0, clock=clock)
    buffer.incr_counter("x", 1)
    buffer.flush()
    buffer.incr_counter("x", 1)
    assert len(backend.calls) == 2


def test_a_failed_flush_is_not_tried_again_by_the_next_call(clock: ManualClock) -> None:
    class Backend:
        calls = 0

        def increment(self, _name: str, _value: int) -> None:
            self.calls += 1
            raise ConnectionError

    backend = Backend()
    buffer = MetricsBuffer(backend, flush_interval=1.0, clock=clock)
    clock.now = 2.0
    with pytest.raises(ConnectionError):
        buffer.incr_counter("x", 1)
    for _ in range(100):
        buffer.incr_counter("x", 1)
    assert backend.calls == 1


@pytest.mark.usefixtures("tiny_switch_interval")
def test_of_many_threads_that_find_the_interval_passed_one_flushes(clock: ManualClock) -> None:
    class CountsFlushes(MetricsBuffer):
        def __init__(self) -> None:
            super().__init__(Recorder(), flush_interval=1.0, clock=clock)
            self.flushes: list[int] = []

        def flush(self) -> None:
            self.flushes.append(threading.get_ident())
            super().flush()

    for _ in range(200):
        buffer = CountsFlushes()
        clock.now += 2.0
        run_together(*[lambda buffer=buffer: buffer.incr_counter("x", 1)] * 4)
        assert len(buffer.flushes) == 1


def test_an_infinite_interval_leaves_flushing_to_the_caller(
    backend: Recorder, clock: ManualClock
) -> None:
    buffer = MetricsBuffer(backend, flush_interval=float("inf"), clock=clock)
    clock.now = 1e300
    buffer.incr_counter("x", 1)
    assert backend.calls == []


@pytest.mark.parametrize("interval", [0, -1, -math.inf])
@pytest.mark.parametrize("clock", [None, lambda: 7.0], ids=["native", "standing still"])
def test_with_an_interval_of_zero_or_less_every_call_flushes(
    backend: Recorder, clock: Callable[[], float] | None, interval: float
) -> None:
    buffer = MetricsBuffer(backend, flush_interval=interval, clock=clock)
    for count in range(1, 101):
        buffer.incr_counter("x", 1)
        assert len(backend.calls) == count


@pytest.mark.parametrize("interval", [0, -1])
def test_arroyos_constant_can_have_every_call_flush(backend: Recorder, interval: float) -> None:
    with mock.patch.object(processor, "METRICS_FREQUENCY_SEC", interval):
        buffer = MetricsBuffer(backend)
    buffer.incr_timing("x", 1)
    assert len(backend.calls) == 1


def test_with_an_interval_of_zero_threads_leave_nothing_behind(backend: Recorder) -> None:
    """A thread that does not flush, since another one does, is part of that one's flush."""
    buffer = MetricsBuffer(backend, flush_interval=0)

    def add() -> None:
        for _ in range(1000):
            buffer.incr_counter("x", 1)

    run_together(*[add] * 4)
    assert sum(value for _, _, value in backend.calls) == 4000


@pytest.mark.parametrize(
    ("time", "word"), [(math.nan, "NaN"), (math.inf, "infinity"), (-math.inf, "infinity")]
)
def test_a_clock_that_returns_no_time_is_refused_and_nothing_is_lost(
    backend: Recorder, time: float, word: str
) -> None:
    now = 0.0
    buffer = MetricsBuffer(backend, flush_interval=1, clock=lambda: now)
    now = time
    with pytest.raises(ValueError, match=f"clock must be a number of seconds, not {word}"):
        buffer.incr_counter("x", 1)
    now = 2.0
    buffer.incr_counter("x", 1)
    assert backend.calls == [("increment", "x", 2)]


def test_with_a_wall_clock_that_is_set_back_no_flush_is_due_until_it_has_caught_up(
    monkeypatch: pytest.MonkeyPatch, backend: Recorder
) -> None:
    now = ManualClock()
    monkeypatch.setattr(time, "time", now)
    arroyo_metrics_buffer.install(clock=time.time)
    now.now = 5000.0
    buffer = MetricsBuffer(backend, flush_interval=1.0)
    for now.now in (1400.0, 4999.0, 5001.0):
        buffer.incr_counter("x", 1)
    assert backend.calls == []
    now.now = 5001.5
    buffer.incr_counter("x", 1)
    assert backend.calls == [("increment", "x", 4)]


def test_a_flush_sets_a_clock_right_that_was_set_back(
    buffer: MetricsBuffer, backend: Recorder, clock: ManualClock
) -> None:
    clock.now = 5000.0
    buffer.flush()
    clock.now = 1400.0
    buffer.incr_counter("x", 1)
    buffer.flush()
    assert backend.calls == [("increment", "x", 1)]
    clock.now = 1401.5
    buffer.incr_counter("x", 1)
    assert backend.calls == [("increment", "x", 1)] * 2


def test_the_native_clock_lets_calls_flush() -> None:
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=0.02)
    end = time.monotonic() + DEADLINE
    while not backend.calls and time.monotonic() < end:
        buffer.incr_counter("x", 1)
    assert backend.calls
