"""C3: what a buffer is made with, and what it is made with when nothing is said."""

from __future__ import annotations

import builtins
import gc
import inspect
import math
import sys
import time
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from arroyo.processing import processor
from arroyo.utils import metrics as arroyo_metrics

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer
from support.backends import Recorder
from support.programs import python
from support.times import ManualClock


def test_the_signature_can_be_inspected() -> None:
    signature = inspect.signature(MetricsBuffer)
    assert str(signature) == "(metrics=None, *, flush_interval=None, clock=None)"


def test_without_a_backend_it_is_the_one_arroyo_is_configured_with_at_that_moment() -> None:
    configured = Recorder()
    # As tests of applications patch it: where it is used.
    with mock.patch("arroyo.processing.processor.get_metrics", lambda: configured):
        buffer = MetricsBuffer()
    assert buffer.metrics is configured
    assert MetricsBuffer().metrics is arroyo_metrics.get_metrics()


class Unhelpful(ModuleType):
    """A stand-in for arroyo's module, as tests of applications put one into sys.modules."""

    METRICS_FREQUENCY_SEC = "often"


@pytest.mark.parametrize(
    "stand_in",
    [
        pytest.param(None, id="none"),
        pytest.param(ModuleType("arroyo.processing.processor"), id="half imported"),
        pytest.param(Unhelpful("arroyo.processing.processor"), id="a stub"),
        pytest.param(mock.Mock(), id="a mock"),
        pytest.param(mock.MagicMock(), id="a magic mock"),
    ],
)
def test_whatever_stands_in_for_arroyos_module_a_buffer_can_be_made(
    monkeypatch: pytest.MonkeyPatch, stand_in: Any
) -> None:
    monkeypatch.setitem(sys.modules, "arroyo.processing.processor", stand_in)
    backend, clock = Recorder(), ManualClock()
    buffer = MetricsBuffer(backend, clock=clock)
    clock.now = 1.001
    buffer.incr_counter("x", 1)
    assert backend.calls == [("increment", "x", 1)]


def test_a_buffer_is_made_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(name: str, *_: object) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(builtins, "__import__", forbidden)
    MetricsBuffer(Recorder())
    MetricsBuffer()


@pytest.mark.parametrize(("seconds", "flushes"), [(5.0, 0), (5.001, 1)])
def test_without_an_interval_it_is_arroyos_at_that_moment(seconds: float, flushes: int) -> None:
    backend, clock = Recorder(), ManualClock()
    with mock.patch.object(processor, "METRICS_FREQUENCY_SEC", 5):
        buffer = MetricsBuffer(backend, clock=clock)
    clock.now = seconds
    buffer.incr_counter("x", 1)
    assert len(backend.calls) == flushes


def test_without_arroyo_loaded_the_interval_is_a_second_and_nothing_is_imported() -> None:
    code = """
import sys
from arroyo_metrics_buffer import MetricsBuffer
class Backend:
    def increment(self, name, value): print(name, value)
now = 0.0
buffer = MetricsBuffer(Backend(), clock=lambda: now)
now = 1.0
buffer.incr_counter("not yet", 1)
now = 1.001
buffer.incr_counter("now", 1)
assert not any(name.split(".")[0] in ("arroyo", "confluent_kafka") for name in sys.modules)
"""
    ran = python(code)
    assert ran.stdout.splitlines() == ["not yet 1", "now 1"], ran.stderr
    assert ran.returncode == 0, ran.stderr


def test_without_a_clock_it_is_the_installed_one() -> None:
    backend, clock = Recorder(), ManualClock()
    arroyo_metrics_buffer.install(clock=clock)
    buffer = MetricsBuffer(backend, flush_interval=10)
    arroyo_metrics_buffer.install()
    clock.now = 10.1
    buffer.incr_counter("x", 1)
    assert len(backend.calls) == 1


def test_a_step_of_the_wall_clock_neither_stops_nor_causes_a_flush() -> None:
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=3600)
    with mock.patch("time.time", lambda: 1e12):
        buffer.incr_counter("x", 1)
    assert backend.calls == []

    buffer = MetricsBuffer(backend, flush_interval=0.01)
    with mock.patch("time.time", lambda: 0.0):
        time.sleep(0.1)
        buffer.incr_counter("x", 1)
    assert backend.calls == [("increment", "x", 1)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"flush_interval": "1"}, TypeError, "flush_interval must be a number, not str"),
        ({"flush_interval": math.nan}, ValueError, "flush_interval must be a number of .* not NaN"),
        ({"clock": 3}, TypeError, "clock must be callable, not int"),
        (
            {"clock": lambda: "noon"},
            TypeError,
            "the return value of clock must be a number, not str",
        ),
        ({"clock": lambda: math.nan}, ValueError, "the return value of clock must be .* not NaN"),
        ({"intervall": 1}, TypeError, "intervall"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_by_its_name(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MetricsBuffer(Recorder(), **arguments)


def test_only_the_backend_is_positional() -> None:
    with pytest.raises(TypeError):
        MetricsBuffer(Recorder(), 1.0)  # type: ignore[call-arg]


def test_a_collection_while_a_buffer_is_being_made_is_harmless() -> None:
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        buffers = [MetricsBuffer(Recorder(), clock=ManualClock()) for _ in range(1_000)]
    finally:
        gc.set_threshold(*before)
    assert all(isinstance(buffer.metrics, Recorder) for buffer in buffers)


def test_a_second_initialisation_is_refused_and_loses_nothing() -> None:
    backend = Recorder()
    buffer = MetricsBuffer(backend)
    buffer.incr_counter("x", 1)
    with pytest.raises(RuntimeError, match="called before, make a new"):
        buffer.__init__(Recorder())  # type: ignore[misc]
    buffer.flush()
    assert backend.calls == [("increment", "x", 1)]
