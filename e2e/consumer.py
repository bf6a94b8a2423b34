"""A consumer: it copies messages from one topic to another until it gets SIGTERM.

Meanwhile other threads write to and flush its processor's buffer, and flush its producer. What the
buffers are given is entered in a ledger, what they deliver goes to a StatsD server.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from arroyo.backends.kafka import (
    KafkaConsumer,
    KafkaPayload,
    KafkaProducer,
    build_kafka_consumer_configuration,
    build_kafka_producer_configuration,
)
from arroyo.backends.kafka import consumer as kafka
from arroyo.errors import ConsumerError
from arroyo.processing import processor
from arroyo.processing.strategies import (
    CommitOffsets,
    ProcessingStrategy,
    ProcessingStrategyFactory,
    Produce,
    RunTask,
    RunTaskWithMultiprocessing,
)
from arroyo.processing.strategies.run_task_with_multiprocessing import MultiprocessingPool
from arroyo.types import BrokerValue, Commit, FilteredPayload, Message, Partition, Topic
from arroyo.utils.metrics import Metrics, Tags, configure_metrics
from arroyo.utils.retries import RetryException
from confluent_kafka import KafkaException
from datadog.dogstatsd.base import DogStatsd

from arroyo_metrics_buffer import status
from ledger import CALLBACK_LATENCY, COUNTERS, FAILED, SUCCEEDED, TIMERS, Ledger

SOURCE, DESTINATION, LAST, GROUP = Topic("source"), Topic("destination"), Topic("last"), "e2e"
# A consumer that is gone without a word is missed after six seconds, the least a broker admits.
SESSION = {"session.timeout.ms": 6_000, "heartbeat.interval.ms": 1_000}
# What arroyo raises when it can't deliver a message, commit an offset or read from the broker.
BROKER_ERRORS = (ConsumerError, KafkaException, RetryException)
SILENT = {"log_level": 0}  # librdkafka logs emergencies only
OUTAGE = {"message.timeout.ms": 3_000}  # until a delivery fails
END_TIMEOUT = 30.0  # seconds for threads to end, for deliveries and packets to be sent

# Seconds between two turns of a thread. Some pauses of those that flush are longer than arroyo's
# flush interval, 1 s: that leaves flushes to calls of the processor and of those that write.
WRITE_PAUSES = (0.004,)
FLUSH_PAUSES = (0.001,) * 20 + (0.05,) * 10 + (1.5,)
FORK_PAUSES = (0.3,)
PRODUCE_PAUSES = (0.01,)
SAMPLE_PAUSES = (0.05,)
WRITES = 40  # a turn
LAST_MESSAGES = 1_000
SWITCH_INTERVAL = 1e-6  # seconds; CPython's is 0.005


class Backend(Metrics):
    """A metrics backend like Sentry's: tags become DogStatsD's, and datadog's client sends.

    Left to itself that client drops a packet that it can't send at once. Here it waits, and what it
    drops all the same is known from its telemetry, which it keeps for itself. It sends a packet a
    call, before the call returns; or, in the background, packets of many metrics from threads of
    its own, which a fork would have to wait for.
    """

    def __init__(self, number: int, server: Path, ledger: Ledger, *, background: bool) -> None:
        self._ledger = ledger
        self._background = background
        self._client = DogStatsd(
            socket_path=str(server),
            socket_timeout=END_TIMEOUT,
            constant_tags=[f"consumer:{number}"],
            disable_buffering=not background,
            disable_background_sender=not background,
            telemetry_min_flush_interval=2**31,
            origin_detection_enabled=False,  # it adds what this server does not know
        )
        self._inherited = 0
        os.register_at_fork(after_in_child=self._inherit)

    def increment(self, name: str, value: float = 1, tags: Tags | None = None) -> None:
        self._client.increment(name, value, listed(tags))
        self._count()

    def gauge(self, name: str, value: float, tags: Tags | None = None) -> None:
        self._client.gauge(name, value, listed(tags))
        self._count()

    def timing(self, name: str, value: float, tags: Tags | None = None) -> None:
        self._client.timing(name, value, listed(tags))
        self._count()

    def stop(self) -> None:
        """Send what the client still has, and enter what it dropped."""
        self._client.stop(END_TIMEOUT)
        dropped = self._client.packets_dropped - self._inherited
        self._ledger.add("dropped", dropped)
        self._ledger.add("packets", self._client.packets_sent if self._background else -dropped)

    def _inherit(self) -> None:
        """In a child: what was dropped until now is its parent's."""
        self._inherited = self._client.packets_dropped

    def _count(self) -> None:
        if not self._background:
            self._ledger.add("packets")


def listed(tags: Tags | None) -> list[str]:
    return [f"{key}:{value}" for key, value in (tags or {}).items()]


@contextmanager
def entered(ledger: Ledger) -> Generator[None]:
    """Has arroyo make buffers, producers and consumers that enter what they are given."""
    buffer: Any = processor.MetricsBuffer
    producer: Any = kafka.ConfluentProducer

    class EnteringBuffer(buffer):  # type: ignore[misc]
        def incr_counter(self, metric: str, delta: int) -> None:
            ledger.add(metric, delta)
            super().incr_counter(metric, delta)

        def incr_timing(self, metric: str, duration: float) -> None:
            ledger.add(metric, duration)
            super().incr_timing(metric, duration)

    class EnteringProducer(producer):  # type: ignore[misc]
        def _ConfluentProducer__metrics_delivery_callback(  # noqa: N802 - arroyo's name for it
            self, error: object, message: object, sent_at: float
        ) -> None:
            ledger.add(SUCCEEDED if error is None else FAILED)
            ledger.add(CALLBACK_LATENCY)
            super()._ConfluentProducer__metrics_delivery_callback(error, message, sent_at)

    poll = KafkaConsumer.poll

    def entering_poll(
        consumer: KafkaConsumer, timeout: float | None = None
    ) -> BrokerValue[KafkaPayload] | None:
        message = poll(consumer, timeout)
        ledger.add("messages", message is not None)
        return message

    with (
        patch.object(processor, "MetricsBuffer", EnteringBuffer),
        patch.object(kafka, "ConfluentProducer", EnteringProducer),
        patch.object(KafkaConsumer, "poll", entering_poll),
    ):
        yield


class Copy(ProcessingStrategyFactory[KafkaPayload]):
    """The processor's job: stamp each message, produce it to another topic, commit its offset."""

    def __init__(self, number: int, producer: KafkaProducer, ledger: Ledger, workers: int) -> None:
        self._stamp = functools.partial(stamp, number)
        self._producer = producer
        self._ledger = ledger
        self._pool = MultiprocessingPool(workers) if workers else None

    def create_with_partitions(
        self,
        commit: Commit,
        partitions: Mapping[Partition, int],  # noqa: ARG002
    ) -> ProcessingStrategy[FilteredPayload | KafkaPayload]:
        self._ledger.add("assignments")
        produce = Produce(self._producer, DESTINATION, CommitOffsets(commit))
        if self._pool is None:
            return RunTask(self._stamp, produce)
        return RunTaskWithMultiprocessing(
            self._stamp,
            produce,
            max_batch_size=100,
            max_batch_time=0.2,
            pool=self._pool,
            input_block_size=2**20,
            output_block_size=2**20,
            spawn_shared_memory_process=False,  # but fork it, from amid all threads
        )

    def shutdown(self) -> None:
        if self._pool is not None:
            self._pool.close()


def stamp(number: int, message: Message[KafkaPayload]) -> KafkaPayload:
    """The message's key, with the consumer and the process that it went through."""
    return KafkaPayload(message.payload.key, b"%d %d" % (number, os.getpid()), [])


class Threads:
    """Threads that do something again and again until they are stopped."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def repeat(self, turn: Callable[..., object], *args: Any, pauses: tuple[float, ...]) -> None:
        def run() -> None:
            while not self._stopping.wait(random.choice(pauses)):
                with self.noted():
                    turn(*args)

        self._threads.append(threading.Thread(target=run, name=turn.__name__, daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(END_TIMEOUT)
            if thread.is_alive():
                raise TimeoutError(f"{thread.name} has not ended")

    @contextmanager
    def noted(self) -> Generator[None]:
        """Notes the exception that ends the block, instead of letting it pass."""
        try:
            yield
        except Exception:  # noqa: BLE001 - whatever goes wrong counts
            traceback.print_exc()
            self._ledger.add("errors")


def write(buffer: Any) -> None:
    for number in range(WRITES):
        buffer.incr_counter(COUNTERS[number % len(COUNTERS)], number)
        buffer.incr_timing(TIMERS[number % len(TIMERS)], number / 1_000)


def fork(buffer: Any, backend: Backend, threads: Threads) -> None:
    """Have a child write and flush: if it had what is pending here, that would be sent twice."""
    if pid := os.fork():
        os.waitpid(pid, 0)
        return
    with threads.noted():
        write(buffer)
        buffer.flush()
        backend.stop()
    os._exit(0)


def produce(producer: KafkaProducer) -> None:
    producer.produce(LAST, KafkaPayload(None, b"", []))


def produce_and_close(producer: KafkaProducer) -> None:
    """Close the producer with messages under way: its last flush delivers them, and reports it."""
    for _ in range(LAST_MESSAGES):
        produce(producer)
    producer.close().result(END_TIMEOUT)


def pipeline(
    options: argparse.Namespace, ledger: Ledger
) -> tuple[processor.StreamProcessor[KafkaPayload], KafkaProducer]:
    """What an application makes of arroyo."""
    servers = [options.servers]
    settings: dict[str, Any] = {"client.id": f"consumer-{options.number}", **SILENT}
    if options.outage:
        settings |= OUTAGE
    producer = KafkaProducer(build_kafka_producer_configuration({}, servers, settings))
    consumer = KafkaConsumer(
        build_kafka_consumer_configuration(
            {}, GROUP, "earliest", bootstrap_servers=servers, override_params=SILENT | SESSION
        )
    )
    copy = Copy(options.number, producer, ledger, options.workers)
    return processor.StreamProcessor(consumer, SOURCE, copy), producer


def run(stream: processor.StreamProcessor[KafkaPayload], ledger: Ledger) -> None:
    """Run the processor until it is told to stop, or ends for the broker."""
    try:
        stream.run()
    except BROKER_ERRORS:
        traceback.print_exc()
        ledger.add("ended")


def main(options: argparse.Namespace) -> None:
    sys.setswitchinterval(SWITCH_INTERVAL)
    ledger = Ledger(options.ledger)
    ledger.add("patched", sum(target.state == "patched" for target in status().targets))
    os.register_at_fork(after_in_parent=functools.partial(ledger.add, "forks"))
    backend = Backend(options.number, options.statsd, ledger, background=options.background)
    configure_metrics(backend)
    threads = Threads(ledger)
    with entered(ledger):
        stream, producer = pipeline(options, ledger)
        buffer = vars(stream)["_StreamProcessor__metrics_buffer"]

        def terminate(*_: object) -> None:
            ledger.add("signals")
            stream.signal_shutdown()

        signal.signal(signal.SIGTERM, terminate)
        for _ in range(2):
            threads.repeat(write, buffer, pauses=WRITE_PAUSES)
            threads.repeat(buffer.flush, pauses=FLUSH_PAUSES)
        wrapped = vars(producer)["_KafkaProducer__producer"]
        threads.repeat(wrapped.flush, 0, pauses=FLUSH_PAUSES)
        threads.repeat(ledger.sample, pauses=SAMPLE_PAUSES)
        if options.forking:
            threads.repeat(fork, buffer, backend, threads, pauses=FORK_PAUSES)
        if options.outage:
            threads.repeat(produce, producer, pauses=PRODUCE_PAUSES)
        with threads.noted():
            run(stream, ledger)
        with threads.noted():
            threads.stop()
        with threads.noted():
            produce_and_close(producer)
        # The processor flushes before it closes the consumer, which calls back once more. After an
        # exception it does not flush at all.
        with threads.noted():
            buffer.flush()
        backend.stop()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int)
    parser.add_argument("servers", help="Kafka's bootstrap servers")
    parser.add_argument("statsd", type=Path, help="a Unix datagram socket")
    parser.add_argument("ledger", type=Path, help="a file")
    parser.add_argument("--workers", type=int, default=0, help="processes; none without")
    parser.add_argument("--forking", action="store_true", help="have children write and flush too")
    parser.add_argument("--background", action="store_true", help="send from other threads")
    parser.add_argument("--outage", action="store_true", help="have deliveries fail in one")
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
