"""C12 with real producers: the backend gets what librdkafka delivers to its mock cluster."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from arroyo.backends.kafka import KafkaPayload, KafkaProducer
from arroyo.backends.kafka import consumer as arroyo_consumer
from arroyo.types import Topic

import arroyo_metrics_buffer
from arroyo_metrics_buffer._commands.cluster import kafka
from support.backends import ProducerBackend
from support.producers import closed_after_test
from support.threads import run_together

MESSAGES = 100_000
IN_FLIGHT = 10_000  # messages; librdkafka refuses more than 100,000
UNREACHABLE = "127.0.0.1:1"

pytestmark = [
    # From Python 3.12 on, for arroyo's utcfromtimestamp().
    pytest.mark.filterwarnings("ignore:datetime:DeprecationWarning"),
]

consumer: Any = arroyo_consumer


@pytest.fixture(scope="module")
def servers() -> Iterator[str]:
    with kafka(None) as servers:
        yield servers


def configuration(servers: str, **more: object) -> dict[str, Any]:
    return {"bootstrap.servers": servers, "log_level": 0, **more}


def made(servers: str, cls: Any = None, **more: object) -> Any:
    return closed_after_test((cls or consumer.ConfluentProducer)(configuration(servers, **more)))


def until(stopped: threading.Event, job: Callable[[], object]) -> Callable[[], None]:
    def repeat() -> None:
        while not stopped.is_set():
            job()

    return repeat


def poll_all(producer: Any) -> None:
    """Poll for as long as messages or callbacks are waiting, however long a poll waits for them."""
    while len(producer):
        producer.poll(0)


class Callbacks:
    """Counts the calls of delivery callbacks, each of which has its message's number."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.errors = 0

    def of(self, number: int) -> Callable[[object, Any], None]:
        def delivered(error: object, message: Any) -> None:
            assert message.value() == b"%d" % number
            self.errors += error is not None
            self.calls.append(number)

        return delivered


@pytest.mark.usefixtures("tiny_switch_interval")
def test_a_producer_that_is_polled_and_flushed_by_threads_counts_every_delivery_once(
    servers: str, backend: ProducerBackend
) -> None:
    producer = made(servers)
    callbacks, stopped = Callbacks(), threading.Event()

    def produce() -> None:
        try:
            for number in range(MESSAGES):
                while number - len(callbacks.calls) > IN_FLIGHT:
                    producer.poll(0.001)
                producer.produce("polled", b"%d" % number, on_delivery=callbacks.of(number))
            producer.flush()
        finally:
            stopped.set()

    def poll() -> None:
        producer.poll(0.01)

    def flush() -> None:
        producer.flush(0)

    run_together(produce, until(stopped, poll), until(stopped, flush), until(stopped, flush))
    assert producer.flush() == 0
    assert sorted(callbacks.calls) == list(range(MESSAGES))
    assert callbacks.errors == 0
    assert backend.counts() == {"success": MESSAGES}
    assert len(backend.latencies()) == MESSAGES


@pytest.mark.usefixtures("tiny_switch_interval")
def test_arroyos_kafka_producer_has_reported_every_delivery_when_it_is_closed(
    servers: str, backend: ProducerBackend
) -> None:
    producer = made(servers, KafkaProducer)
    worker: Future[None] = vars(producer)["_KafkaProducer__result"]
    flushed = vars(producer)["_KafkaProducer__producer"]
    futures: list[Any] = []
    stopped = threading.Event()

    def produce() -> None:
        try:
            for number in range(MESSAGES):
                if number >= IN_FLIGHT:
                    futures[number - IN_FLIGHT].result(30)
                futures.append(producer.produce(Topic("closed"), KafkaPayload(None, b"value", [])))
        finally:
            stopped.set()

    def flush() -> None:
        flushed.flush(0)

    run_together(produce, until(stopped, flush), until(stopped, flush))
    assert not worker.done()
    producer.close().result(30)
    assert sum(future.exception(0) is None for future in futures) == MESSAGES
    assert backend.counts() == {"success": MESSAGES}
    assert len(backend.latencies()) == MESSAGES


def test_flush_reports_what_it_delivers(servers: str, backend: ProducerBackend) -> None:
    producer = made(servers)
    for _ in range(100):
        producer.produce("flushed", b"value")
    assert backend.calls == []
    assert producer.flush() == 0
    assert backend.counts() == {"success": 100}
    assert len(backend.latencies()) == 100
    assert all(0 <= latency < 30 for latency in backend.latencies())


def test_deliveries_that_fail_are_counted_as_errors(backend: ProducerBackend) -> None:
    callbacks = Callbacks()
    with kafka(None) as servers:
        producer = made(servers, **{"message.timeout.ms": 1_000})
        for number in range(300):
            producer.produce("failing", b"%d" % number, callback=callbacks.of(number))
        assert producer.flush() == 0
    for number in range(300, 500):  # its brokers are gone
        producer.produce("failing", b"%d" % number, callback=callbacks.of(number))
    assert producer.flush() == 0
    assert sorted(callbacks.calls) == list(range(500))
    assert callbacks.errors == 200
    assert backend.counts() == {"success": 300, "error": 200}
    assert len(backend.latencies()) == 500


def test_an_error_in_a_users_callback_is_raised_as_before_and_its_delivery_is_reported(
    backend: ProducerBackend,
) -> None:
    producer = made(UNREACHABLE)

    def fail(_error: object, _message: object) -> None:
        raise ZeroDivisionError

    producer.produce("raising", b"value", on_delivery=fail)
    producer.purge()
    with pytest.raises(ZeroDivisionError):
        producer.flush()
    assert backend.counts() == {"error": 1}
    producer.produce("raising", b"value", on_delivery=fail)
    producer.purge()
    with pytest.raises(ZeroDivisionError):
        poll_all(producer)
    producer.flush(0)
    assert backend.counts() == {"error": 2}


def test_callback_takes_precedence_over_its_alias(backend: ProducerBackend) -> None:
    producer = made(UNREACHABLE)
    called: Counter[str] = Counter()

    def calls(name: str) -> Callable[[object, object], None]:
        return lambda _error, _message: called.update([name])

    producer.produce("alias", on_delivery=calls("on_delivery"), callback=calls("callback"))
    producer.produce("alias", on_delivery=calls("on_delivery"))
    producer.produce("alias")
    producer.purge()
    producer.flush()
    assert called == {"callback": 1, "on_delivery": 1}
    assert backend.counts() == {"error": 3}


def test_a_metrics_outage_that_is_logged_stops_neither_callbacks_nor_deliveries(
    servers: str, backend: ProducerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "METRICS_FREQUENCY_SEC", 0.0)  # so that each delivery flushes
    arroyo_metrics_buffer.install(on_backend_error="log")
    backend.accepts = 0
    producer = made(servers, KafkaProducer)
    futures = [
        producer.produce(Topic("outage"), KafkaPayload(None, b"value", [])) for _ in range(100)
    ]
    for future in futures:
        assert future.result(30)
    backend.accepts = math.inf
    producer.close().result(30)
    assert backend.counts() == {"success": 100}
    assert len(backend.latencies()) == 100


def test_messages_that_were_produced_before_the_patch_are_reported_once(
    servers: str, backend: ProducerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "METRICS_FREQUENCY_SEC", math.inf)
    arroyo_metrics_buffer.uninstall()

    class Subclass(consumer.ConfluentProducer):  # type: ignore[misc]
        pass

    producers = [made(servers, cls) for cls in (consumer.ConfluentProducer, Subclass)]
    for producer in producers:
        for _ in range(10):
            producer.produce("early", b"value")
        while not vars(producer)["_ConfluentProducer__produce_counters"]:
            producer.poll(0.1)  # some are counted by arroyo's own methods
        for _ in range(10):
            producer.produce("early", b"value")
    arroyo_metrics_buffer.install()
    for producer in producers:
        producer.flush()
    assert backend.counts() == {"success": 40}
    assert len(backend.latencies()) == 40
