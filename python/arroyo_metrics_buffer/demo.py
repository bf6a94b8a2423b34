"""The demo: an arroyo consumer on Kafka, with more threads at its metrics buffer.

It copies messages from one topic to another with arroyo's own consumer, processor and producer,
while other threads write to and flush the processor's buffer, and accounts for every increment:
what the buffer is given is tallied in front of it, what it delivers behind it.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
import uuid
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal, NamedTuple, Self, cast
from unittest.mock import patch

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
from arroyo.utils.metrics import Metrics, Tags, configure_metrics, get_metrics
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from . import uninstall

__all__ = ["demo"]

SILENT = {"log_level": 0}  # librdkafka logs emergencies only
PARTITIONS = 4
IN_FLIGHT = 1_000  # messages produced and not delivered yet: bounds memory, costs no throughput
KAFKA_TIMEOUT = 10.0  # seconds for a cluster to answer when topics are made
STOP_TIMEOUT = 30.0  # seconds for all threads to end; twice what the processor waits for deliveries

# Names that arroyo writes too, so that threads meet in one sum, and names of the threads' own.
COUNTERS = ("arroyo.consumer.run.count", "arroyo.consumer.pause", "demo.bytes", "demo.events")
TIMERS = ("arroyo.consumer.poll.time", "arroyo.consumer.join.time", "demo.lookup", "demo.render")
BURST = 20  # writes to each kind between two pauses of a thread
PAUSE = 0.002  # seconds; without pauses the messages get too little of the interpreter
BURSTS_PER_FLUSH = 30  # fewer, and the threads would flush so often that the processor never does

# What may take a consumer days has to happen in seconds here.
FLUSH_INTERVAL = 0.05  # seconds; arroyo's is 1
SWITCH_INTERVAL = 1e-6  # seconds; CPython's is 0.005

End = Literal["done", "out of time", "interrupted"]


def demo(
    *, messages: int, threads: int, seconds: float, unpatched: bool, bootstrap_servers: str | None
) -> int:
    """Run the demo and print its table. Only for the main thread, where Ctrl-C arrives.

    Args:
        messages: How many to copy.
        threads: How many threads write to and flush the processor's buffer meanwhile.
        seconds: When to stop, whatever is left to copy.
        unpatched: Use arroyo's own buffer.
        bootstrap_servers: The Kafka cluster; None for librdkafka's mock cluster in this process.

    Returns:
        The exit status: 0 if there was no error and nothing was lost, 1 if not, 130 after Ctrl-C.
    """
    if unpatched:
        uninstall()
    made, delivered, errors = Tally(), Tally(), Errors()
    with ExitStack() as stack:
        stack.enter_context(quiet_arroyo())
        try:
            servers = stack.enter_context(kafka(bootstrap_servers))
            source, destination = stack.enter_context(topics(servers))
        except KafkaException as error:
            sys.stderr.write(f"The topics can't be made: {error}\n")
            return 1
        buffer = stack.enter_context(instrumented(made, delivered))
        ctrl_c = stack.enter_context(CtrlC())
        pipeline = Pipeline(servers, source, destination, errors)
        pipeline.start(messages, threads)
        try:
            end = watch(pipeline, messages, seconds, ctrl_c)
        finally:
            pipeline.stop()
    accounts = balance(made, delivered)
    sys.stdout.write(table(buffer, pipeline, accounts, errors))
    return verdict(end, messages, pipeline, accounts, errors)


# Kafka


@contextmanager
def kafka(bootstrap_servers: str | None) -> Iterator[str]:
    """The cluster to run on, as bootstrap servers."""
    if bootstrap_servers is not None:
        yield bootstrap_servers
        return
    # Real brokers as far as the protocol goes; they live as long as this producer does.
    mock = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 3, **SILENT})
    brokers = mock.list_topics(timeout=KAFKA_TIMEOUT).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


@contextmanager
def topics(servers: str) -> Iterator[tuple[Topic, Topic]]:
    """A topic to copy from and one to copy to, for this run."""
    run = uuid.uuid4().hex[:8]
    names = [f"arroyo-demo-{run}-{role}" for role in ("source", "destination")]
    admin = AdminClient({"bootstrap.servers": servers, **SILENT})
    cluster = admin.list_topics(timeout=KAFKA_TIMEOUT)
    if cluster.controller_id not in cluster.brokers:
        # The mock cluster: it has no controller, which is who makes and deletes topics. There a
        # topic comes into being, with 4 partitions, when it is first asked for.
        for name in names:
            admin.list_topics(name, timeout=KAFKA_TIMEOUT)
        yield Topic(names[0]), Topic(names[1])
        return
    new = [NewTopic(name, PARTITIONS) for name in names]
    for future in admin.create_topics(new, request_timeout=KAFKA_TIMEOUT).values():
        future.result()
    try:
        await_leaders(servers, names[0])
        yield Topic(names[0]), Topic(names[1])
    finally:
        for future in admin.delete_topics(names, request_timeout=KAFKA_TIMEOUT).values():
            with suppress(KafkaException):
                future.result()


def await_leaders(servers: str, topic: str) -> None:
    """Wait until every partition can tell its offsets, which takes brokers a moment.

    arroyo's consumer asks for them once, and dies if there is no answer.
    """
    consumer = Consumer({"bootstrap.servers": servers, "group.id": f"{topic}-probe", **SILENT})
    deadline = time.monotonic() + KAFKA_TIMEOUT
    waiting = [TopicPartition(topic, index) for index in range(PARTITIONS)]
    while waiting:
        try:
            consumer.get_watermark_offsets(waiting[-1], timeout=KAFKA_TIMEOUT)
            waiting.pop()
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    consumer.close()


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

    def __init__(self, servers: str, errors: Errors) -> None:
        super().__init__(build_kafka_producer_configuration({}, [servers], SILENT))
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
        self.feeder = CountingProducer(servers, errors)
        self.forwarder = CountingProducer(servers, errors)
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
        """Whether all messages are copied, or the processor has died."""
        fed = not self._feeding.is_alive() and self.feeder.in_flight == 0
        copied = self.forwarder.delivered >= self.feeder.delivered
        return (fed and copied) or not self._processing.is_alive()

    def stop(self) -> None:
        """End all threads, then deliver what is left in the buffer."""
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


# Accounts


class Errors:
    """Counts errors by their text, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.texts: Counter[str] = Counter()

    def add(self, where: str, error: BaseException) -> None:
        with self._lock:
            self.texts[": ".join(filter(None, (where, type(error).__name__, str(error))))] += 1

    @contextmanager
    def counted(self, where: str) -> Iterator[None]:
        """Counts the exception that ends the block, instead of letting it pass."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 whatever goes wrong is what the demo shows
            self.add(where, error)


class ThreadSums(threading.local):
    """Sums by metric, each thread its own."""

    def __init__(self, threads: list[defaultdict[str, float]]) -> None:
        # Called once in every thread that comes here.
        self.sums: defaultdict[str, float] = defaultdict(int)
        threads.append(self.sums)


class Tally:
    """Sums by metric, from any thread: ints for counters, floats for timers.

    Exact without a lock: that would keep threads apart that are meant to meet in the buffer.
    """

    def __init__(self) -> None:
        self._threads: list[defaultdict[str, float]] = []
        self._own = ThreadSums(self._threads)

    def add(self, metric: str, value: float) -> None:
        self._own.sums[metric] += value

    def totals(self) -> dict[str, float]:
        """The sums over all threads."""
        totals: defaultdict[str, float] = defaultdict(int)
        for sums in self._threads:
            for metric, value in sums.copy().items():  # whose thread may not have ended
                totals[metric] += value
        return totals


class TallyingBackend(Metrics):
    """A metrics backend that tallies what it is sent."""

    def __init__(self, delivered: Tally) -> None:
        self._delivered = delivered

    def increment(self, name: str, value: float = 1, tags: Tags | None = None) -> None:  # noqa: ARG002
        self._send(name, value)

    def timing(self, name: str, value: float, tags: Tags | None = None) -> None:  # noqa: ARG002
        self._send(name, value)

    def gauge(self, name: str, value: float, tags: Tags | None = None) -> None:
        """Nothing that a buffer sends."""

    def _send(self, name: str, value: float) -> None:
        # Lets other threads run in the middle of a flush, as a backend does that sends a datagram.
        time.sleep(0)
        self._delivered.add(name, value)


def tallying(buffer: Any, made: Tally) -> type:
    """A buffer class that tallies what it is given."""

    class TallyingBuffer(buffer):  # type: ignore[misc]
        def incr_counter(self, metric: str, delta: int) -> None:
            made.add(metric, delta)
            super().incr_counter(metric, delta)

        def incr_timing(self, metric: str, duration: float) -> None:
            # In multiples of 2**-20 s: sums of such floats are exact up to 2**33 s, in whatever
            # order they are added. Only so can made and delivered be compared to the last bit.
            duration = round(duration * 2**20) / 2**20
            made.add(metric, duration)
            super().incr_timing(metric, duration)

    return TallyingBuffer


@contextmanager
def instrumented(made: Tally, delivered: Tally) -> Iterator[str]:
    """Tallies on both sides of arroyo's buffer, and hurries flushes and threads.

    Yields the name of the buffer's class.
    """
    buffer, metrics, interval = processor.MetricsBuffer, get_metrics(), sys.getswitchinterval()
    configure_metrics(TallyingBackend(delivered), force=True)
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        with patch.multiple(
            processor,
            MetricsBuffer=tallying(buffer, made),
            METRICS_FREQUENCY_SEC=FLUSH_INTERVAL,
        ):
            yield f"{buffer.__module__}.{buffer.__qualname__}"
    finally:
        sys.setswitchinterval(interval)
        configure_metrics(metrics, force=True)


class Account(NamedTuple):
    """What became of a metric's increments: counts, or seconds."""

    metric: str
    made: float
    delivered: float

    @property
    def lost(self) -> float:
        """Negative if more was delivered than made."""
        return self.made - self.delivered


def balance(made: Tally, delivered: Tally) -> list[Account]:
    """An account for each metric that the buffer was given."""
    arrived = delivered.totals()
    return [
        Account(metric, total, type(total)(arrived.get(metric, 0)))
        for metric, total in sorted(made.totals().items())
    ]


# The terminal


class CtrlC:
    """Ctrl-C as a flag: a KeyboardInterrupt could strike in the midst of the shutdown it asks for.

    A second Ctrl-C is a KeyboardInterrupt, for those who can't wait.
    """

    def __enter__(self) -> Self:
        self.pressed = False
        self._previous = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _press(self, *_: object) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def quiet_arroyo() -> Iterator[None]:
    """Keeps arroyo's log records and deprecation warnings from the terminal."""
    logger = logging.getLogger("arroyo")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        # It calls utcfromtimestamp(), deprecated from Python 3.12 on: with -W error the processor
        # would die of its first message.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"arroyo\.")
        try:
            yield
        finally:
            logger.setLevel(level)


def watch(pipeline: Pipeline, messages: int, seconds: float, ctrl_c: CtrlC) -> End:
    """Show progress on stderr, once a second, until the run ends; tell how it ended."""
    terminal = sys.stderr.isatty()
    start = shown_at = time.monotonic()
    shown = 0
    while (end := ending(pipeline, start + seconds, ctrl_c)) is None:
        time.sleep(0.1)
        if (passed := time.monotonic() - shown_at) < 1:
            continue
        consumed, produced = pipeline.consumer.consumed, pipeline.forwarder.delivered
        line = (
            f"{time.monotonic() - start:4.0f} s {(consumed - shown) / passed:8,.0f} messages/s"
            f"   {consumed:,} consumed, {produced:,} of {messages:,} produced"
        )
        # On a terminal, the line replaces the previous one.
        sys.stderr.write(f"\r{line}\x1b[K" if terminal else f"{line}\n")
        sys.stderr.flush()
        shown, shown_at = consumed, shown_at + passed
    if terminal:
        sys.stderr.write("\n")
    return end


def ending(pipeline: Pipeline, deadline: float, ctrl_c: CtrlC) -> End | None:
    """How the run has ended; None if it goes on."""
    if ctrl_c.pressed:
        return "interrupted"
    if pipeline.is_done():
        return "done"
    return "out of time" if time.monotonic() >= deadline else None


def table(buffer: str, pipeline: Pipeline, accounts: Sequence[Account], errors: Errors) -> str:
    """The numbers of a run."""
    messages = (pipeline.feeder.delivered, pipeline.consumer.consumed, pipeline.forwarder.delivered)
    rows = [
        ("", "in", "consumed", "produced"),
        ("messages", *map(amount, messages)),
        ("",),
        ("metric", "made", "delivered", "lost"),
        *((a.metric, amount(a.made), amount(a.delivered), amount(a.lost)) for a in accounts),
        ("",),
        ("total", "counters", "timers"),
        ("lost", *(amount(total(accounts, unit, +1)) for unit in (int, float))),
        ("counted twice", *(amount(total(accounts, unit, -1)) for unit in (int, float))),
        ("errors", amount(errors.texts.total())),
    ]
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:{width}}" + "".join(f"{cell:>18}" for cell in row[1:]) for row in rows]
    texts = [f"{count:>8,} x {text}" for text, count in errors.texts.most_common()]
    return "\n".join([f"buffer: {buffer}", "", *(line.rstrip() for line in lines), *texts, ""])


def total(accounts: Sequence[Account], unit: type[float], sign: int) -> float:
    """What counters (int) or timers (float) lost (+1) or counted twice (-1)."""
    return unit(sum(max(sign * a.lost, 0) for a in accounts if isinstance(a.made, unit)))


def amount(value: float) -> str:
    """A count, or seconds."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6f} s"


def verdict(
    end: End, messages: int, pipeline: Pipeline, accounts: Sequence[Account], errors: Errors
) -> int:
    """The exit status, and a word about a run that was cut short."""
    produced = pipeline.forwarder.delivered
    if end != "done":
        sys.stdout.write(f"Stopped ({end}), {max(messages - produced, 0):,} messages not copied.\n")
    if end == "interrupted":
        return 130
    exact = not errors.texts and all(account.lost == 0 for account in accounts)
    copied = produced >= messages if end == "done" else produced > 0
    return 0 if exact and copied else 1
