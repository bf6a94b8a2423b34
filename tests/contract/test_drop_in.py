"""C2: whoever used arroyo's class can use this one."""

from __future__ import annotations

import enum
import inspect
import math
import time
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from arroyo_metrics_buffer import MetricsBuffer
from support.backends import Recorder

names = st.sampled_from(
    [
        "arroyo.consumer.run.count",
        "arroyo.consumer.poll.time",
        "",
        "Zeit µs",
        "时间",
        "\ud800 alone",
        "\x00",
    ]
    + [f"name {i}" for i in range(12)]
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("incr_timing"), names, st.floats() | st.integers(-(2**40), 2**40)),
        st.tuples(st.just("incr_counter"), names, st.integers(-(2**32), 2**32) | st.booleans()),
        st.tuples(st.just("flush")),
        # Backwards too: the wall clock, which arroyo's class reads, does that.
        st.tuples(st.just("pass"), st.floats(-3, 3) | st.sampled_from([1.0, math.nextafter(1, 2)])),
        st.tuples(st.just("replace")),
    ),
    max_size=60,
)


class Driver:
    """Carries out operations on a buffer and records what its backends see."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.now = 1_700_000_000.0
        with mock.patch("time.time", lambda: self.now):
            self.buffer = make()
        self.backends = [Recorder()]
        self.buffer.metrics = self.backends[0]

    def do(self, operation: str, *arguments: Any) -> None:
        if operation == "pass":
            self.now += arguments[0]
        elif operation == "replace":
            self.backends.append(Recorder())
            self.buffer.metrics = self.backends[-1]
        else:
            with mock.patch("time.time", lambda: self.now):
                getattr(self.buffer, operation)(*arguments)

    def calls(self) -> str:
        # Text, so that NaN equals NaN, -0.0 differs from 0.0, 1 from 1.0 and from True.
        return repr([backend.calls for backend in self.backends])


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(operations)
@example([("incr_timing", "x", -0.0), ("flush",)])
@example([("incr_counter", "x", 0), ("flush",), ("flush",)])
def test_the_backend_is_called_as_arroyos_class_would_call_it(
    upstream: type, operations: list[tuple[Any, ...]]
) -> None:
    theirs = Driver(upstream)
    ours = Driver(lambda: MetricsBuffer(clock=lambda: time.time()))  # noqa: PLW0108 - patched
    for operation in operations:
        theirs.do(*operation)
        ours.do(*operation)
        assert ours.calls() == theirs.calls()


@pytest.mark.parametrize("method", ["incr_timing", "incr_counter", "flush"])
def test_methods_have_arroyos_names_and_parameters(upstream: type, method: str) -> None:
    def parameters(cls: type) -> list[str]:
        return list(inspect.signature(getattr(cls, method)).parameters)

    assert MetricsBuffer.__name__ == upstream.__name__
    assert parameters(MetricsBuffer) == parameters(upstream)


def test_arguments_may_be_passed_by_name() -> None:
    backend = Recorder()
    buffer = MetricsBuffer(metrics=backend, flush_interval=math.inf)
    buffer.incr_timing(metric="t", duration=0.5)
    buffer.incr_counter(metric="c", delta=2)
    buffer.flush()
    assert backend.calls == [("timing", "t", 0.5), ("increment", "c", 2)]


def test_timers_come_before_counters_each_in_the_order_of_first_touch() -> None:
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    for _ in range(2):
        for name in ("z", "a", "m"):
            buffer.incr_counter(name, 0)
            buffer.incr_timing(name, 0)
        buffer.flush()
        assert [(call.method, call.name) for call in backend.calls] == [
            *(("timing", name) for name in "zam"),
            *(("increment", name) for name in "zam"),
        ]
        backend.calls.clear()


def test_a_flush_with_nothing_pending_calls_nothing() -> None:
    backend = mock.Mock()
    MetricsBuffer(backend).flush()
    assert backend.mock_calls == []


def test_a_mock_put_in_place_of_a_backend_method_is_seen_by_the_next_flush() -> None:
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    with mock.patch.object(backend, "increment") as increment:
        buffer.incr_counter("x", 1)
        buffer.flush()
    increment.assert_called_once_with("x", 1)


def test_the_backend_attribute_can_be_mocked_and_is_restored() -> None:
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    with mock.patch.object(buffer, "metrics") as metrics:
        buffer.incr_counter("x", 1)
        buffer.flush()
    metrics.increment.assert_called_once_with("x", 1)
    assert buffer.metrics is backend


def test_a_deleted_backend_attribute_is_missing_and_loses_nothing() -> None:
    buffer = MetricsBuffer(Recorder(), flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    del buffer.metrics
    with pytest.raises(AttributeError, match="'MetricsBuffer' object has no attribute 'metrics'"):
        buffer.flush()
    buffer.metrics = backend = Recorder()
    buffer.flush()
    assert backend.calls == [("increment", "x", 1)]


def test_methods_can_be_mocked_on_the_class_and_on_an_instance() -> None:
    buffer = MetricsBuffer(Recorder(), flush_interval=0, clock=iter(range(100)).__next__)
    with mock.patch.object(MetricsBuffer, "flush") as flush:
        buffer.incr_counter("x", 1)
    flush.assert_called_once_with()
    with mock.patch.object(buffer, "flush") as flush:
        buffer.incr_counter("x", 1)
    flush.assert_called_once_with()
    with mock.patch.object(MetricsBuffer, "incr_counter") as incr_counter:
        buffer.incr_counter("x", 1)
    incr_counter.assert_called_once_with("x", 1)


def test_a_throttled_call_flushes_through_a_subclass_override() -> None:
    class Subclass(MetricsBuffer):
        flushes = 0

        def flush(self) -> None:
            self.flushes += 1
            super().flush()

    backend = Recorder()
    buffer = Subclass(backend, flush_interval=0, clock=iter(range(100)).__next__)
    buffer.incr_timing("x", 1)
    assert buffer.flushes == 1
    assert backend.calls == [("timing", "x", 1.0)]


def test_a_subclass_may_have_a_constructor_of_its_own() -> None:
    class Subclass(MetricsBuffer):
        def __init__(self, consumer: str, *, group: str) -> None:
            super().__init__(Recorder())
            self.consumer, self.group = consumer, group

    buffer = Subclass("consumer", group="group")
    assert (buffer.consumer, buffer.group) == ("consumer", "group")
    assert isinstance(buffer.metrics, Recorder)


def test_a_subclass_that_forgets_the_constructor_is_told_so() -> None:
    class Subclass(MetricsBuffer):
        def __init__(self) -> None:
            pass

    buffer = Subclass()
    for call in (buffer.flush, buffer.snapshot, lambda: buffer.incr_counter("x", 1)):
        with pytest.raises(RuntimeError, match=r"__init__\(\) was not called"):
            call()


def test_instances_take_attributes_and_weak_references() -> None:
    buffer: Any = MetricsBuffer(Recorder())
    buffer.owner = "processor"
    assert vars(buffer) == {"owner": "processor"}
    reference = weakref.ref(buffer)
    assert reference() is buffer


def test_the_backend_gets_the_name_that_was_passed_first() -> None:
    class Metric(enum.StrEnum):
        RUN_COUNT = "arroyo.consumer.run.count"

    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    buffer.incr_counter(Metric.RUN_COUNT, 1)
    buffer.incr_counter("arroyo.consumer.run.count", 2)
    buffer.incr_timing("plain first", 1)
    buffer.incr_timing(type("Name", (str,), {})("plain first"), 2)
    buffer.flush()
    assert [(call.name, call.value) for call in backend.calls] == [
        ("plain first", 3.0),
        (Metric.RUN_COUNT, 3),
    ]
    assert backend.calls[1].name is Metric.RUN_COUNT
    assert type(backend.calls[0].name) is str


def test_more_names_than_are_found_by_identity_keep_their_order_and_totals() -> None:
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    for _ in range(3):
        for i in range(1000):
            buffer.incr_counter(f"name {i}", i)
    buffer.flush()
    assert backend.calls == [("increment", f"name {i}", 3 * i) for i in range(1000)]
