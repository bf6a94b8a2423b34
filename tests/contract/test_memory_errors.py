"""C16: an allocation of the interpreter's that fails is a MemoryError, and no count is lost by it.

Each call is made once for every allocation in it, which then fails, alone or with all after it.
CPython's own tests do so by the same hook. What the core allocates is in ``core/tests/memory.py``.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import math
import platform
import sys
import sysconfig
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from arroyo.backends.kafka.consumer import ConfluentProducer

import arroyo_metrics_buffer
from arroyo_metrics_buffer import BufferedMetricsBackend, MetricsBuffer, _core, stats
from arroyo_metrics_buffer._core import DeliveryBuffer
from support.new_interpreter import in_new_interpreter, note_attempt
from support.programs import python

try:
    _testcapi: Any = importlib.import_module("_testcapi")
except ImportError:  # not in every distribution
    _testcapi = None

needs_hook = pytest.mark.skipif(
    _testcapi is None or bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="it needs CPython's _testcapi, whose hook a free-threaded build does not ask",
)
needs_generators = pytest.mark.usefixtures("generators_that_survive")
SUCCESSES = 20  # in a row, after which a call is taken to have no more allocations
OUTAGE = ValueError("an outage")  # made while there is memory
MORE = tuple(f"more {number}" for number in range(10))
TEXTS = ("first", "second", "new", "\udc80", *MORE)


GENERATOR = """
import _testcapi
for allocation in range(100):
    _testcapi.set_nomemory(allocation, 0)
    try:
        list(number for number in (1, 2, 3))
    except MemoryError:
        pass
    finally:
        _testcapi.remove_mem_hooks()
"""


@pytest.fixture(scope="module")
def generators_that_survive() -> None:
    """Skip a test where a generator that finds no memory crashes CPython, as 3.12.1 and 3.13.0."""
    if python(GENERATOR).returncode < 0:
        pytest.skip("a generator that finds no memory crashes this Python itself")


class Account:
    """A backend that takes each entry whole or, without memory, not at all; or fails."""

    def __init__(self, *, refuses: frozenset[str] = frozenset()) -> None:
        self.sent: dict[str, Any] = dict.fromkeys(TEXTS, 0)
        self.refuses = refuses

    def timing(self, name: str, value: float, tags: object = None) -> None:
        if name in self.refuses:
            raise OUTAGE
        self.sent[name] += value

    increment = timing


class Index:
    """Has a number for a value."""

    def __index__(self) -> int:
        return 3


class Case(NamedTuple):
    """A call of a buffer that has 1 for "first" and, as a timer, 0.5 for "second".

    Attributes:
        adds: What the call adds to a total.
        raises: What it raises while there is memory.
        allocates: Whether it needs more than Python has ready in its free lists.
        interval: The buffer's.
        refuses: The names that the backend refuses.
    """

    call: Callable[[MetricsBuffer], object]
    adds: float = 0
    raises: tuple[type[Exception], ...] = ()
    allocates: bool = False
    interval: float = math.inf
    refuses: frozenset[str] = frozenset()


def drain(buffer: MetricsBuffer) -> None:
    """Move the counters to the backend, or leave them."""
    sent = buffer.metrics.sent
    counters = _core.drain_totals(buffer, counters=True)
    sent.update(counters)  # of names that it has, so it allocates nothing


COPY = "firsts"[:-1]  # another object than the literal
INDEX: Any = Index()
TEXT: Any = "x"
CASES = {
    "a new counter": Case(lambda buffer: buffer.incr_counter("new", 3), adds=3),
    "a new timer": Case(lambda buffer: buffer.incr_timing("new", 3.0), adds=3),
    "a known name": Case(lambda buffer: buffer.incr_counter("first", 3), adds=3),
    "a copy of a name": Case(lambda buffer: buffer.incr_counter(COPY, 3), adds=3),
    "a name with a surrogate": Case(lambda buffer: buffer.incr_counter("\udc80", 3), adds=3),
    "an object with __index__": Case(lambda buffer: buffer.incr_counter("first", INDEX), adds=3),
    "an int for a float": Case(lambda buffer: buffer.incr_timing("new", 3), adds=3),
    "keywords": Case(lambda buffer: buffer.incr_counter(metric="new", delta=3), adds=3),
    "no str": Case(
        lambda buffer: buffer.incr_counter(INDEX, 3), raises=(TypeError,), allocates=True
    ),
    "no number": Case(
        lambda buffer: buffer.incr_timing("first", TEXT), raises=(TypeError,), allocates=True
    ),
    "too much": Case(lambda buffer: buffer.incr_counter("first", 2**70), raises=(OverflowError,)),
    "a sum that is too much": Case(
        lambda buffer: buffer.incr_counter("first", 2**63 - 1), raises=(OverflowError,)
    ),
    "a call that flushes": Case(lambda buffer: buffer.incr_counter("new", 3), adds=3, interval=0.0),
    "flush": Case(lambda buffer: buffer.flush()),
    "a flush that fails at once": Case(
        lambda buffer: buffer.flush(),
        raises=(ValueError,),
        refuses=frozenset("second"),
    ),
    "a flush that fails at last": Case(
        lambda buffer: buffer.flush(),
        raises=(ValueError,),
        refuses=frozenset("first"),
    ),
    "snapshot": Case(lambda buffer: buffer.snapshot(), allocates=True),
    "repr": Case(repr, allocates=True),
    "metrics": Case(lambda buffer: buffer.metrics),
    "drain_totals": Case(drain),
    "move_totals": Case(
        lambda buffer: _core.move_totals({"new": 1.0}, buffer, counters=False), adds=1
    ),
}


def with_every_allocation_failing(
    prepare: Callable[[], Any],
    call: Callable[[Any], object],
    check: Callable[[Any, BaseException | None], None],
    *,
    modes: tuple[bool, ...] = (False, True),
) -> int:
    """Make a call once for each of its allocations, and return how often it was a MemoryError.

    ``check`` gets what the call raised, if anything. The modes: that allocation fails alone, or all
    after it too.
    """
    failures = 0
    for fails_on in modes:
        successes = 0
        for allocation in itertools.count():
            prepared = prepare()
            raised = None
            note_attempt((allocation, fails_on))
            _testcapi.set_nomemory(allocation, 0 if fails_on else allocation + 1)
            try:
                call(prepared)
            except BaseException as error:  # noqa: BLE001 - which, is for `check` to see
                raised = error
            finally:
                _testcapi.remove_mem_hooks()
            check(prepared, raised)
            failures += isinstance(raised, MemoryError)
            successes = 0 if isinstance(raised, MemoryError) else successes + 1
            if successes == SUCCESSES:
                break
    note_attempt("the end")
    return failures


def filled(case: Case) -> MetricsBuffer:
    buffer = MetricsBuffer(Account(refuses=case.refuses), flush_interval=case.interval, clock=zero)
    if case.interval > 0:
        buffer.incr_counter("first", 1)
        buffer.incr_timing("second", 0.5)
        for name in MORE:
            buffer.incr_counter(name, 1_000)  # an int that Python does not keep ready
    return buffer


def zero() -> float:
    return 0.0


def total(buffer: MetricsBuffer) -> float:
    timers, counters = buffer.snapshot()
    return sum(map(sum, (buffer.metrics.sent.values(), timers.values(), counters.values())))


@needs_hook
@pytest.mark.parametrize("on_backend_error", ["raise", "log"])
@pytest.mark.parametrize("name", CASES)
@in_new_interpreter
def test_a_call_without_memory_raises_memory_error_or_does_its_work(
    name: str, on_backend_error: Any
) -> None:
    logging.disable()  # Python's own logging is not what is put to the test
    arroyo_metrics_buffer.install(on_backend_error=on_backend_error)
    case = CASES[name]
    before = total(filled(case))

    def check(buffer: MetricsBuffer, raised: BaseException | None) -> None:
        if raised is None:
            assert total(buffer) == before + case.adds
        else:
            assert isinstance(raised, (MemoryError, *case.raises))
            # A call that flushes may have added before it failed.
            added = (0, case.adds) if case.interval == 0 else (0,)
            assert total(buffer) - before in added

    failures = with_every_allocation_failing(lambda: filled(case), case.call, check)
    is_told = on_backend_error == "log" and "flush" in name  # and not raised
    assert failures > 0 or is_told or not case.allocates


class ProducerAccount:
    """As ``Account``, for what a producer reports."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.counts = self.samples = 0

    def increment(self, *, name: str, value: int, tags: object) -> None:
        self.counts += value

    def timing(self, *, name: str, value: float, tags: object) -> None:
        self.samples += 1


NOTHING: tuple[dict[str, int], list[float]] = ({}, [])
TAKEN = [NOTHING]


def drain_deliveries(buffer: DeliveryBuffer) -> None:
    TAKEN[0] = buffer.drain()  # which allocates nothing but in the call


PRODUCER_BACKEND = ProducerAccount()
DELIVERIES: dict[str, Callable[[DeliveryBuffer], object]] = {
    "record a success": lambda buffer: buffer.record(None, 0.5),
    "record an error": lambda buffer: buffer.record(OUTAGE, 0.5),
    "record no number": lambda buffer: buffer.record(None, TEXT),
    "add": lambda buffer: buffer.add({"success": 1}, [0.5]),
    "add another status": lambda buffer: buffer.add({"other": 1}, [0.5]),
    "flush": lambda buffer: buffer.flush(PRODUCER_BACKEND, "name"),
    "flush without a name": lambda buffer: buffer.flush(PRODUCER_BACKEND, None),
    "drain": drain_deliveries,
    "snapshot": lambda buffer: buffer.snapshot(),
    "repr": repr,
}
ADDS_DELIVERY = ("record a success", "record an error", "add")
# More than Python has ready in its free lists.
ALLOCATES = ("record no number", "drain", "snapshot", "repr")


@needs_hook
@pytest.mark.parametrize("name", DELIVERIES)
@in_new_interpreter
def test_a_delivery_without_memory_is_counted_with_its_latency_or_not_at_all(name: str) -> None:
    logging.disable()
    known = 300

    def prepare() -> DeliveryBuffer:
        buffer = DeliveryBuffer(flush_interval=math.inf)
        buffer.add({"success": known}, [0.25] * known)
        PRODUCER_BACKEND.clear()
        TAKEN[0] = NOTHING
        return buffer

    def check(buffer: DeliveryBuffer, raised: BaseException | None) -> None:
        counts, samples = PRODUCER_BACKEND.counts, PRODUCER_BACKEND.samples
        for by_status, latencies in (buffer.snapshot(), *TAKEN):
            counts += sum(by_status.values())
            samples += len(latencies)
        if raised is not None:
            assert isinstance(raised, MemoryError | TypeError | ValueError)
        added = raised is None and name in ADDS_DELIVERY
        assert (counts, samples) == (known + added, known + added)

    failures = with_every_allocation_failing(prepare, DELIVERIES[name], check)
    assert failures > 0 or name not in ALLOCATES


def unknown_tags() -> dict[str, str]:
    """Those of a metric that is not pending, whose text has to be made into UTF-8."""
    return {f"{LETTER}ey": f"{LETTER}alue|", "b": "\udc80"}


LETTER = "\xe4"
KNOWN_TAGS = {"step": "map", "pipeline": "billing"}
STREAMS: dict[str, Callable[[BufferedMetricsBackend], object]] = {
    "increment": lambda buffer: buffer.increment("known", 3, KNOWN_TAGS),
    "increment by default": lambda buffer: buffer.increment("known", tags=KNOWN_TAGS),
    "increment of new tags": lambda buffer: buffer.increment("known", 3, unknown_tags()),
    "increment of a new name": lambda buffer: buffer.increment("new", 0.5),
    "timing": lambda buffer: buffer.timing("known", 3, MappingProxyType(KNOWN_TAGS)),
    "gauge": lambda buffer: buffer.gauge("known", 3.5, KNOWN_TAGS),
    "no number": lambda buffer: buffer.increment("known", TEXT, KNOWN_TAGS),
    "no tags": lambda buffer: buffer.increment("known", 1, {"a": INDEX}),
    "too much": lambda buffer: buffer.increment("known", 2**63 - 1, KNOWN_TAGS),
    "flush": lambda buffer: buffer.flush(),
    "snapshot": lambda buffer: buffer.snapshot(),
    "repr": repr,
    "another one": lambda _: BufferedMetricsBackend(None, 1.0),
    "another one without a callable": lambda _: BufferedMetricsBackend(None, 1.0, clock=TEXT),
}


class StreamsAccount:
    """As ``Account``, for what a buffer of sentry-streams reports."""

    def __init__(self) -> None:
        self.sent = 0.0

    def increment(self, _name: str, value: float, *, tags: object) -> None:
        self.sent += value

    def timing(self, _name: str, value: float, *, tags: object) -> None:
        self.sent += value

    def gauge(self, _name: str, value: float, *, tags: object) -> None:
        self.gauge_sent = value


@needs_hook
@pytest.mark.parametrize("name", STREAMS)
@in_new_interpreter
def test_a_call_of_sentry_streams_without_memory_is_counted_whole_or_not_at_all(name: str) -> None:
    logging.disable()
    backend = StreamsAccount()

    def prepare() -> BufferedMetricsBackend:
        buffer = BufferedMetricsBackend(backend, math.inf, clock=zero)
        for tags in (KNOWN_TAGS, None, {"a": "b"}):
            buffer.increment("known", 1_000, tags)
            buffer.timing("known", 0.5, tags)
            buffer.gauge("known", 7, tags)
        backend.sent = 0.0
        return buffer

    def total(buffer: BufferedMetricsBackend) -> float:
        timers, counters, gauges = buffer.snapshot()
        assert [value for _, value, _ in gauges[1:]] == [7, 7] * bool(gauges)
        return backend.sent + sum(value for _, value, _ in (*timers, *counters))

    undisturbed = prepare()
    before = total(undisturbed)
    with contextlib.suppress(TypeError, OverflowError):
        STREAMS[name](undisturbed)
    after = total(undisturbed)

    def check(buffer: BufferedMetricsBackend, raised: BaseException | None) -> None:
        assert raised is None or isinstance(raised, MemoryError | TypeError | OverflowError)
        assert total(buffer) == (after if raised is None else before)

    with_every_allocation_failing(prepare, STREAMS[name], check)


COUNTERS = "_MetricsBuffer__counters"
TABLES: dict[str, Callable[[Any], object]] = {
    "a look": lambda buffer: len(getattr(buffer, COUNTERS)),
    "a copy": lambda buffer: getattr(buffer, COUNTERS).copy(),
    "a table put in its place": lambda buffer: setattr(buffer, COUNTERS, {}),
    "a flush": lambda buffer: buffer.flush(),
}


@needs_hook
@needs_generators
@pytest.mark.parametrize("name", TABLES)
@in_new_interpreter
def test_tables_lent_to_a_remedy_lose_nothing_without_memory(name: str) -> None:
    logging.disable()
    case = Case(TABLES[name])
    held: list[Any] = []  # as a remedy holds the table that it swaps out

    def prepare() -> MetricsBuffer:
        buffer = filled(case)
        held[:] = [getattr(buffer, COUNTERS)]
        assert len(held[0]) == len(MORE) + 1
        for metric in MORE:  # which is in the table and in the buffer then
            buffer.incr_counter(metric, 1_000)
        return buffer

    def check(buffer: MetricsBuffer, _raised: BaseException | None) -> None:
        buffer.flush()  # what is in the tables
        swapped = sum(held[0].values()) if getattr(buffer, COUNTERS) is not held[0] else 0
        assert total(buffer) + swapped == 0.5 + 1 + 2 * 1_000 * len(MORE)

    assert with_every_allocation_failing(prepare, case.call, check) > 0


LATENCIES = "_ConfluentProducer__callback_latency"


@needs_hook
@needs_generators
@pytest.mark.parametrize("name", ["a flush", "uninstall"])
@in_new_interpreter
def test_what_arroyos_own_methods_have_counted_and_get_back_is_not_lost_without_memory(
    name: str,
) -> None:
    logging.disable()
    producer: Any = ConfluentProducer({"bootstrap.servers": "127.0.0.1:9", "log_level": 0})
    fields = vars(producer)
    counters = fields["_ConfluentProducer__produce_counters"]
    deliveries = fields["_ConfluentProducer__deliveries"]
    fields["_ConfluentProducer__metrics"] = PRODUCER_BACKEND
    flush = _flush_metrics(producer) if name == "a flush" else None

    def prepare() -> None:
        arroyo_metrics_buffer.install()
        PRODUCER_BACKEND.clear()
        counters.clear()
        fields[LATENCIES].clear()
        deliveries.drain()
        deliveries.add({"error": 1_000}, [0.25] * 5)
        if flush is not None:
            counters["success"] += 1_000
            fields[LATENCIES].extend([0.5] * 20)

    def check(_: None, _raised: BaseException | None) -> None:
        if flush is not None:
            flush()
        else:
            arroyo_metrics_buffer.uninstall()
            assert deliveries.snapshot() == NOTHING
        counts = PRODUCER_BACKEND.counts + sum(counters.values())
        samples = PRODUCER_BACKEND.samples + len(fields[LATENCIES])
        assert (counts, samples) == ((2_000, 25) if flush is not None else (1_000, 5))

    call = flush or arroyo_metrics_buffer.uninstall
    with_every_allocation_failing(prepare, lambda _: call(), check, modes=(False,))


def _flush_metrics(producer: Any) -> Callable[[], None]:
    flush: Callable[[], None] = producer._ConfluentProducer__flush_metrics
    return flush


MAKE: dict[str, Callable[[Any], object]] = {
    "as arroyo does": lambda _: MetricsBuffer(),
    "with a backend": MetricsBuffer,
    "with everything": lambda backend: MetricsBuffer(backend, flush_interval=1.0, clock=zero),
    "a subclass": lambda backend: Subclass(backend, keyword=1),
    "with NaN": lambda backend: MetricsBuffer(backend, flush_interval=math.nan),
    "without a callable": lambda backend: MetricsBuffer(backend, clock=TEXT),
    "for deliveries": lambda _: DeliveryBuffer(flush_interval=1.0),
    "and never initialise": lambda _: MetricsBuffer.__new__(MetricsBuffer).flush(),
    "stats": lambda _: stats(),  # imported already
}


class Subclass(MetricsBuffer):
    """Has a constructor of its own."""

    def __init__(self, backend: object, *, keyword: object) -> None:
        super().__init__(backend)
        self.keyword = keyword


@needs_hook
@pytest.mark.parametrize("name", MAKE)
@in_new_interpreter
def test_a_buffer_without_memory_is_made_or_not(name: str) -> None:
    def check(_: object, raised: BaseException | None) -> None:
        expected = (MemoryError, TypeError, ValueError, RuntimeError)
        assert raised is None or isinstance(raised, expected)

    with_every_allocation_failing(Account, MAKE[name], check)


MEMORY_IS_FULL = """
import gc, math, os, resource, sys
from arroyo_metrics_buffer import MetricsBuffer
from arroyo_metrics_buffer._core import DeliveryBuffer

class Backend:
    sent = delivered = 0
    is_down = False
    def increment(self, name, value, tags=None):
        if self.is_down:
            raise OUTAGE
        if tags is None:
            self.sent += value
        else:
            self.delivered += value
    def timing(self, name, value, tags=None):
        pass

OUTAGE = ValueError("an outage")
CALLS = 20_000
NAMES = [f"name {number}" for number in range(CALLS)]
backend = Backend()
buffer = MetricsBuffer(backend, flush_interval=math.inf)
deliveries = DeliveryBuffer(flush_interval=math.inf)
gc.disable()
gc.collect()
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * os.sysconf("SC_PAGE_SIZE") + 20_000_000
counted, delivered = bytearray(CALLS), bytearray(CALLS)
hold, size, failures = [], 1 << 20, 0
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
for number in range(CALLS):
    try:
        while True:
            hold.append(bytearray(size))
    except MemoryError:
        size = max(size // 2, 16)
    try:
        buffer.incr_counter(NAMES[number if size < 1024 else 0], 1)
        counted[number] = 1
        deliveries.record(None, 0.5)
        delivered[number] = 1
        if number % 8 == 0:
            backend.is_down = number % 16 == 0
            buffer.flush()
        elif number % 8 == 4:
            deliveries.flush(backend, None)
    except MemoryError:
        failures = 1
    except ValueError:
        pass
    if number % 100 == 99:
        hold.clear()
        size = 1 << 20
hold.clear()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
backend.is_down = False
buffer.flush()
deliveries.flush(backend, None)
assert failures, "memory was never full"
assert (backend.sent, backend.delivered) == (sum(counted), sum(delivered))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_process_whose_memory_is_full_goes_on_and_loses_nothing() -> None:
    ended = python(MEMORY_IS_FULL)
    assert ended.returncode == 0, ended.stderr


NO_MEMORY_FOR_AN_ERROR = """
import math, os, resource
from arroyo_metrics_buffer import MetricsBuffer

class Link:
    __slots__ = ("next",)

buffer = MetricsBuffer(object(), flush_interval=math.inf)
for name in ("known", "\\udc80", "n\\xe4me"):
    buffer.incr_counter(name, 1)
# Another object each time, of whose text UTF-8 has to be made.
letters = "\\xe4" * 9
calls = iter([("known", 2**70), ("\\udc80", 1), *((f"n{letter}me", 1) for letter in letters)])
failures, held, name, delta = 0, None, None, None  # here, since a new variable needs memory
link = Link()
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * os.sysconf("SC_PAGE_SIZE") + 20_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
try:
    while True:  # as large as PyO3's list of errors to be dropped
        link = Link()
        link.next = held
        held = link
except MemoryError:
    pass
for name, delta in calls:
    try:
        buffer.incr_counter(name, delta)
    except MemoryError:
        failures = 1
while held is not None:  # not one in the other, ever deeper
    held = held.next
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert failures, "memory was never full"
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other allocators have room left for an error"
)
@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="a free-threaded build has an allocator of its own only",
)
def test_an_error_on_the_fast_path_needs_no_memory_to_be_dropped() -> None:
    ended = python(NO_MEMORY_FOR_AN_ERROR, PYTHONMALLOC="malloc")
    assert ended.returncode == 0, ended.stderr
