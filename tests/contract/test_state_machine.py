"""C1, C2, C4, C6, C7, C9: any sequence of calls does to a buffer what it does to plain dicts.

Several threads carry out what Hypothesis thinks of, one step after the other. The backend decides
nothing: a thread that gets into it reports the call and waits there until it is told to accept it,
to raise, or to call the buffer again. So a backend may be slow, fail at any entry, and call in to
any depth, and nothing depends on chance or time.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, Literal, NamedTuple, TypeVar
from unittest import mock

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer
from arroyo_metrics_buffer._core import DeliveryBuffer
from support.backends import LATENCY, STATUS, Call, Outage, ProducerBackend, Recorder, TaggedCall
from support.hypothesis_settings import settings
from support.new_interpreter import in_new_interpreter, note_attempt
from support.threads import DEADLINE
from support.times import UNIT

MAX_COUNT = 2**63 - 1
SECONDS_BETWEEN_RECORDS = 60
LOGGER = logging.getLogger("arroyo_metrics_buffer")

AnyCall = TypeVar("AnyCall", Call, TaggedCall)


class Name(str):
    """A name that is no plain str."""

    __slots__ = ()


def another(text: str) -> str:
    """An equal string, which is another object if CPython has more than one of it."""
    return f"{text} "[:-1]


# Few enough to meet again, and several times as many as are found by identity.
FEW_NAMES = ["a", "", "\ud800"]
MANY_NAMES = [
    *FEW_NAMES,
    "µ",
    "\x00",
    "a\x00",
    "\udc00\ud800",
    *(f"arroyo.consumer.{i}" for i in range(20)),
]
names = st.builds(
    lambda text, form: form(text),
    st.sampled_from(FEW_NAMES) | st.sampled_from(MANY_NAMES),
    st.sampled_from([sys.intern, another, Name]),
)
DELTAS_NEAR_64_BITS = [
    -MAX_COUNT - 2,
    -MAX_COUNT - 1,
    -MAX_COUNT,
    MAX_COUNT - 1,
    MAX_COUNT,
    MAX_COUNT + 1,
    10**30,
]
deltas = st.integers(-3, 3) | st.booleans() | st.sampled_from(DELTAS_NEAR_64_BITS)
durations = (
    st.integers(-(2**20), 2**20).map(lambda units: UNIT * units)
    | st.integers(-3, 3)
    | st.booleans()
    | st.sampled_from([-0.0, math.inf, -math.inf, math.nan])
)
errors = st.sampled_from(
    [Outage, KeyboardInterrupt, SystemExit, GeneratorExit, BaseException, TypeError, StopIteration]
)
WORKERS = 3
any_worker = st.integers(0, WORKERS - 1)

Order = Callable[[], object] | BaseException | None


class Worker(threading.Thread):
    """A thread that does as it is told, inside a backend too.

    An order is something to call, an exception to leave the backend with, or None to accept.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._reports: SimpleQueue[object] = SimpleQueue()
        self._inside = 0
        self._is_dismissed = False
        self.start()

    def tell(self, order: Order) -> object:
        """What came of an order: an entry into a backend, an exception, or what a call returned."""
        self._orders.put(order)
        return self._reports.get(timeout=DEADLINE)

    def run(self) -> None:
        while (order := self._orders.get()) is not None:
            if isinstance(order, BaseException):
                raise order
            try:
                report = order()
            except BaseException as error:  # noqa: BLE001 - the machine wants to know it
                report = error
            self._reports.put(report)

    def enter(self, entry: object) -> None:
        """Report that a backend was called and stay inside until told."""
        if not self._is_dismissed:
            self._inside += 1
            self._reports.put(entry)
            try:
                self.run()
            finally:
                self._inside -= 1

    def dismiss(self) -> None:
        """Let it out of all backends, and end."""
        self._is_dismissed = True
        for _ in range(self._inside + 1):
            self._orders.put(None)
        self.join(DEADLINE)
        assert not self.is_alive(), "a thread hangs"


def enter(backend: object, call: Call | TaggedCall) -> None:
    worker = threading.current_thread()
    assert isinstance(worker, Worker)
    worker.enter((backend, exact(call)))


class ToldBackend(Recorder):
    """Accepts a call when its thread is told to."""

    def timing(self, name: str, value: float) -> None:
        enter(self, Call("timing", name, value))
        super().timing(name, value)

    def increment(self, name: str, value: int) -> None:
        enter(self, Call("increment", name, value))
        super().increment(name, value)


class ToldProducerBackend(ProducerBackend):
    """The same for a producer."""

    def _record(self, method: str, name: str, value: float, tags: dict[str, str]) -> None:
        enter(self, TaggedCall(method, name, value, tags))
        super()._record(method, name, value, tags)


def exact(call: Call | TaggedCall) -> tuple[object, ...]:
    """What is equal for equal calls only: of the same object, and with a value of the same type."""
    identity = id(call.name) if isinstance(call, Call) else None
    method, name, value, *tags = call
    return method, identity, name, repr(value), tags


class Log(logging.Handler):
    """Keeps the records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Flush(NamedTuple, Generic[AnyCall]):
    """One that is under way."""

    backend: Any
    rest: list[AnyCall]
    began: float
    sends: bool


class OutageModel:
    """What is told of an outage."""

    def __init__(self) -> None:
        self.told: float | None = None

    def failed(self, now: float) -> int | None:
        """The level of a record, if there is one to make."""
        first = self.told is None
        if self.told is not None and abs(now - self.told) < SECONDS_BETWEEN_RECORDS:
            return None
        self.told = now
        return logging.ERROR if first else logging.WARNING

    def ends(self) -> bool:
        """Whether a flush that was accepted ends one."""
        ended, self.told = self.told is not None, None
        return ended


class Machine(RuleBasedStateMachine, Generic[AnyCall]):
    """What the buffers have in common: backends, outages, and a clock."""

    buffer: Any

    def __init__(self) -> None:
        super().__init__()
        note_attempt(type(self).__name__)
        self.workers: list[Worker] = [Worker() for _ in range(WORKERS)]
        self.flushes: list[list[Flush[AnyCall]]] = [[] for _ in self.workers]
        self.sent: list[AnyCall] = []
        self.accepted: list[AnyCall] = []
        self.now: float = 0.0
        self.last_flush: float = 0.0
        self.interval: float = math.inf
        self.has_clock: bool = True
        self.outage: OutageModel = OutageModel()
        self.levels: list[int] = []  # of the records that there should be
        self.given: list[Exception] = []  # what the callable got
        self.given_by_model: list[type[BaseException]] = []
        self.log: Log = Log()
        LOGGER.addHandler(self.log)
        self.errors_are(on_backend_error="raise")

    def teardown(self) -> None:
        LOGGER.removeHandler(self.log)
        for worker in self.workers:
            worker.dismiss()

    @abstractmethod
    def take(self) -> list[AnyCall]:
        """The calls that the next flush makes, if it is now."""

    @abstractmethod
    def put_back(self, rest: list[AnyCall]) -> None:
        """What a flush could not send is pending before what has come since."""

    @abstractmethod
    def order_to_flush(self) -> tuple[Order, object]:
        """A flush, and the backend that it sends to, None if there is none."""

    def clock(self) -> float:
        return self.now

    def due(self) -> bool:
        """Whether this call has to flush; another one at the same time has not."""
        due = self.interval <= 0 or self.now - self.last_flush > self.interval
        if due:
            self.last_flush = self.now
        return due

    def begin_flush(self, worker: int, backend: object) -> object:
        self.last_flush = self.now
        began = self.now if self.has_clock else 0.0
        taken = self.take()
        flush = Flush(backend, taken, began, sends=bool(taken))
        if backend is None:
            error = AttributeError()
            return error if self.fail_flush(flush, error) else None
        self.flushes[worker].append(flush)
        return self.go_on(worker)

    def go_on(self, worker: int) -> object:
        """What comes next in the flush that the worker is in."""
        flush = self.flushes[worker][-1]
        if flush.rest:
            return flush.backend, exact(flush.rest[0])
        self.flushes[worker].pop()
        if flush.sends and self.outage.ends() and self.on_backend_error != "raise":
            self.levels.append(logging.WARNING)
        return None

    def fail_flush(self, flush: Flush[AnyCall], error: BaseException) -> bool:
        """Whether its error is raised."""
        self.put_back(flush.rest)
        if not isinstance(error, Exception) or self.on_backend_error == "raise":
            self.levels.append(logging.WARNING)
            return True
        if (level := self.outage.failed(flush.began)) is not None:
            self.levels.append(level)
        if self.on_backend_error == "call":
            self.given_by_model.append(type(error))
        return False

    def tell(self, worker: int, order: Order, expected: object) -> None:
        report = self.workers[worker].tell(order)
        if isinstance(expected, AttributeError | OverflowError):  # not one that a backend raised
            assert type(report) is type(expected)
        else:
            assert report == expected

    def is_anyone_inside(self) -> bool:
        return any(self.flushes)

    def inside(self, worker: int) -> int:
        """One of those that are inside a backend."""
        while not self.flushes[worker]:
            worker = (worker + 1) % WORKERS
        return worker

    @rule(worker=any_worker)
    def flush(self, worker: int) -> None:
        order, backend = self.order_to_flush()
        self.tell(worker, order, self.begin_flush(worker, backend))

    @precondition(is_anyone_inside)
    @rule(worker=any_worker, count=st.integers(1, 10))
    def accept(self, worker: int, count: int) -> None:
        worker = self.inside(worker)
        flushes = self.flushes[worker]
        flush = flushes[-1]
        while count and flushes and flushes[-1] is flush:
            count -= 1
            self.sent.append(flush.rest.pop(0))
            self.tell(worker, None, self.go_on(worker))

    @precondition(is_anyone_inside)
    @rule(worker=any_worker, error=errors)
    def fail(self, worker: int, error: type[BaseException]) -> None:
        worker = self.inside(worker)
        raised = error()
        is_raised = self.fail_flush(self.flushes[worker].pop(), raised)
        self.tell(worker, raised, raised if is_raised else None)

    @rule(
        # Backwards too, and in quarters, of which many differences are exactly the interval.
        seconds=st.integers(-4, 8).map(lambda quarters: quarters / 4)
        | st.sampled_from([math.nextafter(1, 2), 30.0, 60.0, -60.0, math.inf, -1e300])
    )
    def pass_time(self, seconds: float) -> None:
        self.now = max(-1e300, min(self.now + seconds, 1e300))

    @rule(on_backend_error=st.sampled_from(["raise", "log", "call"]))
    def errors_are(self, on_backend_error: Literal["raise", "log", "call"]) -> None:
        self.on_backend_error = on_backend_error
        arroyo_metrics_buffer.install(
            on_backend_error=self.given.append if on_backend_error == "call" else on_backend_error
        )

    @invariant()
    def each_outage_left_its_records(self) -> None:
        assert [record.levelno for record in self.log.records] == self.levels
        tracebacks = [bool(record.exc_info) for record in self.log.records]
        assert tracebacks == [level == logging.ERROR for level in self.levels]

    @invariant()
    def the_callable_got_each_error_in_its_time(self) -> None:
        assert [type(error) for error in self.given] == self.given_by_model

    @invariant()
    def what_was_sent_is_the_models(self) -> None:
        assert [exact(call) for call in self.accepted] == [exact(call) for call in self.sent]


Totals = dict[Literal["timing", "increment"], dict[str, float]]


def merged(*oldest_first: Totals) -> Totals:
    """Sums by name, which keep the name that came first, and its place."""
    sums: Totals = {"timing": {}, "increment": {}}
    for totals in oldest_first:
        for method, by_name in totals.items():
            for name, value in by_name.items():
                sums[method][name] = sums[method].get(name, 0) + value
    return sums


def as_calls(totals: Totals) -> list[Call]:
    return [
        Call(method, name, value)
        for method, by_name in totals.items()
        for name, value in by_name.items()
    ]


def as_totals(calls: list[Call]) -> Totals:
    return merged(*({method: {name: value}} for method, name, value in calls))


class CountsFlushes(MetricsBuffer):
    flushes = 0

    def flush(self) -> None:
        self.flushes += 1
        super().flush()


class MetricsBufferMachine(Machine[Call]):
    """With one shard, and with one for each thread beside the first, which totals go back to."""

    buffer: MetricsBuffer

    @initialize(
        cls=st.sampled_from([MetricsBuffer, CountsFlushes]),
        interval=st.sampled_from([None, 0.0, 1.0, math.inf]),
        sharded=st.booleans(),
    )
    def make(self, cls: type[MetricsBuffer], interval: float | None, sharded: bool) -> None:  # noqa: FBT001
        self.backend: ToldBackend | None = None
        self.interval = math.inf if interval is None else interval
        self.has_clock = interval is not None
        self.begun_flushes = 0
        self.made = merged()
        # Asked when a buffer is made, and new in CPython 3.13.
        with mock.patch.object(sys, "_is_gil_enabled", lambda: not sharded, create=True):
            # Without a clock of its own it takes the fast path.
            clock = None if interval is None else self.clock
            self.buffer = cls(self.backend, flush_interval=self.interval, clock=clock)
            probe = cls(self.backend, flush_interval=math.inf)
        self.shard_of = self.find_shards(probe) if sharded else [0] * WORKERS
        self.shards = [merged() for _ in range(WORKERS + 1)]
        self.replace_backend(0)

    def find_shards(self, probe: MetricsBuffer) -> list[int]:
        """The place of each worker's shard among all, 0 for the first, which is the one to fill."""
        probe.incr_counter("full", MAX_COUNT)
        del probe.metrics
        with suppress(AttributeError):
            probe.flush()
        self.log.records.clear()
        first = [
            isinstance(worker.tell(partial(probe.incr_counter, "full", 1)), OverflowError)
            for worker in self.workers
        ]
        for number, worker in enumerate(self.workers):
            worker.tell(partial(probe.incr_counter, str(number), 0))
        order = list(probe.snapshot()[1])
        return [0 if first[number] else order.index(str(number)) for number in range(WORKERS)]

    # The model

    def pending(self) -> Totals:
        return merged(*self.shards)

    def take(self) -> list[Call]:
        taken, self.shards = self.pending(), [merged() for _ in self.shards]
        return as_calls(taken)

    def put_back(self, rest: list[Call]) -> None:
        self.shards[0] = merged(as_totals(rest), self.shards[0])

    def add(self, worker: int, call: Call) -> object:
        shard = self.shard_of[worker]
        total = merged(self.shards[shard], as_totals([call]))
        numbers = call.value, total[call.method][call.name]
        if call.method == "increment" and not all(
            -MAX_COUNT - 1 <= each <= MAX_COUNT for each in numbers
        ):
            return OverflowError()
        self.shards[shard] = total
        self.made = merged(self.made, as_totals([call]))
        return self.begin_flush(worker, self.backend) if self.due() else None

    def begin_flush(self, worker: int, backend: object) -> object:
        self.begun_flushes += 1
        return super().begin_flush(worker, backend)

    def order_to_flush(self) -> tuple[Order, object]:
        return self.buffer.flush, self.backend

    # The steps

    # Several, which leave 64 bits sooner than one.
    @rule(
        worker=any_worker,
        metric=names,
        deltas=st.lists(deltas, min_size=1, max_size=4),
        by_name=st.booleans(),
    )
    def incr_counter(self, worker: int, metric: str, deltas: list[int], by_name: bool) -> None:  # noqa: FBT001
        for delta in deltas:
            arguments = (), {"metric": metric, "delta": delta}
            args, kwargs = arguments if by_name else ((metric, delta), {})
            order = partial(self.buffer.incr_counter, *args, **kwargs)  # type: ignore[arg-type]
            self.tell(worker, order, self.add(worker, Call("increment", metric, delta)))

    @rule(worker=any_worker, metric=names, duration=durations, by_name=st.booleans())
    def incr_timing(self, worker: int, metric: str, duration: float, by_name: bool) -> None:  # noqa: FBT001
        arguments = (), {"metric": metric, "duration": duration}
        args, kwargs = arguments if by_name else ((metric, duration), {})
        order = partial(self.buffer.incr_timing, *args, **kwargs)  # type: ignore[arg-type]
        self.tell(worker, order, self.add(worker, Call("timing", metric, float(duration))))

    @rule(worker=any_worker)
    def replace_backend(self, worker: int) -> None:
        self.backend = ToldBackend()
        self.backend.calls = self.accepted
        self.tell(worker, partial(setattr, self.buffer, "metrics", self.backend), None)

    @rule(worker=any_worker)
    def delete_backend(self, worker: int) -> None:
        self.backend = None
        self.tell(worker, partial(delattr, self.buffer, "metrics"), None)

    @rule(worker=any_worker)
    def look(self, worker: int) -> None:
        self.tell(worker, self.what_is_pending_is_the_models, None)

    # What holds after each

    @invariant()
    def what_is_pending_is_the_models(self) -> None:
        timers, counters = self.buffer.snapshot()
        calls = as_calls({"timing": timers, "increment": dict(counters)})
        assert [exact(call) for call in calls] == [exact(call) for call in as_calls(self.pending())]
        name = type(self.buffer).__name__
        assert repr(self.buffer) == f"<{name} timers={timers} counters={counters}>"
        assert getattr(self.buffer, "metrics", None) is self.backend

    @invariant()
    def what_is_sent_under_way_or_pending_is_what_was_made(self) -> None:
        under_way = [call for flushes in self.flushes for flush in flushes for call in flush.rest]
        timers, counters = self.buffer.snapshot()
        pending: Totals = {"timing": timers, "increment": dict(counters)}
        found = merged(as_totals(self.accepted), as_totals(under_way), pending)
        # As text, in which a NaN is equal to another.
        assert {call[:2]: repr(call.value) for call in as_calls(found)} == {
            call[:2]: repr(call.value) for call in as_calls(self.made)
        }

    @invariant()
    def an_override_of_flush_was_called_for_each(self) -> None:
        assert getattr(self.buffer, "flushes", self.begun_flushes) == self.begun_flushes


STATUSES: dict[str, object] = {"success": None, "error": "down"}
statuses = st.sampled_from(list(STATUSES))
latencies = st.floats() | st.integers(-3, 3)


class DeliveryBufferMachine(Machine[TaggedCall]):
    buffer: DeliveryBuffer

    @initialize(interval=st.sampled_from([0.0, 1.0, math.inf]))
    def make(self, interval: float) -> None:
        self.interval = interval
        self.buffer = DeliveryBuffer(flush_interval=interval, clock=self.clock)
        self.backend = ToldProducerBackend()
        self.backend.calls = self.accepted
        self.producer_name: str | None = None
        self.counts: dict[str, int] = {}
        self.latencies: list[float] = []
        self.made = (Counter[str](), Counter[str]())

    # The model

    def add(self, counts: dict[str, int], latencies: list[float]) -> None:
        for status, count in counts.items():
            self.counts[status] = self.counts.get(status, 0) + count
        self.latencies += latencies

    def take(self) -> list[TaggedCall]:
        name = {} if self.producer_name is None else {"producer_name": self.producer_name}
        calls = [
            TaggedCall("increment", STATUS, count, {"status": status} | name)
            for status, count in self.counts.items()
        ]
        tags = {"producer_name": "N/A"} | name
        calls += [TaggedCall("timing", LATENCY, seconds, tags) for seconds in self.latencies]
        self.counts, self.latencies = {}, []
        return calls

    def put_back(self, rest: list[TaggedCall]) -> None:
        newer = self.counts, self.latencies
        self.counts, self.latencies = {}, []
        self.add(*totals(rest))
        self.add(*newer)

    def order_to_flush(self) -> tuple[Order, object]:
        return partial(self.buffer.flush, self.backend, self.producer_name), self.backend

    # The steps

    @rule(worker=any_worker, status=statuses, latency=st.none() | latencies)
    def record(self, worker: int, status: str, latency: float | None) -> None:
        counts, samples = {status: 1}, [] if latency is None else [float(latency)]
        self.add(counts, samples)
        self.made[0].update(counts)
        self.made[1].update(map(repr, samples))
        self.tell(worker, partial(self.buffer.record, STATUSES[status], latency), self.due())

    @rule(
        worker=any_worker,
        counts=st.dictionaries(statuses, st.integers(0, 2**32)),
        samples=st.lists(latencies, max_size=5),
    )
    def add_many(self, worker: int, counts: dict[str, int], samples: list[float]) -> None:
        self.add(counts, [float(latency) for latency in samples])
        self.made[0].update(counts)
        self.made[1].update(repr(float(latency)) for latency in samples)
        self.tell(worker, partial(self.buffer.add, counts, samples), None)

    @rule(name=st.none() | st.sampled_from(FEW_NAMES))
    def rename(self, name: str | None) -> None:
        self.producer_name = name

    @rule(worker=any_worker)
    def look(self, worker: int) -> None:
        self.tell(worker, self.what_is_pending_is_the_models, None)

    # What holds after each

    @invariant()
    def what_is_pending_is_the_models(self) -> None:
        counts, latencies = self.buffer.snapshot()
        assert list(counts.items()) == list(self.counts.items())
        assert repr(latencies) == repr(self.latencies)
        size = len(latencies)
        assert repr(self.buffer) == f"<DeliveryBuffer counts={counts} latencies={size} dropped=0>"

    @invariant()
    def what_is_sent_under_way_or_pending_is_what_was_made(self) -> None:
        under_way = [call for flushes in self.flushes for flush in flushes for call in flush.rest]
        found = [totals(self.accepted), totals(under_way), self.buffer.snapshot()]
        counts, latencies = Counter[str](), Counter[str]()
        for each in found:
            counts.update(each[0])
            latencies.update(map(repr, each[1]))
        assert (counts, latencies) == self.made


def totals(calls: list[TaggedCall]) -> tuple[dict[str, int], list[float]]:
    """Deliveries by status, and the seconds that they took."""
    counts: dict[str, int] = {}
    for call in calls:
        if call.name == STATUS:
            status = call.tags["status"]
            counts[status] = counts.get(status, 0) + int(call.value)
    return counts, [call.value for call in calls if call.name == LATENCY]


MACHINES: dict[str, type[RuleBasedStateMachine]] = {
    "MetricsBuffer": MetricsBufferMachine,
    "DeliveryBuffer": DeliveryBufferMachine,
}


@pytest.mark.parametrize("of", MACHINES)
@in_new_interpreter
def test_any_sequence_of_calls_does_what_it_does_to_plain_dicts(of: str) -> None:
    run_state_machine_as_test(MACHINES[of], settings=settings())
