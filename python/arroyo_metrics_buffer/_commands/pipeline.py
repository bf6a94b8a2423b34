"""The clients and the threads of the demo."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import cast

from arroyo.backends.kafka import (
    KafkaConsumer,
    KafkaPayload,
    KafkaProducer,
    build_kafka_consumer_configuration,
    build_kafka_producer_configuration,
)
from arroyo.processing import processor
from arroyo.processing.strategies import (
    CommitOffsets,
    ProcessingStrategy,
    ProcessingStrategyFactory,
    Produce,
)
from arroyo.types import BrokerValue, Commit, FilteredPayload, Partition, Topic

from .accounts import Errors
from .cluster import SILENT

IN_FLIGHT = 1_000  # messages produced and not delivered yet: bounds memory, costs no throughput
STOP_TIMEOUT = 30.0  # seconds for all threads to end; twice what the processor waits for deliveries

# Names that arroyo writes too, so that threads meet in one sum, and names of the threads' own.
COUNTERS = ("arroyo.consumer.run.count", "arroyo.consumer.pause", "demo.bytes", "demo.events")
TIMERS = ("arroyo.consumer.poll.time", "arroyo.consumer.join.time", "demo.lookup", "demo.render")
BURST = 20  # writes to each kind between two pauses of a thread
PAUSE = 0.002  # seconds; without pauses the messages get too little of the interpreter
BURSTS_PER_FLUSH = 30  # fewer, and the threads would flush so often that the processor never does


class CountingConsumer(KafkaConsumer):
    """arroyo's consumer, counting what it hands to the processor, the only one that polls it."""

    def __init__(self, servers: str, group: str) -> None:
        super().__init__(
            build_kafka_consumer_configuration(
                {}, group, "earliest", bootstrap_servers=[servers], override_params=SILENT
            )
        )
        self.consumed = 0

    def poll(self, timeout: float | None = None) -> BrokerValue[KafkaPayload] | None:
        message = super().poll(timeout)
        if message is not None:
            self.consumed += 1
        return message


class CountingProducer(KafkaProducer):
    """arroyo's producer, counting its deliveries."""

    def __init__(self, servers: str, name: str, errors: Errors) -> None:
        override = {"client.id": name, **SILENT}
        super().__init__(build_kafka_producer_configuration({}, [servers], override))
        self._errors = errors
        # A future calls back in the thread that polls librdkafka or, if it is done already, in the
        # one that produces.
        self._lock = threading.Lock()
        self.in_flight = 0
        self.delivered = 0

    def produce(
        self, destination: Topic | Partition, payload: KafkaPayload
    ) -> Future[BrokerValue[KafkaPayload]]:
        future = cast("Future[BrokerValue[KafkaPayload]]", super().produce(destination, payload))
        with self._lock:
            self.in_flight += 1
        future.add_done_callback(self._count)
        return future

    def flush(self) -> None:
        """Flush what this wraps, as applications do that have a ``ConfluentProducer``."""
        vars(self)["_KafkaProducer__producer"].flush(0)

    def is_polled(self) -> bool:
        """Whether the thread lives that calls back."""
        return not vars(self)["_KafkaProducer__result"].done()

    def _count(self, future: Future[BrokerValue[KafkaPayload]]) -> None:
        error = future.exception()
        with self._lock:
            self.delivered += error is None
            self.in_flight -= 1
        if error is not None:
            self._errors.add("delivery", error)


class Copy(ProcessingStrategyFactory[FilteredPayload | KafkaPayload]):
    """The processor's job: produce each message to another topic, then commit its offset."""

    def __init__(self, producer: KafkaProducer, topic: Topic) -> None:
        self._producer = producer
        self._topic = topic

    def create_with_partitions(
        self,
        commit: Commit,
        partitions: Mapping[Partition, int],  # noqa: ARG002
    ) -> ProcessingStrategy[FilteredPayload | KafkaPayload]:
        return Produce(self._producer, self._topic, CommitOffsets(commit))


class Pipeline:
    """The clients and the threads of a run."""

    def __init__(self, servers: str, source: Topic, destination: Topic, errors: Errors) -> None:
        self._source = source
        self._errors = errors
        self._stopping = threading.Event()
        self.feeder = CountingProducer(servers, "feeder", errors)
        self.forwarder = CountingProducer(servers, "forwarder", errors)
        self.consumer = CountingConsumer(servers, f"{source.name}-readers")
        self._processor = processor.StreamProcessor(
            self.consumer, source, Copy(self.forwarder, destination), join_timeout=STOP_TIMEOUT / 2
        )
        self._buffer = vars(self._processor)["_StreamProcessor__metrics_buffer"]

    def start(self, messages: int, threads: int) -> None:
        """Start to produce, copy, write and flush."""
        self._processing = self._thread("processor", self._processor.run)
        self._feeding = self._thread("feeder", self._feed, messages)
        self._writing = [self._thread("writer", self._write) for _ in range(threads)]

    def is_done(self) -> bool:
        """Whether all messages are copied, or one of arroyo's threads has died."""
        lives = (
            self._processing.is_alive() and self.feeder.is_polled() and self.forwarder.is_polled()
        )
        fed = not self._feeding.is_alive() and self.feeder.in_flight == 0
        copied = self.forwarder.delivered >= self.feeder.delivered
        return (fed and copied) or not lives

    def stop(self) -> None:
        """End all threads, then deliver what is left in the buffers."""
        deadline = time.monotonic() + STOP_TIMEOUT
        self._stopping.set()
        self._join(self._feeding, *self._writing, deadline=deadline)
        self._processor.signal_shutdown()
        self._join(self._processing, deadline=deadline)
        # Needed after the processor's own last flush: then it closes the consumer, which calls
        # back and makes one more increment. Nor has a processor that died flushed.
        with self._errors.counted("last flush"):
            self._buffer.flush()
        for producer in (self.feeder, self.forwarder):
            with self._errors.counted("producer"):
                producer.close().result(max(deadline - time.monotonic(), 0))

    def _feed(self, messages: int) -> None:
        for number in range(messages):
            while self.feeder.in_flight >= IN_FLIGHT and not self._stopping.wait(PAUSE):
                pass
            if self._stopping.is_set():
                return
            key = b"%d" % number  # spreads the messages over the partitions
            self.feeder.produce(self._source, KafkaPayload(key, b"message " + key, []))

    def _write(self) -> None:
        bursts = 0
        while not self._stopping.wait(PAUSE):
            bursts += 1
            with self._errors.counted("writer"):
                for turn in range(BURST):
                    self._buffer.incr_counter(COUNTERS[turn % len(COUNTERS)], turn)
                    self._buffer.incr_timing(TIMERS[turn % len(TIMERS)], turn / 1_000)
                if bursts % BURSTS_PER_FLUSH == 0:
                    self._buffer.flush()
                    self.feeder.flush()
                    self.forwarder.flush()

    def _thread(self, name: str, work: Callable[..., None], *args: object) -> threading.Thread:
        def counted() -> None:
            with self._errors.counted(name):
                work(*args)

        # A daemon, so that a second Ctrl-C need not wait for it.
        thread = threading.Thread(target=counted, name=name, daemon=True)
        thread.start()
        return thread

    def _join(self, *threads: threading.Thread, deadline: float) -> None:
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                self._errors.add(thread.name, TimeoutError("has not ended"))
