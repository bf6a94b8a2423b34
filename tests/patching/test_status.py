"""What status() knows of a process: its patches, others' patches, and buffers of arroyo's own."""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.metadata
import platform
import subprocess
import sys
from typing import Any
from unittest import mock

import pytest
import wrapt
from arroyo.backends.kafka import consumer as arroyo_consumer
from arroyo.processing import processor as arroyo_processor

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer, TargetStatus, status
from support.new_interpreter import in_new_interpreter
from support.producers import closed_after_test
from support.targets import BUFFER, PRODUCER, status_of
from support.threads import run_together

processor: Any = arroyo_processor
consumer: Any = arroyo_consumer


def of_buffer() -> TargetStatus:
    return status_of(BUFFER)


def of_producer() -> TargetStatus:
    return status_of(PRODUCER)


class Unrelated:
    """What somebody else puts in the place of a class."""


def test_a_process_whose_classes_are_patched_is_protected() -> None:
    gc.collect()
    for target in status().targets:
        assert (target.state, target.changes, target.unpatched) == ("patched", (), 0)
        assert target.protected
    assert status().protected


def test_a_process_that_is_not_installed_is_not_protected() -> None:
    arroyo_metrics_buffer.uninstall()
    assert [target.protected for target in status().targets] == [False, False]
    assert not status().protected


def test_status_tells_the_versions_and_the_platform() -> None:
    environment = status().environment
    version = importlib.metadata.version
    assert environment.arroyo_metrics_buffer == arroyo_metrics_buffer.__version__
    assert environment.arroyo == version("sentry-arroyo")
    assert environment.confluent_kafka == version("confluent-kafka")
    assert environment.python == f"CPython {sys.version.partition(' ')[0]}"
    assert environment.gil is (not hasattr(sys, "_is_gil_enabled") or sys._is_gil_enabled())
    assert sys.platform in environment.platform.lower()


def test_status_reads_the_interpreter_for_its_c_library_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = status()
    monkeypatch.setattr(platform, "libc_ver", mock.Mock(side_effect=AssertionError))
    assert status() == before


def test_status_tells_whether_the_gil_is_on_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_enabled in False, True:
        monkeypatch.setattr(
            sys, "_is_gil_enabled", functools.partial(bool, is_enabled), raising=False
        )
        assert status().environment.gil is is_enabled


def test_no_program_is_started_to_tell_what_it_runs_on() -> None:
    code = """
import os, sys
def look(event, arguments):
    if event in ("subprocess.Popen", "os.exec", "os.fork", "os.posix_spawn", "os.system"):
        os._exit(1)
sys.addaudithook(look)
import arroyo_metrics_buffer
arroyo_metrics_buffer.status()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@in_new_interpreter
def test_a_distribution_that_is_not_there_has_no_version() -> None:
    sys.path.clear()
    environment = status().environment
    assert (environment.arroyo, environment.confluent_kafka) == (None, None)


def test_the_setting_that_is_in_force_is_told() -> None:
    assert status().on_backend_error == "raise"
    assert arroyo_metrics_buffer.install(on_backend_error="log").on_backend_error == "log"
    assert arroyo_metrics_buffer.install(on_backend_error=print).on_backend_error is print
    assert arroyo_metrics_buffer.uninstall().on_backend_error == "raise"


# What else has patched the class


def test_a_class_that_somebody_else_put_in_place_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "MetricsBuffer", Unrelated)
    target = of_buffer()
    assert target.state == "unknown"
    assert target.changes == ("arroyo.processing.processor.MetricsBuffer is test_status.Unrelated",)
    assert not target.protected


def test_an_object_that_is_no_class_is_told_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "MetricsBuffer", mock.Mock())
    (change,) = of_buffer().changes
    assert change.endswith("MetricsBuffer is an object of unittest.mock.Mock")


class Unbound:
    """A proxy of an object that is not there yet."""

    def __call__(self) -> None: ...

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __bool__(self) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


def test_an_object_that_raises_where_it_is_looked_at_is_told_by_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processor, "MetricsBuffer", Unbound())
    monkeypatch.setattr(consumer, "ConfluentProducer", Unbound())
    for target in arroyo_metrics_buffer.install().targets:
        assert target.state == "unknown"
        assert target.reason == "it raises RuntimeError where it is looked at"
        assert not target.protected
    assert of_buffer().changes == (
        "arroyo.processing.processor.MetricsBuffer is an object of test_status.Unbound",
    )


def test_a_method_that_raises_where_it_is_looked_at_is_told_by_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flush_metrics = "_ConfluentProducer__flush_metrics"
    monkeypatch.setattr(MetricsBuffer, "flush", Unbound())
    monkeypatch.setattr(consumer.ConfluentProducer, flush_metrics, Unbound())
    for target in arroyo_metrics_buffer.install().targets:
        assert [change.partition(" is ")[2] for change in target.changes] == [
            "an object of test_status.Unbound"
        ]
        assert not target.protected


def test_a_subclass_that_somebody_else_put_in_place_is_told_and_protects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Extended(MetricsBuffer):
        pass

    monkeypatch.setattr(processor, "MetricsBuffer", Extended)
    target = of_buffer()
    assert target.state == "patched"
    assert target.reason.endswith("Extended")
    (change,) = target.changes
    assert change.endswith("Extended")
    assert target.protected


@pytest.mark.parametrize("method", ["incr_counter", "incr_timing", "flush"])
def test_a_method_that_somebody_else_replaced_is_told_and_protects_no_more(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def theirs(*_: object) -> None: ...

    monkeypatch.setattr(MetricsBuffer, method, theirs)
    target = of_buffer()
    assert target.state == "patched"
    (change,) = target.changes
    assert change.startswith(f"arroyo_metrics_buffer.MetricsBuffer.{method} is test_status.test_a_")
    assert not target.protected
    assert not status().protected


def with_functools(ours: Any) -> Any:
    @functools.wraps(ours)
    def traced(*arguments: Any) -> Any:
        return ours(*arguments)

    return traced


def with_wrapt(ours: Any) -> Any:
    return wrapt.FunctionWrapper(
        ours, lambda wrapped, _self, args, kwargs: wrapped(*args, **kwargs)
    )


@pytest.mark.parametrize("wrap", [with_functools, with_wrapt])
def test_a_method_that_somebody_else_wrapped_is_told_and_protects(
    wrap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MetricsBuffer, "flush", wrap(vars(MetricsBuffer)["flush"]))
    monkeypatch.setattr(consumer.ConfluentProducer, "flush", wrap(consumer.ConfluentProducer.flush))
    for target in status().targets:
        (change,) = target.changes
        assert ".flush is a wrapper of this package's" in change
        assert (f" ({__file__}:" in change) == (wrap is with_functools)
        assert target.protected


def test_a_method_that_wraps_itself_protects_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(*_: object) -> None: ...

    theirs.__wrapped__ = theirs  # type: ignore[attr-defined]
    monkeypatch.setattr(MetricsBuffer, "flush", theirs)
    assert not of_buffer().protected


def test_a_method_of_the_producer_that_somebody_else_replaced_is_told_and_protects_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def theirs(*_: object) -> None: ...

    callback = "_ConfluentProducer__metrics_delivery_callback"
    monkeypatch.setattr(consumer.ConfluentProducer, callback, theirs)
    target = of_producer()
    assert target.state == "patched"
    (change,) = target.changes
    assert change.startswith(f"arroyo.backends.kafka.consumer.ConfluentProducer.{callback} is ")
    assert not target.protected


# Buffers of arroyo's own


def test_buffers_that_were_made_before_the_patch_are_counted_until_they_are_gone(
    upstream: type,
) -> None:
    class Extended(upstream):  # type: ignore[misc]
        pass

    gc.collect()
    before = of_buffer().unpatched or 0
    buffers = [upstream(), upstream(), Extended()]
    target = of_buffer()
    assert target.unpatched == before + 3
    assert target.state == "patched"
    assert not target.protected
    buffers.clear()
    gc.collect()
    assert of_buffer().unpatched == before


def test_the_packages_own_buffers_are_not_counted() -> None:
    gc.collect()
    buffers = [MetricsBuffer(), processor.MetricsBuffer()]
    assert of_buffer().unpatched == 0
    assert len(buffers) == 2


def test_nobody_looks_for_buffers_of_a_class_that_was_patched_before_anyone_could_use_it() -> None:
    code = """
import gc, arroyo_metrics_buffer, arroyo.processing.processor
gc.get_referrers = None
gc.freeze()  # nor do they have to
assert arroyo_metrics_buffer.status().protected
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@in_new_interpreter
def test_buffers_that_the_garbage_collector_does_not_see_any_more_protect_no_more() -> None:
    early = buffer_of_arroyos_own()
    gc.freeze()
    assert (of_buffer().unpatched, of_buffer().protected) == (None, False)
    gc.unfreeze()
    assert (of_buffer().unpatched, of_buffer().protected) == (1, False)
    assert early


def test_objects_that_cpython_itself_has_frozen_keep_no_buffers_from_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # CPython 3.12 has hundreds from the start: those that are immortal.
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 375)
    early = buffer_of_arroyos_own()
    assert (of_buffer().unpatched, of_buffer().protected) == (1, False)
    del early
    assert (of_buffer().unpatched, of_buffer().protected) == (0, True)


@pytest.mark.usefixtures("tiny_switch_interval")
def test_status_takes_no_tuple_of_modules_that_another_thread_is_making() -> None:
    # CPython issue 39117: a tuple that the collector hands out can't be finished any more.
    def make_tuples() -> None:
        for _ in range(3000):
            tuple(module for module in list(sys.modules.values()))

    run_together(make_tuples, lambda: [status() for _ in range(100)])


def buffer_of_arroyos_own() -> Any:
    arroyo_metrics_buffer.uninstall()
    buffer = processor.MetricsBuffer()
    arroyo_metrics_buffer.install()
    return buffer


@in_new_interpreter
def test_buffers_of_a_module_that_was_imported_anew_since_are_counted() -> None:
    early = buffer_of_arroyos_own()
    importlib.reload(processor)
    assert processor.MetricsBuffer is arroyo_metrics_buffer.MetricsBuffer
    now = of_buffer()
    assert (now.state, now.changes, now.unpatched, now.protected) == ("patched", (), 1, False)
    del early
    assert (of_buffer().unpatched, of_buffer().protected) == (0, True)


def test_a_class_of_somebody_else_is_not_even_asked_for_its_name() -> None:
    asked = []

    class Metaclass(type):
        def __getattribute__(cls, name: str) -> Any:
            asked.append(name)
            raise RuntimeError(name)

    class MetricsBuffer(metaclass=Metaclass): ...

    asked.clear()
    assert of_buffer().unpatched == 0
    assert asked == []
    del MetricsBuffer  # alive until now


@in_new_interpreter
def test_producers_of_a_module_that_was_imported_anew_since_are_counted() -> None:
    arroyo_metrics_buffer.uninstall()
    producer = consumer.ConfluentProducer({"log_level": 0})
    importlib.reload(consumer)
    arroyo_metrics_buffer.install()
    assert (of_producer().unpatched, of_producer().protected) == (1, False)
    assert producer


def test_where_somebody_else_put_this_packages_class_in_place_it_is_watched_as_well(
    upstream: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    arroyo_metrics_buffer.uninstall()
    early = upstream()
    monkeypatch.setattr(processor, "MetricsBuffer", MetricsBuffer)
    arroyo_metrics_buffer.install()
    assert of_buffer().unpatched == 1
    del early
    assert of_buffer().protected
    monkeypatch.setattr(MetricsBuffer, "flush", lambda _: None)
    assert len(of_buffer().changes) == 1
    assert not of_buffer().protected


def test_a_confluent_kafka_that_is_not_the_real_one_has_no_producers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", mock.Mock())
    assert of_producer().unpatched == 0


def test_producers_are_counted_while_their_class_is_not_patched() -> None:
    arroyo_metrics_buffer.uninstall()
    before = of_producer().unpatched or 0
    producer = closed_after_test(consumer.ConfluentProducer({"log_level": 0}))
    assert of_producer().unpatched == before + 1
    arroyo_metrics_buffer.install()
    assert of_producer().unpatched == 0
    assert producer


@in_new_interpreter
def test_a_processor_that_was_made_before_the_import_is_told() -> None:
    from arroyo.processing.processor import StreamProcessor  # noqa: PLC0415
    from arroyo.types import Topic  # noqa: PLC0415

    arroyo_metrics_buffer.uninstall()
    made: Any = StreamProcessor(mock.Mock(), Topic("t"), mock.Mock())
    arroyo_metrics_buffer.install()
    assert (of_buffer().unpatched, of_buffer().protected) == (1, False)
    assert made
