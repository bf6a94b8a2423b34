"""C1: what was delivered and what is pending is what was made, whatever threads do."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from arroyo_metrics_buffer import MetricsBuffer
from support.backends import Recorder
from support.threads import run_together
from support.times import UNIT

pytestmark = pytest.mark.usefixtures("tiny_switch_interval")

CALLS = 20_000  # by each thread


def pending(buffer: MetricsBuffer) -> Counter[str]:
    timers, counters = buffer.snapshot()
    return Counter({**timers, **counters})


def test_no_increment_is_lost_or_counted_twice_by_writers_and_flushers() -> None:
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=0.001)

    def write() -> None:
        for i in range(CALLS):
            buffer.incr_counter("count", 1)
            buffer.incr_counter("sum", i)
            buffer.incr_timing("time", UNIT * (i % 7))

    def flush() -> None:
        for _ in range(CALLS // 10):
            buffer.flush()

    run_together(write, write, write, write, flush, flush)

    made = Counter(
        {
            "count": 4 * CALLS,
            "sum": 4 * sum(range(CALLS)),
            "time": 4 * UNIT * sum(i % 7 for i in range(CALLS)),
        }
    )
    assert backend.sums() + pending(buffer) == made
    buffer.flush()
    assert backend.sums() == made
    assert pending(buffer) == Counter()


def test_threads_that_make_the_same_names_at_once_make_one_total_each() -> None:
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)

    def write() -> None:
        for i in range(CALLS):
            buffer.incr_counter(f"name {i % 100}", 1)  # a new object every time

    def flush() -> None:
        for _ in range(100):
            buffer.flush()

    run_together(write, write, write, flush)
    buffer.flush()
    assert backend.sums() == Counter({f"name {i}": 3 * CALLS // 100 for i in range(100)})


def test_one_flush_sends_a_name_once() -> None:
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)

    def write() -> None:
        for _ in range(CALLS):
            buffer.incr_counter("x", 1)

    run_together(write, write, write, write)
    buffer.flush()
    assert backend.calls == [("increment", "x", 4 * CALLS)]


def test_replacing_the_backend_meanwhile_splits_the_sums_and_loses_none() -> None:
    backends = [Recorder(), Recorder()]
    buffer = MetricsBuffer(backends[0], flush_interval=math.inf)

    def write() -> None:
        for _ in range(CALLS):
            buffer.incr_counter("x", 1)

    def replace() -> None:
        for i in range(CALLS // 10):
            buffer.metrics = backends[i % 2]
            buffer.flush()

    run_together(write, write, replace, replace)
    buffer.flush()
    assert sum(backend.sum_of("x") for backend in backends) == 2 * CALLS


def test_snapshots_meanwhile_neither_fail_nor_change_anything() -> None:
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=0.001)

    def write() -> None:
        for i in range(CALLS):
            buffer.incr_counter(f"name {i % 10}", 1)

    def look() -> None:
        for _ in range(CALLS // 20):
            _timers, counters = buffer.snapshot()
            assert all(0 < count <= 2 * CALLS // 10 for count in counters.values())
            assert repr(buffer).startswith("<MetricsBuffer timers={} counters={")

    run_together(write, write, look)
    buffer.flush()
    assert backend.sums() == Counter({f"name {i}": 2 * CALLS // 10 for i in range(10)})
