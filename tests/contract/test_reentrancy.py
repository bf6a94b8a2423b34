"""C7: whatever runs in the middle of a call may call in again."""

from __future__ import annotations

import gc
import math
import os
import threading

import pytest

from arroyo_metrics_buffer import MetricsBuffer
from support.backends import Outage, Recorder


def test_the_backend_may_call_any_method_of_the_buffer() -> None:
    class Backend(Recorder):
        def increment(self, name: str, value: int) -> None:
            super().increment(name, value)
            if name != "again":
                buffer.incr_counter("again", 1)
                buffer.incr_timing("again", 1)
                buffer.flush()
                buffer.snapshot()
                repr(buffer)
                buffer.metrics = buffer.metrics

    backend = Backend()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    buffer.incr_counter("a", 1)
    buffer.incr_counter("b", 2)
    buffer.flush()
    assert backend.calls == [
        ("increment", "a", 1),
        ("timing", "again", 1.0),
        ("increment", "again", 1),
        ("increment", "b", 2),
        ("timing", "again", 1.0),
        ("increment", "again", 1),
    ]
    assert buffer.snapshot() == ({}, {})


def test_a_backend_that_flushes_before_it_fails_puts_back_only_its_own() -> None:
    class Backend(Recorder):
        down = True

        def increment(self, name: str, value: int) -> None:
            if self.down:
                self.down = False
                buffer.incr_counter("nested", 1)
                buffer.flush()
                raise Outage
            super().increment(name, value)

    backend = Backend()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    buffer.incr_counter("outer", 1)
    with pytest.raises(Outage):
        buffer.flush()
    buffer.flush()
    assert backend.calls == [("increment", "nested", 1), ("increment", "outer", 1)]


def test_a_name_may_call_in_when_it_dies() -> None:
    deaths = []

    class Name(str):
        __slots__ = ()

        def __del__(self) -> None:
            deaths.append(str(self))
            buffer.incr_counter("deaths", 1)
            buffer.snapshot()

    class Backend(Recorder):
        def increment(self, name: str, value: int) -> None:
            super().increment(str(name), value)

    backend = Backend()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    for i in range(20):
        buffer.incr_counter(Name(f"name {i}"), 1)
        buffer.incr_counter(Name(f"name {i}"), 1)  # the second object dies at once
    buffer.flush()
    gc.collect()
    buffer.flush()
    assert len(deaths) == 40
    assert backend.sum_of("deaths") == 40
    assert all(backend.sum_of(f"name {i}") == 2 for i in range(20))


def test_names_that_are_left_over_by_a_put_back_may_call_in_when_they_die() -> None:
    class Name(str):
        __slots__ = ()

        def __del__(self) -> None:
            buffer.incr_counter("deaths", 1)

    class Backend(Recorder):
        down = True

        def increment(self, name: str, value: int) -> None:
            if self.down:
                self.down = False
                buffer.incr_counter(Name("x"), 1)
                raise Outage
            super().increment(str(name), value)

    backend = Backend()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    buffer.incr_counter(Name("x"), 1)
    with pytest.raises(Outage):
        buffer.flush()
    buffer.flush()
    buffer.flush()
    assert backend.sum_of("x") == 2
    assert backend.sum_of("deaths") == 2


def test_a_replaced_backend_may_call_in_when_it_dies() -> None:
    class Backend(Recorder):
        def __del__(self) -> None:
            buffer.incr_counter("deaths", 1)
            assert not isinstance(getattr(buffer, "metrics", None), Backend)

    buffer = MetricsBuffer(Backend(), flush_interval=math.inf)
    buffer.metrics = Recorder()
    buffer.metrics = Backend()
    del buffer.metrics
    gc.collect()
    assert buffer.snapshot() == ({}, {"deaths": 2})


def test_arguments_may_call_in_while_they_are_converted() -> None:
    class Integer:
        def __index__(self) -> int:
            buffer.incr_counter("x", 1)
            buffer.flush()
            return 10

    class Float:
        def __float__(self) -> float:
            buffer.incr_timing("x", 1)
            buffer.flush()
            return 10.0

    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    buffer.incr_counter("x", Integer())
    buffer.incr_timing("x", Float())
    assert buffer.snapshot() == ({"x": 10.0}, {})
    assert backend.sum_of("x") == 12


@pytest.mark.usefixtures("tiny_switch_interval")
def test_the_garbage_collector_may_call_in_at_any_point() -> None:
    class Node:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            buffer.incr_counter("collected", 1)
            buffer.flush()

    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    before = gc.get_threshold()
    gc.set_threshold(10)
    try:
        for i in range(2_000):
            Node()
            buffer.incr_counter(f"name {i % 20}", 1)
            if i % 10 == 0:
                buffer.flush()
    finally:
        gc.set_threshold(*before)
    gc.collect()
    buffer.flush()
    assert backend.sum_of("collected") == 2_000
    assert sum(backend.sum_of(f"name {i}") for i in range(20)) == 2_000


def test_a_clock_may_call_in() -> None:
    inside = False

    def clock() -> float:
        nonlocal inside
        if not inside and threads == [threading.get_ident()]:
            inside = True
            buffer.incr_counter("by the clock", 1)
            buffer.flush()
            inside = False
        return float(os.times().elapsed)

    threads: list[int] = []
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf, clock=clock)
    threads.append(threading.get_ident())
    buffer.incr_counter("x", 1)
    buffer.flush()
    threads.clear()
    buffer.flush()
    assert backend.sum_of("x") == 1
    assert backend.sum_of("by the clock") == 2
