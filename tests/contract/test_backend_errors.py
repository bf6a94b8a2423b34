"""C6: an error of the backend loses nothing and sends nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer
from support.backends import Flaky, Outage
from support.threads import run_together


def filled(backend: Flaky) -> MetricsBuffer:
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    for name in ("t1", "t2"):
        buffer.incr_timing(name, 1)
    for name in ("c1", "c2", "c3"):
        buffer.incr_counter(name, 1)
    return buffer


ORDER = ["t1", "t2", "c1", "c2", "c3"]


@pytest.mark.parametrize("failing", ORDER)
def test_what_was_accepted_is_gone_and_the_rest_is_pending_in_its_order(failing: str) -> None:
    backend = Flaky()
    buffer = filled(backend)
    backend.refused = {failing}
    with pytest.raises(Outage, match="the metrics backend is down"):
        buffer.flush()
    accepted = ORDER[: ORDER.index(failing)]
    assert [call.name for call in backend.calls] == accepted
    timers, counters = buffer.snapshot()
    assert [*timers, *counters] == ORDER[len(accepted) :]

    backend.refused = set()
    buffer.flush()
    assert [call.name for call in backend.calls] == ORDER


def test_what_is_put_back_merges_with_what_came_meanwhile_and_comes_first() -> None:
    class Backend(Flaky):
        def increment(self, name: str, value: int) -> None:
            if name in self.refused:
                buffer.incr_counter("new", 10)
                buffer.incr_counter("c3", 10)
                buffer.incr_timing("t1", 10)
            super().increment(name, value)

    backend = Backend()
    buffer = filled(backend)
    backend.refused = {"c2"}
    with pytest.raises(Outage):
        buffer.flush()
    timers, counters = buffer.snapshot()
    assert list(timers.items()) == [("t1", 10.0)]
    assert list(counters.items()) == [("c2", 1), ("c3", 11), ("new", 10)]


class Shutdown(BaseException):
    """What an application's signal handler raises to end it."""


@pytest.mark.parametrize("on_backend_error", ["raise", "log"])
@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), asyncio.CancelledError(), Shutdown()],
)
def test_what_ends_a_program_is_raised_and_put_back_even_where_errors_are_logged(
    error: BaseException, on_backend_error: Any
) -> None:
    arroyo_metrics_buffer.install(on_backend_error=on_backend_error)
    backend = Flaky(error)
    buffer = filled(backend)
    backend.refused = {"t2"}
    with pytest.raises(type(error)) as raised:
        buffer.flush()
    assert raised.value is error
    assert buffer.snapshot() == ({"t2": 1.0}, {"c1": 1, "c2": 1, "c3": 1})


@pytest.mark.parametrize("method", ["incr_counter", "incr_timing"])
def test_the_call_that_flushes_raises_the_error(method: str) -> None:
    backend = Flaky()
    buffer = MetricsBuffer(backend, flush_interval=0)
    backend.refused = {"x"}
    with pytest.raises(Outage):
        getattr(buffer, method)("x", 1)
    assert {**buffer.snapshot()[0], **buffer.snapshot()[1]} == {"x": 1}


def test_a_backend_without_the_method_loses_nothing() -> None:
    buffer = MetricsBuffer(object(), flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    with pytest.raises(AttributeError, match="increment"):
        buffer.flush()
    assert buffer.snapshot() == ({}, {"x": 1})


def test_counters_put_back_may_leave_64_bits_without_loss() -> None:
    biggest = 2**63 - 1

    class Backend(Flaky):
        def increment(self, name: str, value: int) -> None:
            if name in self.refused:
                buffer.incr_counter("x", biggest)
            super().increment(name, value)

    backend = Backend()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    buffer.incr_counter("x", biggest)
    backend.refused = {"x"}
    with pytest.raises(Outage):
        buffer.flush()
    with pytest.raises(OverflowError, match="counter x would leave 64 bits"):
        buffer.incr_counter("x", 1)
    backend.refused = set()
    buffer.flush()
    assert backend.calls == [("increment", "x", 2 * biggest)]


@given(st.lists(st.tuples(st.sampled_from(ORDER), st.booleans()), max_size=40))
def test_any_outage_delays_and_never_changes_the_sums(outages: list[tuple[str, bool]]) -> None:
    backend = Flaky()
    buffer = filled(backend)
    made = dict.fromkeys(ORDER, 1.0)
    for name, down in outages:
        (backend.refused.add if down else backend.refused.discard)(name)
        if name.startswith("t"):
            buffer.incr_timing(name, 2)
        else:
            buffer.incr_counter(name, 2)
        made[name] += 2
        try:
            buffer.flush()
        except Outage:
            assert backend.refused
    backend.refused = set()
    buffer.flush()
    assert backend.sums() == made


@pytest.mark.usefixtures("tiny_switch_interval")
def test_threads_and_a_failing_backend_lose_nothing() -> None:
    class Backend(Flaky):
        attempts = 0

        def increment(self, name: str, value: int) -> None:
            self.attempts += 1
            if self.attempts % 3 == 0:
                raise self.error.with_traceback(None)
            super().increment(name, value)

    backend = Backend()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)

    def write() -> None:
        for i in range(20_000):
            buffer.incr_counter(f"name {i % 10}", 1)

    def flush() -> None:
        for _ in range(3_000):
            with contextlib.suppress(Outage):
                buffer.flush()

    run_together(write, write, write, flush, flush)
    _timers, pending = buffer.snapshot()
    sums = backend.sums()
    sums.update(pending)
    assert sums == {f"name {i}": 6_000 for i in range(10)}


def test_errors_can_be_logged_instead_so_that_they_stop_no_consumer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    arroyo_metrics_buffer.install(on_backend_error="log")
    backend = Flaky()
    buffer = filled(backend)
    backend.refused = {"c1"}
    buffer.flush()

    (record,) = caplog.records
    assert (record.name, record.levelno) == ("arroyo_metrics_buffer", logging.ERROR)
    assert record.getMessage() == (
        "an outage of the metrics backend begins: flush ended by support.backends.Outage: the"
        " metrics backend is down; 2 of 5 entries sent, 3 kept for the next flush"
    )
    assert record.exc_info is not None
    assert record.exc_info[1] is backend.error
    assert "backends.py" in caplog.text, "the traceback is there"
    assert buffer.snapshot() == ({}, {"c1": 1, "c2": 1, "c3": 1})
