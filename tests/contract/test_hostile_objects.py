"""C1, C7, C9: whatever objects a buffer is given, it does not crash, hang or miscount.

Hypothesis composes objects whose methods raise, call the buffers again, change what they belong to,
let other threads in, or return nonsense, and gives them to everything that is public.
"""

from __future__ import annotations

import array
import decimal
import fractions
import gc
import logging
import math
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from arroyo.utils import metrics as arroyo_metrics
from hypothesis import given
from hypothesis import strategies as st

import arroyo_metrics_buffer
from arroyo_metrics_buffer import BufferedMetricsBackend, MetricsBuffer
from arroyo_metrics_buffer._core import DeliveryBuffer, configure
from support.backends import STATUS
from support.hypothesis_settings import settings
from support.new_interpreter import in_new_interpreter, note_attempt
from support.streams import StreamsBackend
from support.threads import run_together

# What objects are made of: descriptions, which Hypothesis can shrink and a report can show.


@dataclass(frozen=True)
class Raises:
    error: type[BaseException]


AS_EXPECTED = "what is expected of the method"


@dataclass(frozen=True)
class Behaviour:
    """What a method does before it ends, and how it does that."""

    actions: list[str]
    result: Any


@dataclass(frozen=True)
class Hostile:
    """An object of a subclass of ``base``, with such methods, and with such a metaclass."""

    base: type
    value: Any = None
    methods: dict[str, Behaviour] = field(default_factory=dict)
    metaclass: dict[str, Behaviour] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    function: str
    arguments: list[Any]
    keywords: dict[str, Any]


class Scalar:
    """As numpy's are."""

    dtype = "float64"
    shape = ()

    def __array__(self) -> object:
        return array.array("d", [2.0])

    def __index__(self) -> int:
        return 2

    def __float__(self) -> float:
        return 2.0

    def __repr__(self) -> str:
        return "Scalar()"


PARAMETERS = {
    "MetricsBuffer": ["metrics", "flush_interval", "clock"],
    "__init__": ["metrics", "flush_interval", "clock"],
    "incr_counter": ["metric", "delta"],
    "incr_timing": ["metric", "duration"],
    "flush": [],
    "snapshot": [],
    "__repr__": [],
    "metrics": ["metrics"],
    "DeliveryBuffer": ["flush_interval", "clock"],
    "record": ["error", "latency"],
    "add": ["counts", "latencies"],
    "deliver": ["metrics", "producer_name"],
    "look": [],
    "BufferedMetricsBackend": ["backend", "throttle_interval_sec", "clock"],
    "increment": ["name", "value", "tags"],
    "gauge": ["name", "value", "tags"],
    "timing": ["name", "value", "tags"],
    "send": [],
    "pending": [],
    "configure": ["clock", "on_backend_error"],
    "install": ["clock", "on_backend_error"],
    "uninstall": [],
    "status": [],
}
METHOD_RESULTS = {
    "__index__": 3,
    "__float__": 0.25,
    "__int__": 3,
    "__hash__": 0,
    "__eq__": False,
    "__bool__": True,
    "__call__": 0.0,
    "__str__": "a",
    "__repr__": "a",
    "__format__": "a",
    "__len__": 1,
    "__iter__": (),
    "__getitem__": 0.5,
    "__getattr__": None,
    "__getattribute__": None,
    "__class__": str,
    "__del__": None,
    "encode": b"a",
    "items": [("success", 1)],
    "timing": None,
    "increment": None,
    "gauge": None,
    "keys": ("step",),
    "replace": "a",
}
ACTIONS = [
    "add",
    "flush",
    "look",
    "replace",
    "delete",
    "deliver",
    "stream",
    "thread",
    "collect",
    "transform",
    "clear",
]
# When an object dies is nobody's choice, so what is passed has to stay as it is; and CPython reads
# the class that an object had when it began to die, which may be gone if it has another by then.
NOT_WHEN_DYING = {"clear", "transform"}
STATUSES = ["success", "error"]

# Numbers add up exactly in any order, and no counter leaves 64 bits: the state machine does that.
texts = st.sampled_from(["a", "b", "", "\ud800", *STATUSES, "raise", "log"])
integers = st.integers(-9, 9) | st.sampled_from([10**309, -(10**309)])
floats = st.sampled_from([0.5, -1.0, -0.0, math.inf, math.nan])
numbers = integers | floats
plain = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    texts,
    st.sampled_from([b"a", 1j, decimal.Decimal("0.25"), fractions.Fraction(1, 4), Scalar()]),
    st.sampled_from([..., NotImplemented, range(2**50), range(2**62), array.array("d", [0.5])]),
    st.sampled_from([{"lost": 1}, {"success": 2**64 - 1}, {"error": -1}, {1: 1}, {"\ud800": 1}]),
    st.recursive(numbers | texts, lambda inner: st.lists(inner, max_size=3), max_leaves=4),
)
errors = st.sampled_from(
    [Exception, TypeError, AttributeError, StopIteration, RecursionError, KeyboardInterrupt]
)
methods = st.sampled_from(list(METHOD_RESULTS))


def behaviours(results: st.SearchStrategy[Any]) -> st.SearchStrategy[Behaviour]:
    results = st.just(AS_EXPECTED) | errors.map(Raises) | results
    return st.builds(Behaviour, st.lists(st.sampled_from(ACTIONS), max_size=2), results)


def of(results: st.SearchStrategy[Any], *always: str) -> dict[str, st.SearchStrategy[Any]]:
    """Methods, of which some are always there."""
    behaviour = behaviours(results)
    some = st.dictionaries(methods, behaviour, max_size=3)
    required = st.fixed_dictionaries(dict.fromkeys(always, behaviour))
    metaclass = st.dictionaries(
        st.sampled_from(["__getattr__", "__getattribute__", "__name__", "__call__"]), behaviour
    )
    return {
        "methods": st.builds(operator.or_, some, required),
        "metaclass": st.just({}) | metaclass,
    }


leaves = st.builds(Hostile, st.just(object), **of(plain))
objects = plain | st.one_of(
    st.builds(Hostile, st.just(object), **of(plain | leaves)),
    st.builds(Hostile, st.just(str), texts, **of(plain | leaves)),
    st.builds(Hostile, st.just(int), st.integers(-9, 9), **of(plain | leaves)),
    st.builds(Hostile, st.just(float), floats, **of(plain | leaves)),
    st.builds(Hostile, st.just(dict), st.just({"success": 1}), **of(plain | leaves)),
    st.builds(Hostile, st.just(list), st.just([0.5]), **of(plain | leaves)),
)
callables = st.builds(Hostile, st.just(object), **of(plain | leaves, "__call__"))
backends = st.builds(Hostile, st.just(object), **of(plain | leaves, "timing", "increment"))
numeric = numbers | st.builds(Hostile, st.just(object), **of(numbers, "__index__", "__float__"))
clocks = st.none() | callables | st.sampled_from([int, float, dict])
SENSIBLE_ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "metrics": st.none() | backends,
    "flush_interval": st.none() | numeric,
    "clock": clocks,
    "metric": texts | st.builds(Hostile, st.just(str), texts, **of(plain | leaves)),
    "delta": numeric,
    "duration": numeric,
    "error": st.none() | texts,
    "latency": st.none() | numeric,
    "counts": st.dictionaries(st.sampled_from(STATUSES), numeric),
    "latencies": st.lists(numeric, max_size=4),
    "producer_name": st.none() | texts,
    "backend": backends,
    "throttle_interval_sec": numeric,
    "name": texts | st.builds(Hostile, st.just(str), texts, **of(plain | leaves)),
    "value": numeric,
    "tags": st.none()
    | st.dictionaries(texts, texts | leaves, max_size=3)
    | st.builds(Hostile, st.just(object), **of(plain | leaves, "keys", "__getitem__"))
    | st.builds(Hostile, st.just(dict), st.just({"step": "a|b"}), **of(plain | leaves)),
    "on_backend_error": st.sampled_from(["raise", "log"]) | callables,
}


@st.composite
def calls(draw: st.DrawFn) -> Call:
    function = draw(st.sampled_from(list(ADDED_BY)) | st.sampled_from(list(PARAMETERS)))
    names = PARAMETERS[function]
    # Most make sense: what is refused for its first argument says nothing of the second.
    values = [
        draw(SENSIBLE_ARGUMENTS[name] if draw(st.integers(0, 3)) else objects) for name in names
    ]
    positional = draw(st.integers(0, len(names)))
    by_name = dict(zip(names[positional:], values[positional:], strict=True))
    call = Call(function, values[:positional], by_name)
    if draw(st.integers(0, 9)) == 0:  # too few, too many, or of another name
        keywords = st.sampled_from(["metric", "clock", "self", "", "\ud800"])
        wrong = st.dictionaries(keywords, objects, max_size=2)
        return Call(function, draw(st.lists(objects, max_size=4)), draw(wrong))
    return call


@dataclass(frozen=True)
class Program:
    backend: Any
    interval: float
    clock: Any
    calls: list[Call]


programs = st.builds(
    Program, backends, st.sampled_from([0.0, math.inf]), st.none() | callables, st.lists(calls())
)


class World:
    """Two buffers, what was added to them and what came out, and the objects that they meet."""

    def __init__(self, program: Program) -> None:
        self.objects_behave = True
        # When a thread comes to it is nobody's choice: where there is one, what is passed stays.
        self.may_clear = "'thread'" not in repr(program)
        self.calls_in_left = 20  # how often an object may call in; else some would for ever
        self.raised: list[BaseException] = []
        self.complaints: list[str] = []
        self.containers: list[list[Any] | dict[Any, Any]] = []
        self.made = Account()
        self.delivered = Account()
        backend, clock = self.build(program.backend), self.build(program.clock)
        interval = math.inf if clock is None else program.interval
        self.buffers = [MetricsBuffer(backend, flush_interval=interval, clock=clock)]
        self.deliveries = [DeliveryBuffer(flush_interval=interval, clock=clock)]
        # What it adds up to is for `test_streams.py`: here nothing may crash or hang.
        self.streams = BufferedMetricsBackend(StreamsBackend(), interval, clock=clock)
        self.objects_behave = False

    # Objects

    def build(self, description: Any) -> Any:
        """The object that is described, with all that is in it."""
        if isinstance(description, Hostile):
            return self.build_hostile(description)
        if type(description) is list:
            built: Any = [self.build(each) for each in description]
            self.containers.append(built)
            return built
        if type(description) is dict:
            built = {name: self.build(each) for name, each in description.items()}
            self.containers.append(built)
            return built
        return description

    def build_hostile(self, hostile: Hostile) -> Any:
        metaclass = type("Metaclass", (type,), self.namespace(hostile.metaclass))
        cls: Any = metaclass("Hostile", (hostile.base,), self.namespace(hostile.methods))
        value = () if hostile.value is None else (hostile.value,)
        built = hostile.base.__new__(cls, *value)
        if hostile.base in (dict, list):
            hostile.base.__init__(built, *value)
        return built

    def namespace(self, methods: dict[str, Behaviour]) -> dict[str, Any]:
        return {name: self.method(name, behaviour) for name, behaviour in methods.items()}

    def method(self, name: str, behaviour: Behaviour) -> Any:
        def method(this: object, *arguments: Any, **keywords: Any) -> Any:
            if not self.objects_behave:
                for action in behaviour.actions:
                    if name != "__del__" or action not in NOT_WHEN_DYING:
                        getattr(self, action)(this)
                if isinstance(behaviour.result, Raises):
                    error = behaviour.result.error(f"of {name}")
                    self.raised.append(error)
                    raise error
            # A method of a backend, or what it has for one: it accepts. The callable of `install()`
            # gets an exception alone.
            is_entry = len(arguments) + len(keywords) > 1
            if name in ("timing", "increment", "__call__") and is_entry:
                self.deliver_to(*arguments, **keywords)
            is_right = self.objects_behave or behaviour.result is AS_EXPECTED
            return METHOD_RESULTS.get(name) if is_right else self.build(behaviour.result)

        return property(method) if name in ("__class__", "__name__") else method

    # What their methods may do

    def add(self, _this: object) -> None:
        self.re_enter("incr_counter", "a", 1)
        self.re_enter("incr_timing", "a", 0.5)

    def flush(self, _this: object) -> None:
        self.re_enter("flush")

    def look(self, _this: object) -> None:
        self.re_enter("snapshot")
        self.re_enter("__repr__")

    def replace(self, _this: object) -> None:
        self.re_enter("metrics", Accepts(self))

    def delete(self, _this: object) -> None:
        del self.buffer.metrics

    def deliver(self, _this: object) -> None:
        self.re_enter("record", None, 0.5)
        self.re_enter("deliver", Accepts(self), None)

    def stream(self, _this: object) -> None:
        self.re_enter("increment", "a", 1, {"step": "a"})
        self.re_enter("send")
        self.re_enter("pending")

    def thread(self, this: object) -> None:
        if self.calls_in_left > 0:
            run_together(lambda: self.add(this), lambda: self.flush(this))

    def collect(self, _this: object) -> None:
        self.calls_in_left -= 1
        if self.calls_in_left > 0:  # it is slow, and slower with what Hypothesis remembers
            gc.collect()

    def transform(self, this: object) -> None:
        call = self.method("__call__", Behaviour([], AS_EXPECTED))
        other = type("Other", (type.mro(type(this))[1],), {"__call__": call})
        with suppress(TypeError, AttributeError):
            object.__setattr__(this, "__class__", other)

    def clear(self, _this: object) -> None:
        for container in self.containers if self.may_clear else ():
            container.clear()

    # Calls and their account

    @property
    def buffer(self) -> MetricsBuffer:
        return self.buffers[-1]

    def functions(self) -> dict[str, Callable[..., Any]]:
        buffer, deliveries = self.buffers[-1], self.deliveries[-1]
        return {
            "MetricsBuffer": MetricsBuffer,
            "__init__": buffer.__init__,  # type: ignore[misc]
            "incr_counter": buffer.incr_counter,
            "incr_timing": buffer.incr_timing,
            "flush": buffer.flush,
            "snapshot": buffer.snapshot,
            "__repr__": buffer.__repr__,
            "metrics": lambda metrics: setattr(buffer, "metrics", metrics),
            "DeliveryBuffer": DeliveryBuffer,
            "record": deliveries.record,
            "add": deliveries.add,
            "deliver": deliveries.flush,
            "look": deliveries.snapshot,
            "BufferedMetricsBackend": BufferedMetricsBackend,
            "increment": self.streams.increment,
            "gauge": self.streams.gauge,
            "timing": self.streams.timing,
            "send": self.streams.flush,
            "pending": self.streams.__repr__,
            "configure": configure,
            "install": arroyo_metrics_buffer.install,
            "uninstall": arroyo_metrics_buffer.uninstall,
            "status": arroyo_metrics_buffer.status,
        }

    def re_enter(self, function: str, *arguments: Any) -> None:
        self.calls_in_left -= 1
        if self.calls_in_left > 0:
            self.call(function, arguments, {})
            if not isinstance(added := added_by(function, arguments, {}), BaseException):
                self.made.book(added)

    def call(self, function: str, arguments: Any, keywords: dict[str, Any]) -> BaseException | None:
        """The error that it raised, if any, which is none that it should not raise."""
        try:
            result = self.functions()[function](*arguments, **keywords)
        except BaseException as error:  # noqa: BLE001 - among others, what a panic of Rust is
            if not self.is_own(error):
                self.check(function, error)
            return error
        if isinstance(result, MetricsBuffer):
            self.buffers.append(result)
        elif isinstance(result, DeliveryBuffer):
            self.deliveries.append(result)
        return None

    def is_own(self, error: BaseException) -> bool:
        """Whether it is the very error that an object raised."""
        return any(error is each for each in self.raised)

    def check(self, function: str, error: BaseException) -> None:
        documented = {
            "MetricsBuffer": (ValueError,),
            "__init__": (ValueError, RuntimeError),
            "DeliveryBuffer": (ValueError,),
            "BufferedMetricsBackend": (ValueError,),
            # What Python makes a dict of may have wrong items, or too many.
            **dict.fromkeys(("increment", "gauge", "timing"), (ValueError, KeyError, MemoryError)),
            "add": (ValueError,),
            "configure": (ValueError,),
            "install": (ValueError,),
        }
        # A backend may have no such method, or be deleted.
        expected = TypeError, OverflowError, AttributeError, *documented.get(function, ())
        is_of_a_clock = isinstance(error, ValueError) and "clock must be a number" in str(error)
        if not isinstance(error, expected) and not is_of_a_clock:
            self.complaints.append(f"{function} raised {error!r}")

    def deliver_to(self, name: str, value: float, tags: dict[str, str] | None = None) -> None:
        """For backends: they got this."""
        if tags is None:
            self.delivered.book([((str.__str__(name), type(value)), value)])
        else:
            self.delivered.book([(tags["status"], value)] if name == STATUS else [sample(value)])

    def do(self, call: Call, twin: World) -> None:
        """Call and book what that added, which is what Python's own conversions say of twins."""
        added = added_by(call.function, *twin.arguments(call))
        error = self.call(call.function, *self.arguments(call))
        if not isinstance(added, BaseException):
            self.made.book(added)
        elif error is None or not (
            self.is_own(error) or (isinstance(error, type(added)) and not twin.is_own(added))
        ):
            self.complaints.append(f"{call.function}: {error!r} and not {added!r}")

    def arguments(self, call: Call) -> tuple[Any, Any]:
        return [self.build(each) for each in call.arguments], {
            name: self.build(each) for name, each in call.keywords.items()
        }

    def settle(self) -> None:
        """Let every buffer send the rest."""
        self.objects_behave = True
        for buffer in self.buffers:
            buffer.metrics = Accepts(self)
            buffer.flush()
        for deliveries in self.deliveries:
            deliveries.flush(Accepts(self), None)

    def unraisable(self, ignored: sys.UnraisableHookArgs) -> None:
        """What nobody gets to see has to be the error of a ``__del__``."""
        if getattr(ignored.exc_value, "args", ()) != ("of __del__",):
            self.complaints.append(f"nobody got {ignored.exc_value!r}")


Entries = list[tuple[object, float]]


class Account:
    """What was made or delivered. Threads meet in it, and the methods of what dies there."""

    def __init__(self) -> None:
        self._entries: Entries = []

    def book(self, entries: Entries) -> None:
        self._entries.extend(
            entries
        )  # in one step: a sum would be read in one and written in another

    def as_text(self) -> dict[object, str]:
        """Sums by what they are of, with NaNs that are equal."""
        sums: dict[object, float] = {}
        for key, value in self._entries:
            sums[key] = sums.get(key, 0) + value
        return {key: repr(value) for key, value in sums.items()}


class Accepts:
    """A backend that does so."""

    def __init__(self, world: World) -> None:
        self.timing = self.increment = world.deliver_to


# What a call adds, by plain means. Raises what has to be refused.


def incr_counter(metric: Any, delta: Any) -> Entries:
    return [((text(metric), int), integer(delta, -(2**63), 2**63))]


def incr_timing(metric: Any, duration: Any) -> Entries:
    return [((text(metric), float), number(duration))]


def record(error: Any, latency: Any = None) -> Entries:
    status = "success" if error is None else "error"
    return [(status, 1), *([] if latency is None else [sample(number(latency))])]


def add(counts: Any, latencies: Any) -> Entries:
    counts, latencies = instance(dict, counts), instance(list, latencies)
    samples = [sample(number(latency)) for latency in list.__iter__(latencies)]
    items = list(dict.items(counts))
    counted = [(text(status), integer(count, 0, 2**64)) for status, count in items]
    if not {status for status, _ in counted} <= set(STATUSES):
        raise ValueError
    return [*counted, *samples]


def sample(seconds: float) -> tuple[object, float]:
    return repr(seconds), 1


def instance(cls: type, value: Any) -> Any:
    if not issubclass(type(value), cls):  # isinstance() believes what an object says of itself
        raise TypeError
    return value


def text(name: Any) -> str:
    return str.__str__(instance(str, name))


def integer(value: Any, start: int, stop: int) -> int:
    if start <= (integer := operator.index(value)) < stop:
        return integer
    raise OverflowError


def number(value: Any) -> float:
    return math.ldexp(value, 0)


ADDED_BY = {function.__name__: function for function in (incr_counter, incr_timing, record, add)}


def added_by(function: str, arguments: Any, keywords: dict[str, Any]) -> Entries | BaseException:
    """What a call adds, or why it has to be refused."""
    try:
        return ADDED_BY.get(function, nothing)(*arguments, **keywords)
    except BaseException as error:  # noqa: BLE001 - an object's own, for one
        return error


def nothing(*_: Any, **__: Any) -> Entries:
    return []


@contextmanager
def made(program: Program) -> Iterator[tuple[World, World]]:
    """Two worlds that know nothing of each other; what is no object's leads to the first."""
    arroyo_metrics_buffer.install()
    world, twin = World(program), World(program)
    with (
        mock.patch.object(arroyo_metrics, "get_metrics", lambda: Accepts(world)),
        mock.patch.object(sys, "unraisablehook", world.unraisable),
    ):
        try:
            yield world, twin
        finally:
            world.objects_behave = twin.objects_behave = True  # when the rest of their objects die


@in_new_interpreter
def test_no_object_crashes_hangs_or_miscounts() -> None:
    logging.getLogger("arroyo_metrics_buffer").setLevel(logging.CRITICAL)
    gc.freeze()  # what is there before need not be looked at in every collection
    check()


# Cheap ones, beside the state machine's.
@settings(max_examples=3 * settings().max_examples)
@given(programs)
def check(program: Program) -> None:
    note_attempt(program)
    with made(program) as (world, twin):
        for call in program.calls:
            world.do(call, twin)
        world.settle()
    assert world.complaints == [], world.complaints
    delivered, all_made = world.delivered.as_text(), world.made.as_text()
    assert delivered == all_made, f"{all_made} made, {delivered} delivered"
