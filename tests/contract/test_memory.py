"""C10: memory is bounded by the number of names, and whatever can't be reached is freed."""

from __future__ import annotations

import gc
import itertools
import logging
import math
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from arroyo_metrics_buffer import MetricsBuffer
from arroyo_metrics_buffer._core import DeliveryBuffer
from support.backends import Flaky, Outage, Recorder
from support.memory import resident_bytes
from support.new_interpreter import in_new_interpreter
from support.threads import run_together

LEAK_BYTES = 2_000_000  # bytes; what is repeated here leaks several times that if it leaks at all


class Discard:
    """Accepts everything, keeps nothing, and returns something that can be counted."""

    def __init__(self) -> None:
        self.result = object()

    def timing(self, name: str, value: float, tags: object = None) -> object:
        return self.result

    increment = timing


class RefusesAll:
    """Accepts nothing."""

    def timing(self, name: str, value: float) -> None:
        raise Outage

    def increment(self, name: str, value: int) -> None:
        raise Outage


def made(backend: object) -> MetricsBuffer:
    return MetricsBuffer(backend, flush_interval=math.inf)


def assert_flat(work: Callable[[], object]) -> None:
    """Repeat work that is to leave nothing behind."""
    work()  # what is allocated once
    gc.collect()
    before = resident_bytes()
    work()
    gc.collect()
    assert resident_bytes() - before < LEAK_BYTES


def where_memory_is_measured(test: Callable[[], None]) -> Callable[[], None]:
    """Run a test where nobody else's memory is."""
    mark = pytest.mark.skipif(sys.platform != "linux", reason="no /proc/self/statm")
    marked: Callable[[], None] = mark(in_new_interpreter(test))
    return marked


def make_calls(calls: Iterable[object]) -> None:
    """Make the calls that a ``map`` stands for, with nothing between them."""
    deque(calls, maxlen=0)


def references(*things: object) -> list[int]:
    return [sys.getrefcount(thing) for thing in things]


@where_memory_is_measured
def test_ten_million_calls_and_a_hundred_thousand_flushes_leave_nothing_behind() -> None:
    backend = Discard()
    buffer = made(backend)
    names = [f"name {i}" for i in range(10)]
    fifty = names * 5
    before = references(*names, backend, backend.result)

    def work() -> None:
        for i in range(50_000):
            make_calls(map(buffer.incr_counter, fifty, itertools.repeat(i)))
            make_calls(map(buffer.incr_timing, fifty, itertools.repeat(i * 0.5)))
            buffer.flush()

    assert_flat(work)
    assert references(*names, backend, backend.result) == before


@where_memory_is_measured
def test_ten_million_deliveries_and_a_hundred_thousand_flushes_leave_nothing_behind() -> None:
    backend, error, producer_name = Discard(), Outage(), f"producer {math.pi}"
    buffer = DeliveryBuffer(flush_interval=math.inf)
    errors = [None] * 90 + [error] * 10
    latencies = [0.5] * 5 + [None] * 95  # a few, since each of them is a call of the backend
    before = references(backend, backend.result, error, producer_name)

    def work() -> None:
        for _ in range(50_000):
            make_calls(map(buffer.record, errors, latencies))
            buffer.flush(backend, producer_name)

    assert_flat(work)
    assert references(backend, backend.result, error, producer_name) == before


@where_memory_is_measured
def test_names_that_never_come_again_leave_nothing_behind() -> None:
    buffer = made(Discard())

    def work() -> None:
        for i in range(100_000):
            buffer.incr_counter(f"name {i}", 1)
            if i % 1_000 == 0:
                buffer.flush()

    assert_flat(work)


@where_memory_is_measured
def test_a_backend_that_is_down_for_ever_leaves_one_total_for_a_name() -> None:
    logging.disable()  # a warning for each flush
    buffer = made(RefusesAll())

    def work() -> None:
        for i in range(50_000):
            buffer.incr_counter(f"name {i % 20}", 1)
            buffer.incr_timing(f"name {i % 20}", 1)
            try:
                buffer.flush()
            except Outage:
                continue

    assert_flat(work)
    timers, counters = buffer.snapshot()
    assert len(timers) == len(counters) == 20
    assert sum(timers.values()) == sum(counters.values()) == 100_000


BUFFERS_MADE = 1_000_000


@where_memory_is_measured
def test_buffers_made_and_dropped_leave_nothing_behind() -> None:
    backend = Discard()
    before = references(backend, backend.result)
    gc.freeze()  # what was imported, which each collection would go through

    def work() -> None:
        for i in range(BUFFERS_MADE // 2):
            buffer = made(backend)
            buffer.incr_counter("a", 1)
            buffer.incr_counter(f"name {i}", 1)
            if i % 10 == 0:
                buffer.itself = buffer  # type: ignore[attr-defined]
            if i % 5_000 == 0:
                gc.collect()

    assert_flat(work)
    assert references(backend, backend.result) == before


@where_memory_is_measured
def test_a_million_delivery_buffers_made_and_dropped_leave_nothing_behind() -> None:
    def work() -> None:
        for _ in range(500_000):
            DeliveryBuffer(flush_interval=1).record(None, 0.5)

    assert_flat(work)


@where_memory_is_measured
def test_buffers_that_threads_make_and_drop_at_once_leave_nothing_behind() -> None:
    def make_and_drop() -> None:
        for i in range(BUFFERS_MADE // 40):
            buffer = made(Discard())
            buffer.incr_counter(f"name {i}", 1)
            buffer.flush()
            DeliveryBuffer(flush_interval=1).record(None, 0.5)

    assert_flat(lambda: run_together(*[make_and_drop] * 4))


@where_memory_is_measured
def test_bad_input_snapshots_and_attributes_leave_nothing_behind() -> None:
    buffer = made(Discard())

    def work() -> None:
        for i in range(20_000):
            bad: Any = [f"no number and no str {i}"]
            for arguments in ((bad, 1), (f"name {i % 10}", bad), (f"name {i % 10}", 2**80 + i)):
                with pytest.raises((TypeError, OverflowError)):
                    buffer.incr_counter(*arguments)
            buffer.incr_counter(f"name {i % 10}", 1)
            buffer.snapshot()
            repr(buffer)
            buffer.metrics = [buffer.metrics]
            buffer.metrics = buffer.metrics[0]

    assert_flat(work)


class Name(str):
    """A name that can be watched."""

    __slots__ = ("__weakref__",)


def test_flushes_and_put_backs_take_and_give_the_references_they_need() -> None:
    names = [f"a name made at run time {i}" for i in range(3)]
    backend, down = Discard(), RefusesAll()
    buffer = made(backend)
    before = references(*names, backend, down)
    for i in range(300):
        buffer.incr_counter(names[i % 3], 1)
        buffer.incr_timing(names[i % 3], 1)
        buffer.metrics = down
        with pytest.raises(Outage):
            buffer.flush()
        buffer.metrics = backend
    assert references(*names) == [count + 2 for count in before[:3]]  # a timer's and a counter's
    buffer.flush()
    assert references(*names, backend, down) == before


def test_a_name_is_kept_from_its_first_touch_to_its_flush_and_no_longer() -> None:
    buffer = made(Flaky())
    buffer.metrics.refused.add("name")
    first, second = Name("name"), Name("name")
    alive = weakref.WeakSet([first, second])
    buffer.incr_counter(first, 1)
    with pytest.raises(Outage) as outage:
        buffer.flush()
    buffer.incr_counter(second, 1)
    del first, second, outage
    gc.collect()
    assert len(alive) == 1
    buffer.metrics = Discard()
    buffer.flush()
    gc.collect()
    assert len(alive) == 0


def by_its_backend(buffer: MetricsBuffer) -> None:
    buffer.metrics.buffer = buffer


def by_its_own_attribute(buffer: MetricsBuffer) -> None:
    buffer.itself = buffer  # type: ignore[attr-defined]


def by_a_backend_of_its_own_methods(buffer: MetricsBuffer) -> None:
    buffer.metrics = buffer.incr_counter


def by_nothing(buffer: MetricsBuffer) -> None: ...


@pytest.mark.parametrize(
    "hold", [by_its_backend, by_its_own_attribute, by_a_backend_of_its_own_methods, by_nothing]
)
def test_a_buffer_that_only_a_cycle_holds_is_collected(
    hold: Callable[[MetricsBuffer], None],
) -> None:
    buffer = made(Recorder())
    backend = weakref.ref(buffer.metrics)
    name = Name("pending")
    alive = weakref.WeakSet([buffer, name])
    buffer.incr_counter(name, 1)
    hold(buffer)
    del buffer, name
    gc.collect()
    assert len(alive) == 0
    assert backend() is None


def test_a_buffer_that_only_its_clock_holds_is_collected() -> None:
    class ItsOwnClock(MetricsBuffer):
        def __init__(self) -> None:
            super().__init__(Discard(), clock=self.now)

        def now(self) -> float:
            return 0.0

    buffer = ItsOwnClock()
    buffer.incr_counter("a", 1)
    alive = weakref.ref(buffer)
    del buffer
    gc.collect()
    assert alive() is None


def test_a_buffer_may_be_dropped_by_its_own_backend_in_the_middle_of_a_flush() -> None:
    class Drops(Recorder):
        def increment(self, name: str, value: int) -> None:
            super().increment(name, value)
            buffers.clear()
            gc.collect()

    backend = Drops()
    buffers = [made(backend)]
    alive = weakref.WeakSet(buffers)
    buffers[0].incr_counter("a", 1)
    buffers[0].incr_counter("b", 2)
    buffers[0].flush()
    assert backend.calls == [("increment", "a", 1), ("increment", "b", 2)]
    gc.collect()
    assert len(alive) == 0


@pytest.mark.usefixtures("tiny_switch_interval")
def test_the_garbage_collector_never_takes_what_a_flush_in_another_thread_uses() -> None:
    buffers = [made(Recorder()) for _ in range(3)]
    backends = [buffer.metrics for buffer in buffers]
    for buffer in buffers:
        by_its_backend(buffer)
    done = threading.Event()
    calls = 300

    def write_and_flush() -> None:
        for i in range(calls):
            for buffer in buffers:
                buffer.incr_counter(Name(f"name {i % 5}"), 1)
                buffer.incr_timing(Name(f"name {i % 5}"), 1)
                buffer.flush()

    def collect() -> None:
        while not done.is_set():
            gc.collect()

    collector = threading.Thread(target=collect, daemon=True)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    collector.start()
    try:
        run_together(write_and_flush, write_and_flush, write_and_flush)
    finally:
        done.set()
        collector.join(60)
        gc.set_threshold(*threshold)
    for buffer, backend in zip(buffers, backends, strict=True):
        assert buffer.metrics is backend
        assert buffer.snapshot() == ({}, {})
        assert sum(backend.sums().values()) == 2 * 3 * calls
