"""The records on the logger arroyo_metrics_buffer, and what happens when logging itself fails."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from arroyo.backends.kafka import consumer

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer
from support.backends import Flaky, Outage, ProducerBackend, Recorder
from support.producers import closed_after_test
from support.programs import python

PROCESSOR = "arroyo.processing.processor"
CONSUMER = "arroyo.backends.kafka.consumer"
LOGGER = logging.getLogger("arroyo_metrics_buffer")


class RefusalError(Exception):
    """What a filter raises."""


def with_a_refused_counter() -> MetricsBuffer:
    backend = Flaky()
    backend.refused = {"x"}
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    return buffer


@pytest.fixture
def raising_filter() -> Iterator[None]:
    def refuse(record: logging.LogRecord) -> bool:
        raise RefusalError(record.getMessage())

    LOGGER.addFilter(refuse)
    yield
    LOGGER.removeFilter(refuse)


def test_each_flush_leaves_a_debug_record(caplog: pytest.LogCaptureFixture) -> None:
    buffer = MetricsBuffer(Recorder(), flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    buffer.incr_timing("x", 1)
    buffer.flush()
    assert caplog.records == []
    # The level may change at any time.
    caplog.set_level(logging.DEBUG, LOGGER.name)
    buffer.incr_counter("x", 1)
    buffer.flush()
    caplog.set_level(logging.INFO, LOGGER.name)
    buffer.flush()
    (record,) = caplog.records
    assert (record.name, record.levelno) == (LOGGER.name, logging.DEBUG)
    assert re.fullmatch(r"flushed 1 entries in \d+ µs", record.getMessage())


def test_a_put_back_leaves_a_warning_and_raises(caplog: pytest.LogCaptureFixture) -> None:
    backend = Flaky()
    backend.refused = {"b"}
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    for name in "abc":
        buffer.incr_counter(name, 1)
    with pytest.raises(Outage):
        buffer.flush()
    (record,) = caplog.records
    assert (record.name, record.levelno) == (LOGGER.name, logging.WARNING)
    assert record.getMessage() == (
        "flush ended by support.backends.Outage: the metrics backend is down;"
        " 1 of 3 entries sent, 2 kept for the next flush"
    )


def flush(buffer: MetricsBuffer) -> None:
    buffer.flush()


@pytest.mark.parametrize("on_backend_error", ["raise", "log"])
def test_each_record_names_the_python_code_that_called_the_buffer(
    caplog: pytest.LogCaptureFixture, on_backend_error: Any
) -> None:
    arroyo_metrics_buffer.install(on_backend_error=on_backend_error)
    caplog.set_level(logging.DEBUG, LOGGER.name)
    caplog.clear()
    buffer = with_a_refused_counter()
    with contextlib.suppress(Outage):
        flush(buffer)
    buffer.metrics.refused = set()
    flush(buffer)
    place = (
        __file__,
        flush.__code__.co_firstlineno + 1,
        "flush",
        "test_logging",
        "test_logging.py",
    )
    assert [
        (
            record.levelno,
            record.pathname,
            record.lineno,
            record.funcName,
            record.module,
            record.filename,
        )
        for record in caplog.records
    ] == [
        (logging.WARNING, *place) if on_backend_error == "raise" else (logging.ERROR, *place),
        (logging.DEBUG, *place),
        *([] if on_backend_error == "raise" else [(logging.WARNING, *place)]),
    ]


def test_a_record_of_a_producers_flush_names_the_code_that_called_the_producer(
    backend: ProducerBackend, caplog: pytest.LogCaptureFixture
) -> None:
    def report(producer: Any) -> None:
        producer.flush(0)

    producer: Any = closed_after_test(consumer.ConfluentProducer({"log_level": 0}))
    producer._ConfluentProducer__metrics_delivery_callback(None, "message", 1000.0)
    caplog.clear()
    with mock.patch.object(backend, "increment", side_effect=Outage), pytest.raises(Outage):
        report(producer)
    (record,) = caplog.records
    place = (__file__, report.__code__.co_firstlineno + 1, "report")
    assert (record.pathname, record.lineno, record.funcName) == place


def test_each_patch_leaves_an_info_record(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER.name)
    arroyo_metrics_buffer.uninstall()
    arroyo_metrics_buffer.install()
    arroyo_metrics_buffer.install()
    assert {(record.name, record.levelno) for record in caplog.records} == {
        (LOGGER.name, logging.INFO)
    }
    assert caplog.messages == [
        f"{PROCESSOR}.MetricsBuffer is patched: arroyo uses arroyo_metrics_buffer.MetricsBuffer",
        f"{CONSUMER}.ConfluentProducer is patched: its metrics methods are arroyo_metrics_buffer's",
    ]


def test_a_call_on_the_hot_path_leaves_no_record(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1, LOGGER.name)
    buffer = MetricsBuffer(Recorder(), flush_interval=math.inf)
    for i in range(100):
        buffer.incr_counter(f"name {i}", 1)
        buffer.incr_timing("x", 1)
    assert caplog.records == []


@pytest.mark.usefixtures("raising_filter")
def test_an_error_in_logging_stops_no_consumer_whose_backend_errors_are_logged(
    unraisable: list[BaseException | None],
) -> None:
    arroyo_metrics_buffer.install(on_backend_error="log")
    buffer = with_a_refused_counter()
    buffer.flush()
    assert buffer.snapshot() == ({}, {"x": 1})
    assert [type(error) for error in unraisable] == [RefusalError]


def test_a_flush_of_nothing_leaves_no_record(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOGGER.name)
    MetricsBuffer(Recorder(), flush_interval=math.inf).flush()
    assert caplog.records == []


@pytest.mark.parametrize("on_backend_error", ["raise", "log", print])
@pytest.mark.usefixtures("raising_filter")
def test_an_error_in_logging_stops_no_consumer_whose_flush_went_well(
    on_backend_error: Any,
    caplog: pytest.LogCaptureFixture,
    unraisable: list[BaseException | None],
) -> None:
    arroyo_metrics_buffer.install(on_backend_error=on_backend_error)
    caplog.set_level(logging.DEBUG, LOGGER.name)
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    buffer.flush()
    assert [type(error) for error in unraisable] == [RefusalError]
    assert backend.calls == [("increment", "x", 1)]
    assert buffer.snapshot() == ({}, {})


def test_a_logger_that_fails_to_tell_its_level_stops_no_consumer(
    monkeypatch: pytest.MonkeyPatch, unraisable: list[BaseException | None]
) -> None:
    def refuse() -> int:
        raise RefusalError

    monkeypatch.setattr(LOGGER, "getEffectiveLevel", refuse)
    buffer = MetricsBuffer(Recorder(), flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    buffer.flush()
    assert [type(error) for error in unraisable] == [RefusalError]
    assert buffer.metrics.calls == [("increment", "x", 1)]


def test_an_interrupt_of_the_logger_that_tells_its_level_is_raised_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(LOGGER, "getEffectiveLevel", interrupt)
    buffer = MetricsBuffer(Recorder(), flush_interval=math.inf)
    buffer.incr_counter("x", 1)
    with pytest.raises(KeyboardInterrupt):
        buffer.flush()
    assert buffer.snapshot() == ({}, {"x": 1})


@pytest.mark.usefixtures("raising_filter")
def test_the_error_of_the_backend_comes_before_an_error_in_logging(
    unraisable: list[BaseException | None],
) -> None:
    buffer = with_a_refused_counter()
    with pytest.raises(Outage):
        buffer.flush()
    assert [type(error) for error in unraisable] == [RefusalError]
    assert buffer.snapshot() == ({}, {"x": 1})


@pytest.mark.parametrize("on_backend_error", ["raise", "log"])
def test_an_interrupt_of_logging_comes_before_the_error_of_the_backend(
    monkeypatch: pytest.MonkeyPatch, on_backend_error: Any
) -> None:
    def interrupt(record: logging.LogRecord) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(LOGGER, "filters", [interrupt])
    arroyo_metrics_buffer.install(on_backend_error=on_backend_error)
    buffer = with_a_refused_counter()
    with pytest.raises(KeyboardInterrupt):
        buffer.flush()
    assert buffer.snapshot() == ({}, {"x": 1})


@pytest.mark.usefixtures("raising_filter")
def test_an_error_in_logging_fails_no_install() -> None:
    LOGGER.setLevel(logging.INFO)
    try:
        arroyo_metrics_buffer.uninstall()
        assert arroyo_metrics_buffer.install().targets[0].state == "patched"
    finally:
        LOGGER.setLevel(logging.NOTSET)


def test_records_arrive_though_the_package_was_imported_while_a_test_mocked_logging() -> None:
    ran = python(
        """
import logging, math
from unittest import mock
with mock.patch("logging.getLogger"):
    import arroyo_metrics_buffer
class Backend:
    def increment(self, name, value): raise RuntimeError("refused")
arroyo_metrics_buffer.install(on_backend_error="log")
buffer = arroyo_metrics_buffer.MetricsBuffer(Backend(), flush_interval=math.inf)
buffer.incr_counter("x", 1)
buffer.flush()
print(buffer.snapshot()[1])
"""
    )
    assert (ran.stdout, ran.returncode) == ("{'x': 1}\n", 0), ran.stderr
    assert ran.stderr.count("flush ended by RuntimeError: refused") == 1


def test_a_handler_may_call_the_buffer() -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            buffer.incr_counter(record.levelname, 1)

    handler = Handler()
    LOGGER.addHandler(handler)
    try:
        buffer = with_a_refused_counter()
        with pytest.raises(Outage):
            buffer.flush()
        assert buffer.snapshot() == ({}, {"x": 1, "WARNING": 1})
    finally:
        LOGGER.removeHandler(handler)
