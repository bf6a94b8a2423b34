"""C12 and C13: arroyo's producer class is changed in place, and put back as it was."""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import math
import os
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import confluent_kafka
import pytest
from arroyo.backends.kafka import consumer as arroyo_consumer

import arroyo_metrics_buffer
from arroyo_metrics_buffer import TargetStatus
from support.arroyo_source import class_of
from support.backends import ProducerBackend
from support.children import fork_child, wait_for_child
from support.producers import closed_after_test
from support.targets import PRODUCER, status_of
from support.threads import run_together

MODULE = "arroyo.backends.kafka.consumer"

consumer: Any = arroyo_consumer


def status() -> TargetStatus:
    return status_of(PRODUCER)


def deliver(producer: Any, error: object = None) -> None:
    producer._ConfluentProducer__metrics_delivery_callback(error, "message", 1000.0)


def made(cls: Any) -> Any:
    return closed_after_test(cls({"log_level": 0}))


@pytest.fixture
def cls(monkeypatch: pytest.MonkeyPatch) -> Any:
    """arroyo's class, unpatched, whose deliveries never flush."""
    monkeypatch.setattr(consumer, "METRICS_FREQUENCY_SEC", math.inf)
    arroyo_metrics_buffer.uninstall()
    return consumer.ConfluentProducer


def test_the_class_keeps_its_name_and_gets_its_own_methods_back(cls: Any) -> None:
    before = dict(vars(cls))
    before.pop("_ConfluentProducer__deliveries", None)  # stays
    for _ in range(3):
        arroyo_metrics_buffer.install()
        assert consumer.ConfluentProducer is cls
        assert vars(cls)["flush"] is not before["flush"]
        assert status().state == "patched"
    for _ in range(3):
        arroyo_metrics_buffer.uninstall()
        assert vars(cls).items() >= before.items()
        assert (status().state, status().reason) == ("disabled", "uninstall() was called")


def test_producers_and_subclasses_that_exist_are_patched_with_it(
    cls: Any, backend: ProducerBackend
) -> None:
    class Subclass(cls):  # type: ignore[misc]
        pass

    producers = [made(each) for each in (cls, Subclass)]
    arroyo_metrics_buffer.install()
    for producer in producers:
        deliver(producer)
        assert vars(producer)["_ConfluentProducer__deliveries"].snapshot()[0] == {"success": 1}
        producer.flush(0)
    assert backend.counts() == {"success": 2}


def test_what_arroyos_methods_counted_is_sent_with_the_rest_by_the_next_flush(
    cls: Any, backend: ProducerBackend
) -> None:
    producer = made(cls)
    deliver(producer)
    deliver(producer, "down")
    vars(producer)["_ConfluentProducer__callback_latency"][:] = [1.0, 2.0]
    arroyo_metrics_buffer.install()
    deliver(producer)
    producer.flush(0)
    assert backend.counts() == {"success": 2, "error": 1}
    assert sorted(backend.latencies())[:2] == [1.0, 2.0]
    assert len(backend.latencies()) == 3
    producer.flush(0)
    assert len(backend.calls) == 5


def test_what_is_pending_goes_back_to_arroyos_methods_with_them(
    cls: Any, backend: ProducerBackend
) -> None:
    producer = made(cls)
    deliver(producer)
    arroyo_metrics_buffer.install()
    deliver(producer)
    deliver(producer, "down")
    arroyo_metrics_buffer.uninstall()
    assert backend.calls == []
    deliver(producer)
    producer.flush(0)
    assert backend.counts() == {"success": 3, "error": 1}
    assert len(backend.latencies()) == 4
    arroyo_metrics_buffer.install()
    deliver(producer)
    producer.flush(0)
    assert backend.counts() == {"success": 4, "error": 1}
    assert len(backend.latencies()) == 5


def test_deliveries_that_meet_in_a_producer_from_before_the_patch_get_one_buffer(
    cls: Any, backend: ProducerBackend
) -> None:
    producer = made(cls)
    meetings = iter(range(3))

    def clock() -> float:
        # Asked in the making of a buffer, as is a thread that comes along then.
        if next(meetings, None) is not None:
            deliver(producer)
        return 0.0

    arroyo_metrics_buffer.install(clock=clock)
    deliver(producer)
    producer.flush(0)
    assert backend.counts() == {"success": 4}


@pytest.mark.usefixtures("tiny_switch_interval")
def test_producers_may_be_made_and_deliver_while_others_install_and_uninstall(cls: Any) -> None:
    def toggle() -> None:
        for _ in range(50):
            arroyo_metrics_buffer.install()
            arroyo_metrics_buffer.uninstall()

    def produce() -> None:
        for _ in range(100):
            deliver(made(cls))

    run_together(toggle, toggle, produce)
    assert status().state == "disabled"


def test_a_method_that_somebody_else_replaced_stays_theirs(cls: Any) -> None:
    arroyos = cls.flush
    arroyo_metrics_buffer.install()
    ours = cls.flush

    def theirs(self: Any, timeout: float = -1) -> int:
        undelivered: int = ours(self, timeout)
        return undelivered

    cls.flush = theirs
    assert status().state == "patched"
    arroyo_metrics_buffer.uninstall()
    assert cls.flush is theirs
    cls.flush = arroyos


# Methods that others wrap or replace while this package's are in place


CALLBACK = "_ConfluentProducer__metrics_delivery_callback"
FLUSH_METRICS = "_ConfluentProducer__flush_metrics"


def with_functools(inner: Any) -> Any:
    @functools.wraps(inner)
    def wrapper(*arguments: Any) -> Any:
        return inner(*arguments)

    return wrapper


def with_a_closure(inner: Any) -> Any:
    def wrapper(*arguments: Any) -> Any:
        return inner(*arguments)

    return wrapper


@pytest.fixture
def put_back(cls: Any) -> Iterator[None]:
    """The class has arroyo's own methods again after the test."""
    before = dict(vars(cls))
    yield
    arroyo_metrics_buffer.uninstall()
    for name in "__init__", CALLBACK, FLUSH_METRICS, "flush":
        setattr(cls, name, before[name])


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("method", ["__init__", CALLBACK, FLUSH_METRICS, "flush"])
@pytest.mark.parametrize("wrap", [with_functools, with_a_closure])
def test_a_method_that_others_wrapped_works_on_wherever_the_rest_is(
    cls: Any, backend: ProducerBackend, method: str, wrap: Any
) -> None:
    early = made(cls)
    arroyo_metrics_buffer.install()
    deliver(early)
    wrapper = wrap(getattr(cls, method))
    setattr(cls, method, wrapper)
    producers = [early, made(cls)]
    deliveries = 1

    def deliver_all() -> None:
        nonlocal deliveries
        for producer in producers:
            deliver(producer)
            deliveries += 1

    deliver_all()
    for _ in range(2):
        arroyo_metrics_buffer.uninstall()
        assert getattr(cls, method) is wrapper
        producers.append(made(cls))
        deliver_all()
        for producer in producers:
            assert producer._ConfluentProducer__produce_counters
            producer.flush(0)
        assert backend.counts() == {"success": deliveries}
        deliver_all()
        arroyo_metrics_buffer.install()
        assert getattr(cls, method) is wrapper
        assert status().state == "patched"
        assert status().protected == (wrap is with_functools)
        producers.append(made(cls))
        deliver_all()
        for producer in producers:
            assert producer._ConfluentProducer__deliveries.snapshot()[0]["success"] > 0
            producer.flush(0)
        assert backend.counts() == {"success": deliveries}
    assert len(backend.latencies()) == deliveries


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (with_functools, "a wrapper of this package's ({}), which has arroyo's own called"),
        (with_a_closure, "test_install_producer.with_a_closure.<locals>.wrapper ({})"),
    ],
)
def test_what_others_keep_after_uninstall_is_told(cls: Any, wrap: Any, told: str) -> None:
    arroyo_metrics_buffer.install()
    setattr(cls, CALLBACK, wrapper := wrap(getattr(cls, CALLBACK)))
    arroyo_metrics_buffer.uninstall()
    place = f"{__file__}:{wrapper.__code__.co_firstlineno}"
    assert (status().state, status().protected) == ("disabled", False)
    assert status().reason == (
        f"uninstall() was called; {MODULE}.ConfluentProducer.{CALLBACK} is {told.format(place)}"
    )


@pytest.mark.usefixtures("put_back")
def test_a_method_of_this_packages_that_others_put_back_after_uninstall_is_no_harm(
    cls: Any, backend: ProducerBackend
) -> None:
    arroyo_metrics_buffer.install()
    arroyos_and_ours = {name: vars(cls)[name] for name in (CALLBACK, FLUSH_METRICS, "flush")}
    arroyo_metrics_buffer.uninstall()
    for name, ours in arroyos_and_ours.items():
        setattr(cls, name, ours)  # as a test does whose monkeypatch began before
    producer = made(cls)
    deliver(producer)
    assert producer._ConfluentProducer__produce_counters == {"success": 1}
    producer.flush(0)
    assert backend.counts() == {"success": 1}
    assert (status().state, status().reason) == ("disabled", "uninstall() was called")
    arroyo_metrics_buffer.install()
    assert status().protected
    arroyo_metrics_buffer.uninstall()
    for name, ours in arroyos_and_ours.items():
        assert vars(cls)[name] is not ours


@pytest.mark.usefixtures("put_back")
def test_a_flush_that_knows_nothing_of_the_buffer_leaves_nothing_in_it(
    cls: Any, backend: ProducerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remedy(self: Any) -> None:
        for status, count in list(self._ConfluentProducer__produce_counters.items()):
            self._ConfluentProducer__metrics.increment(name="x", value=count, tags={"x": status})
        self._ConfluentProducer__reset_metrics()

    arroyo_metrics_buffer.install()
    setattr(cls, FLUSH_METRICS, remedy)
    producer = made(cls)
    deliver(producer)
    producer.flush(0)
    assert backend.counts() == {"success": 1}
    monkeypatch.setattr(consumer, "METRICS_FREQUENCY_SEC", 0.0)
    producer = made(cls)
    time.sleep(0.01)  # two ticks of the clock
    deliver(producer)
    assert backend.counts() == {"success": 2}
    assert (status().state, status().protected) == ("patched", False)
    assert "its method _ConfluentProducer__flush_metrics() is " in status().reason
    assert status().reason.endswith(": remove that patch")


@pytest.mark.parametrize("patched", ["never", "before"])
@pytest.mark.usefixtures("cls")
def test_a_remedy_from_before_the_import_is_superfluous_and_put_back(
    backend: ProducerBackend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    patched: str,
) -> None:
    def remedy(self: Any) -> None:
        for status, count in list(self._ConfluentProducer__produce_counters.items()):
            tags = {"status": status}
            if self.producer_name:
                tags["producer_name"] = self.producer_name
            self._ConfluentProducer__metrics.increment(
                name="arroyo.producer.produce_status", value=count, tags=tags
            )
        for latency in list(self._ConfluentProducer__callback_latency):
            tags = {"producer_name": self.producer_name or "N/A"}
            self._ConfluentProducer__metrics.timing(
                name="arroyo.producer.callback_latency", value=latency, tags=tags
            )
        self._ConfluentProducer__reset_metrics()

    monkeypatch.setattr(
        consumer, "ConfluentProducer", remedied := class_of(consumer, "ConfluentProducer", {})
    )
    if patched == "before":
        arroyo_metrics_buffer.install()
        arroyo_metrics_buffer.uninstall()
    setattr(remedied, FLUSH_METRICS, remedy)
    arroyo_metrics_buffer.install()
    gc.collect()
    of_other_tests = status().unpatched  # an exception that pytest keeps may refer to them
    producer = closed_after_test(remedied({"log_level": 0}))
    deliver(producer)
    producer.flush(0)
    assert backend.counts() == {"success": 1}
    assert (status().changes, status().unpatched) == ((), of_other_tests)
    assert status().protected == (of_other_tests == 0)
    assert "its method _ConfluentProducer__flush_metrics() was test_install_" in status().reason
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage().endswith(": remove that patch")
    arroyo_metrics_buffer.uninstall()
    assert vars(remedied)[FLUSH_METRICS] is remedy


def test_a_method_that_stays_arroyos_own_may_not_be_anothers(
    cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def theirs(self: Any, callback: Any, _time_of_produce: float) -> Any:
        self._ConfluentProducer__produce_counters["success"] += 1
        return callback

    other = changed(cls, _ConfluentProducer__delivery_callback=theirs)
    monkeypatch.setattr(consumer, "ConfluentProducer", other)
    arroyo_metrics_buffer.install()
    assert status().state == "unknown"
    assert "its method _ConfluentProducer__delivery_callback() is test_" in status().reason


def test_a_count_that_others_spoilt_keeps_no_other_from_being_taken_over(
    cls: Any, backend: ProducerBackend
) -> None:
    producer = made(cls)
    for _ in range(3):
        deliver(producer)
    counters = vars(producer)["_ConfluentProducer__produce_counters"]
    spoilt = {"error": "two", "lost": 1, "late": None}
    counters.update(spoilt)
    latencies = vars(producer)["_ConfluentProducer__callback_latency"]
    latencies[:] = [1.0, "now", 2.0]
    arroyo_metrics_buffer.install()
    producer.flush(0)
    producer.flush(0)
    assert backend.counts() == {"success": 3}
    assert backend.latencies() == [1.0, 2.0]
    assert counters == spoilt
    assert latencies == ["now"]


@pytest.mark.parametrize(
    ("count", "is_taken"),
    [(-1, False), (0, True), (2**64 - 1, True), (2**64, False), (True, False)],
)
def test_a_count_is_taken_over_if_a_buffer_can_have_it(
    cls: Any, backend: ProducerBackend, *, count: int, is_taken: bool
) -> None:
    producer = made(cls)
    counters = vars(producer)["_ConfluentProducer__produce_counters"]
    counters["error"] = count
    arroyo_metrics_buffer.install()
    producer.flush(0)
    assert backend.counts() == ({"error": count} if is_taken else {})
    assert ("error" in counters) is not is_taken


def test_the_base_of_a_subclass_that_an_application_put_in_place_is_put_back_and_patched_again(
    cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arroyo_metrics_buffer.install()
    monkeypatch.setattr(consumer, "ConfluentProducer", type("Subclass", (cls,), {}))
    assert status().state == "patched"
    arroyo_metrics_buffer.uninstall()
    assert status().state == "disabled"
    arroyo_metrics_buffer.install()
    assert status().state == "patched"


def test_a_subclass_that_an_application_put_in_place_counts_as_patched(
    cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arroyo_metrics_buffer.install()
    monkeypatch.setattr(consumer, "ConfluentProducer", type("Subclass", (cls,), {}))
    assert status().state == "patched"


# Shapes that are not arroyo's as known


def changed(cls: Any, **methods: object) -> Any:
    """A class that has arroyo's methods, and others."""
    return type("ConfluentProducer", cls.__bases__, dict(vars(cls)) | methods)


def own(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as if it were written in arroyo's file."""
    return types.FunctionType(function.__code__, vars(consumer), function.__name__)


def other_parameters(self: Any, error: object, message: object) -> None:
    self._ConfluentProducer__produce_counters["success" if error else "error"] += 1
    self._ConfluentProducer__throttled_record()


def with_a_lock(self: Any, timeout: float = -1) -> None:
    with self.lock:
        self._ConfluentProducer__flush_metrics()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda cls: changed(cls, close=own(lambda self: None)), "its method close() is not known"),
        (lambda cls: changed(cls, flush=own(with_a_lock)), "its method flush() is another"),
        (lambda cls: changed(cls, flush=None), "it has no method flush()"),
        (
            lambda cls: changed(
                cls, _ConfluentProducer__metrics_delivery_callback=own(other_parameters)
            ),
            "its method _ConfluentProducer__metrics_delivery_callback() is another",
        ),
        (
            lambda _: type("ConfluentProducer", (), {}),
            "its base is object, not confluent_kafka.Producer",
        ),
        (lambda _: lambda: None, "it is not a class but 'function'"),
    ],
)
def test_a_class_that_is_not_as_known_is_left_alone_with_a_reason_and_one_record(
    cls: Any,
    make: Callable[[Any], Any],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(consumer, "ConfluentProducer", other := make(cls))
    before = dict(vars(other))
    arroyo_metrics_buffer.install()
    arroyo_metrics_buffer.install()
    assert dict(vars(other)) == before
    assert status().state == "unknown"
    assert expected in status().reason
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert expected in record.getMessage()
    arroyo_metrics_buffer.uninstall()
    assert dict(vars(other)) == before


def test_a_producer_whose_metric_has_another_name_is_unknown(
    cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush_metrics = vars(cls)["_ConfluentProducer__flush_metrics"]
    constants = tuple(
        "arroyo.producer.status" if constant == "arroyo.producer.produce_status" else constant
        for constant in flush_metrics.__code__.co_consts
    )
    code = flush_metrics.__code__.replace(co_consts=constants)
    renamed = type(flush_metrics)(code, flush_metrics.__globals__)
    other = changed(cls, _ConfluentProducer__flush_metrics=renamed)
    monkeypatch.setattr(consumer, "ConfluentProducer", other)
    arroyo_metrics_buffer.install()
    assert "its method _ConfluentProducer__flush_metrics() is another" in status().reason


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (confluent_kafka.Producer, "this arroyo uses confluent_kafka's own, which has no metrics"),
        (
            None,
            f"{MODULE} has no ConfluentProducer; look for a newer release of arroyo-metrics-buffer",
        ),
    ],
)
def test_where_there_is_nothing_to_patch_status_says_so(
    cls: Any, other: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cls is consumer.ConfluentProducer
    monkeypatch.setattr(consumer, "ConfluentProducer", other)
    arroyo_metrics_buffer.install()
    assert (status().state, status().reason) == ("missing", reason)


@pytest.fixture(autouse=True)
def nothing_is_left_changed() -> Iterator[None]:
    before = consumer.ConfluentProducer
    yield
    arroyo_metrics_buffer.uninstall()
    assert consumer.ConfluentProducer is before


def forks() -> list[Callable[[], int] | None]:
    """Python's fork(), and one in C, of which Python's hooks know nothing."""
    return [None, ctypes.PyDLL(None).fork] if hasattr(os, "fork") else []


@pytest.mark.parametrize("fork", forks())
@pytest.mark.parametrize("is_known", [True, False])
def test_what_arroyos_methods_counted_before_the_patch_is_reported_by_the_parent_alone(
    cls: Any, backend: ProducerBackend, fork: Callable[[], int] | None, *, is_known: bool
) -> None:
    def child() -> None:
        deliver(producer, "down")
        producer.flush(0)
        assert backend.counts() == {"error": 1}
        assert len(backend.latencies()) == 1

    producer = made(cls)
    deliver(producer)
    arroyo_metrics_buffer.install()
    if is_known:  # and has a buffer
        deliver(producer)
    wait_for_child(fork_child(child, fork))
    producer.flush(0)
    assert backend.counts() == {"success": 1 + is_known}


@pytest.mark.parametrize("fork", forks())
def test_a_child_reports_what_arroyos_methods_count_in_it(
    cls: Any, backend: ProducerBackend, fork: Callable[[], int] | None
) -> None:
    def child() -> None:
        deliver(producer, "down")  # by arroyo's own method, as nobody is known to flush the buffer
        deliver(producer, "down")
        producer._ConfluentProducer__flush_metrics()
        assert backend.counts() == {"error": 2}

    def theirs(producer: Any) -> None:
        arroyos(producer)

    producer = made(cls)
    arroyos = vars(cls)["_ConfluentProducer__flush_metrics"]
    deliver(producer)
    arroyo_metrics_buffer.install()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "flush", lambda *_: 0)
        patch.setattr(cls, "_ConfluentProducer__flush_metrics", theirs)
        wait_for_child(fork_child(child, fork))
    producer.flush(0)
    assert backend.counts() == {"success": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork()")
def test_what_a_child_counts_while_the_package_is_uninstalled_is_sent_after_it_is_installed(
    cls: Any, backend: ProducerBackend
) -> None:
    def child() -> None:
        arroyo_metrics_buffer.uninstall()
        deliver(producer)
        arroyo_metrics_buffer.install()
        producer.flush(0)
        assert backend.counts() == {"success": 1}

    arroyo_metrics_buffer.install()
    producer = made(cls)
    deliver(producer, "down")
    producer.flush(0)
    backend.calls.clear()
    deliver(producer, "down")
    wait_for_child(fork_child(child))
