"""What holds for sentry-streams' buffer: it does what the library's own does, and loses nothing."""

from __future__ import annotations

import copy
import gc
import math
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import arroyo_metrics_buffer
from arroyo_metrics_buffer import BufferedMetricsBackend, MetricsBuffer, stats
from support.backends import Outage
from support.hypothesis_settings import settings
from support.new_interpreter import in_new_interpreter
from support.programs import python
from support.streams import StreamsBackend, StreamsCall, streams_module, streams_own
from support.threads import run_together
from support.times import UNIT, ManualClock

CALLS = 5_000  # by each thread
INTERVAL = 10.0
TAGS = {"step": "map", "pipeline": "billing"}


class Text(str):
    """A str of another class."""

    __slots__ = ()


texts = st.sampled_from(["a", "b", "a|b", "a_b", "a:b", "b:a", "", "µ", "\ud800", "|", Text("a|b")])
tags = st.none() | st.dictionaries(texts, texts, max_size=3)
values = (
    st.integers(-(2**40), 2**40)
    | st.booleans().map(int)
    | st.floats(width=32)
    | st.sampled_from([-0.0, math.inf, math.nan])
)
calls = st.tuples(st.sampled_from(["increment", "gauge", "timing"]), texts, values, tags)
flushes = st.just(("flush",))
# Backwards too, and such that the interval is met exactly.
passing_time = st.tuples(
    st.just("pass"), st.sampled_from([0.0, INTERVAL / 2, INTERVAL, 3.0, -4.0, 1e9])
)


def comparable(calls: list[StreamsCall]) -> list[Any]:
    """What is equal for equal calls only: NaN included, and ints being no floats."""
    return [
        (method, name, type(name), repr(value), tags, list(map(type, tags.values())))
        for method, name, value, tags in calls
    ]


@settings()
@given(
    interval=st.sampled_from([INTERVAL, 0.0, -1.0, math.inf]),
    began=st.sampled_from([0.0, INTERVAL, 1.7e9]),
    steps=st.lists(calls | calls | calls | flushes | passing_time, max_size=40),
)
def test_it_makes_the_calls_that_the_librarys_own_makes(
    interval: float, began: float, steps: list[Any]
) -> None:
    clock = ManualClock()
    clock.now = began
    with mock.patch.object(streams_module(), "time", SimpleNamespace(time=clock)):
        theirs, ours = StreamsBackend(), StreamsBackend()
        original = streams_own()(theirs, interval)
        replacement = BufferedMetricsBackend(ours, interval, clock=clock)
        for what, *arguments in steps:
            if what == "pass":
                # Where every call flushes, one of the library's does not after a step backwards.
                clock.now += arguments[0] if interval > 0 else abs(arguments[0])
                continue
            for buffer in (original, replacement):
                getattr(buffer, what)(*arguments)
            assert comparable(ours.calls) == comparable(theirs.calls)
        original.flush()
        replacement.flush()
    assert comparable(ours.calls) == comparable(theirs.calls)


def test_arguments_have_the_names_and_the_defaults_of_the_librarys() -> None:
    for cls in (BufferedMetricsBackend, streams_own()):
        backend = StreamsBackend()
        buffer = cls(backend=backend, throttle_interval_sec=INTERVAL)
        buffer.increment(name="counter")
        buffer.increment(name="counter", value=2, tags=TAGS)
        buffer.gauge(name="gauge", value=3, tags=None)
        buffer.timing(name="timer", value=0.5, tags={})
        buffer.flush()
        assert backend.calls == [
            ("increment", "counter", 1, {}),
            ("timing", "timer", 0.5, {}),
            ("increment", "counter", 2, TAGS),
            ("gauge", "gauge", 3, {}),
        ]


def test_it_is_a_backend_to_the_librarys_protocol() -> None:
    protocol = streams_module().MetricsBackend
    assert isinstance(BufferedMetricsBackend(StreamsBackend(), INTERVAL), protocol)
    assert issubclass(BufferedMetricsBackend, protocol)


def test_it_is_throttled_by_a_test_s_clock_as_the_librarys_own_is() -> None:
    with mock.patch("time.time", return_value=0.0) as clock:
        buffer = BufferedMetricsBackend(backend := StreamsBackend(), INTERVAL)
        buffer.increment("x")
        assert backend.calls == []
        clock.return_value = INTERVAL
        buffer.increment("x")
        assert backend.calls == [("increment", "x", 2, {})]


@pytest.mark.parametrize(
    ("interval", "flushes"), [(1e6, 1), (0.0, 2), (-1.0, 2), (math.inf, 0), (1e300, 0)]
)
def test_the_first_call_flushes_by_the_native_clock(interval: float, flushes: int) -> None:
    buffer = BufferedMetricsBackend(backend := StreamsBackend(), interval)
    buffer.increment("x")
    buffer.increment("x")
    assert len(backend.calls) == flushes


def made(backend: Any, interval: float = math.inf) -> BufferedMetricsBackend:
    """One that the next call does not flush."""
    return BufferedMetricsBackend(backend, interval, clock=ManualClock())


def test_tags_that_differ_in_what_is_normalised_are_one_metric_with_the_last_ones_tags() -> None:
    buffer = made(backend := StreamsBackend())
    first, last = {"a": "x|y", "b": "z"}, {"b": "z", "a": "x_y"}
    buffer.increment("name", 1, first)
    buffer.increment("name", 2, last)
    buffer.flush()
    (call,) = backend.calls
    assert call.value == 3
    assert call.tags is last


def test_tags_may_be_any_mapping_and_their_keys_any_object() -> None:
    class Tags(dict[Any, str]):
        pass

    buffer = made(backend := StreamsBackend())
    proxy: Any = type("", (), {"a": "b"}).__dict__
    proxy = type(proxy)({"a": "b"})
    for each in ({"a": "b"}, Tags(a="b"), proxy):
        buffer.increment("name", 1, each)
    numbered: Any = {1: "b"}
    buffer.increment("name", 1, numbered)
    buffer.increment("name", 1, {"1": "b"})
    buffer.flush()
    assert [call.value for call in backend.calls] == [3, 2]


def test_an_int_stays_one_and_a_float_makes_a_float() -> None:
    buffer = made(StreamsBackend())
    buffer.increment("ints", 2**62)
    buffer.increment("ints", 2**62 - 1)
    buffer.timing("ints", 1)
    buffer.increment("mixed", 1)
    buffer.increment("mixed", 0.5)
    buffer.gauge("gauge", 1.5)
    buffer.gauge("gauge", 2)
    assert repr(buffer) == (
        "<BufferedMetricsBackend timers=[('ints', 1, {})]"
        f" counters=[('ints', {2**63 - 1}, {{}}), ('mixed', 1.5, {{}})]"
        " gauges=[('gauge', 2, {})]>"
    )


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda b: b.increment(1), TypeError, "name must be a str, not int"),
        (lambda b: b.increment("x", "1"), TypeError, "value must be a number, not str"),
        (lambda b: b.increment("x", None), TypeError, "value must be a number, not NoneType"),
        (lambda b: b.gauge("x", 2**63), OverflowError, "does not fit in 64 bits"),
        (lambda b: b.increment("max", 1), OverflowError, "max would leave 64 bits"),
        (lambda b: b.timing("x", 1, {"a": 1}), TypeError, "value of a tag must be a str, not int"),
        (lambda b: b.timing("x", 1, 1), TypeError, "not iterable"),
        (lambda b: b.timing("x"), TypeError, "value"),
        (lambda b: b.__init__(b, 1), RuntimeError, "called before"),
    ],
)
def test_bad_input_is_refused_and_leaves_all_as_it_was(
    call: Callable[[Any], object], error: type[Exception], text: str
) -> None:
    buffer = made(StreamsBackend())
    buffer.increment("max", 2**63 - 1)
    before = repr(buffer)
    with pytest.raises(error, match=text):
        call(buffer)
    assert repr(buffer) == before


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((None, "1"), TypeError),
        ((None, math.nan), ValueError),
        ((None,), TypeError),
        ((), TypeError),
    ],
)
def test_a_bad_constructor_argument_is_refused(
    arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        BufferedMetricsBackend(*arguments)


def test_a_tag_that_raises_adds_nothing_and_its_error_is_raised() -> None:
    class Key:
        def __str__(self) -> str:
            raise Outage

    buffer = made(StreamsBackend())
    key: Any = Key()
    with pytest.raises(Outage):
        buffer.increment("x", 1, {key: "a"})
    assert buffer.snapshot() == ([], [], [])


def test_tags_may_be_changed_by_a_key_that_is_asked_for_its_text() -> None:
    class Key:
        def __str__(self) -> str:
            changing.clear()
            return "key"

    buffer = made(StreamsBackend())
    changing: Any = {Key(): "a", "b": "c"}
    buffer.increment("x", 1, changing)
    assert buffer.snapshot()[1] == [("x", 1, {})]


def test_a_subclass_may_have_a_constructor_and_a_flush_of_its_own() -> None:
    class Mine(BufferedMetricsBackend):
        def __init__(self, *, flushes: list[str]) -> None:
            super().__init__(StreamsBackend(), 0.0)
            self.flushes = flushes

        def flush(self) -> None:
            self.flushes.append("mine")
            super().flush()

    buffer = Mine(flushes=[])
    buffer.increment("x")
    assert buffer.flushes == ["mine"]
    with mock.patch.object(buffer, "flush") as flush:
        buffer.increment("x")
    flush.assert_called_once_with()


class Tallying:
    """A backend that sums, and lets other threads run while it does."""

    def __init__(self) -> None:
        self.sums: Counter[tuple[str, str]] = Counter()

    def increment(self, name: str, value: float, *, tags: dict[str, str]) -> None:
        time.sleep(0)
        self.sums[name, tags["step"]] += value  # type: ignore[assignment]

    def timing(self, name: str, value: float, *, tags: dict[str, str]) -> None:
        self.increment(name, value, tags=tags)

    def gauge(self, name: str, value: float, *, tags: dict[str, str]) -> None: ...


@pytest.mark.usefixtures("tiny_switch_interval")
def test_nothing_is_lost_or_counted_twice_by_threads() -> None:
    # Each flush is of one thread, so that the backend's sums need no lock.
    backends: list[Tallying] = []
    buffer = BufferedMetricsBackend(SharedOut(backends), 0.001)

    def write() -> None:
        for i in range(CALLS):
            buffer.increment("count", 1, {"step": f"step {i % 5}"})
            buffer.timing("time", UNIT * (i % 7), {"step": "a|b"})
            buffer.gauge("gauge", i, TAGS)

    def flush() -> None:
        for _ in range(CALLS // 10):
            buffer.flush()
            buffer.snapshot()
            repr(buffer)

    run_together(write, write, write, flush, flush)
    buffer.flush()
    delivered: Counter[tuple[str, str]] = sum((each.sums for each in backends), Counter())
    assert delivered == {
        **{("count", f"step {i}"): 3 * CALLS // 5 for i in range(5)},
        ("time", "a|b"): 3 * UNIT * sum(i % 7 for i in range(CALLS)),
    }


class SharedOut:
    """A backend that gives each flush another one."""

    def __init__(self, backends: list[Tallying]) -> None:
        self._backends = backends

    def __getattr__(self, method: str) -> Any:
        self._backends.append(backend := Tallying())
        return getattr(backend, method)


def test_a_backend_error_puts_back_what_was_not_sent_behind_nothing_newer() -> None:
    buffer = made(backend := StreamsBackend())
    buffer.timing("timer", 1)
    buffer.increment("first", 1)
    buffer.increment("second", 2)
    buffer.gauge("gauge", 3)
    backend.error, backend.refused = Outage(), {"second"}
    with pytest.raises(Outage):
        buffer.flush()
    assert backend.take() == [("timing", "timer", 1, {}), ("increment", "first", 1, {})]
    buffer.increment("newer", 4)
    buffer.increment("second", 8)
    backend.error = None
    buffer.flush()
    assert backend.take() == [
        ("increment", "second", 10, {}),
        ("increment", "newer", 4, {}),
        ("gauge", "gauge", 3, {}),
    ]


def test_a_gauge_and_tags_that_are_put_back_do_not_replace_newer_ones() -> None:
    buffer = made(backend := StreamsBackend())
    older, newer = {"a": "x|y"}, {"a": "x_y"}

    class SetsMeanwhile(Outage):
        pass

    def refuse(*_: object, **__: object) -> None:
        buffer.gauge("gauge", 2, newer)
        buffer.increment("counter", 2, newer)
        raise SetsMeanwhile

    buffer.gauge("gauge", 1, older)
    buffer.increment("counter", 1, older)
    with mock.patch.object(backend, "increment", refuse), pytest.raises(SetsMeanwhile):
        buffer.flush()
    buffer.flush()
    counter, gauge = backend.take()
    assert counter == ("increment", "counter", 3, newer)
    assert gauge == ("gauge", "gauge", 2, newer)
    assert counter.tags is gauge.tags is newer


def test_what_its_flush_raises_after_it_has_added_is_not_counted_twice() -> None:
    """In front of it is arroyo's buffer, which puts back what its backend has not accepted."""
    backend = StreamsBackend()
    backend.error, backend.refused = Outage(), {"x"}
    buffer = BufferedMetricsBackend(backend, 0.0)

    class Adapter:
        def increment(self, name: str, value: int) -> None:
            buffer.increment(name, value, TAGS)

    in_front = MetricsBuffer(Adapter(), flush_interval=math.inf)
    in_front.incr_counter("x", 1)
    in_front.incr_counter("y", 2)
    with pytest.raises(Outage):
        in_front.flush()
    assert in_front.snapshot() == ({}, {"y": 2})
    assert buffer.snapshot()[1] == [("x", 1, TAGS)]
    backend.error = None
    in_front.flush()
    buffer.flush()
    assert backend.calls == [("increment", "x", 1, TAGS), ("increment", "y", 2, TAGS)]


def test_an_error_of_an_earlier_call_does_not_make_an_entry_accepted() -> None:
    error = Outage()
    backend = StreamsBackend()
    backend.error, backend.refused = error, {"x"}
    with pytest.raises(Outage):
        BufferedMetricsBackend(backend, 0.0).increment("x")  # added, and raised

    class Refusing:
        def increment(self, *_: object) -> None:
            raise error

    in_front = MetricsBuffer(Refusing(), flush_interval=math.inf)
    in_front.incr_counter("y", 2)
    with pytest.raises(Outage):
        in_front.flush()
    assert in_front.snapshot() == ({}, {"y": 2})


def test_an_outage_is_logged_and_counted_as_those_of_the_other_buffers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = stats().streams
    arroyo_metrics_buffer.install(on_backend_error="log")
    backend = StreamsBackend()
    backend.error, backend.refused = Outage("down"), {"x"}
    buffer = BufferedMetricsBackend(backend, 0.0)
    buffer.increment("x")
    buffer.increment("x")
    backend.error = None
    buffer.increment("x")
    assert backend.calls == [("increment", "x", 3, {})]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    after = stats().streams
    assert after.flushes - before.flushes == 3
    assert after.backend_errors - before.backend_errors == 2
    assert after.outages - before.outages == 1
    assert after.entries_sent - before.entries_sent == 1


def test_the_backend_may_call_in() -> None:
    class Backend(StreamsBackend):
        def _record(self, method: str, name: str, value: float, tags: dict[str, str]) -> None:
            super()._record(method, name, value, tags)
            if name == "x":
                buffer.increment("from within")
                buffer.flush()
                repr(buffer)

    buffer = made(backend := Backend())
    buffer.increment("x")
    buffer.flush()
    assert [call.name for call in backend.calls] == ["x", "from within"]


def test_one_in_a_cycle_with_its_backend_is_collected() -> None:
    backend: Any = StreamsBackend()
    backend.buffer = made(backend)
    backend.buffer.increment("x", 1, TAGS)
    gone = weakref.ref(backend.buffer)
    del backend
    gc.collect()
    assert gone() is None


def test_only_the_last_calls_tags_are_held_and_let_go_after_the_flush() -> None:
    class Tags(dict[str, str]):
        pass

    class Forgetting(StreamsBackend):
        def _record(self, *_: object) -> None: ...

    buffer = made(Forgetting())
    made_of: list[weakref.ref[Tags]] = []
    for _ in range(3):
        tags = Tags(a="b")
        made_of.append(weakref.ref(tags))
        buffer.increment("x", 1, tags)
    del tags
    assert [each() for each in made_of] == [None, None, {"a": "b"}]
    buffer.flush()
    assert [each() for each in made_of] == [None] * 3


def test_it_is_not_copied() -> None:
    with pytest.raises(TypeError):
        copy.copy(made(StreamsBackend()))


END = """
import atexit, math
from arroyo_metrics_buffer import BufferedMetricsBackend, MetricsBuffer

class Printing:
    def increment(self, name, value, tags):
        print(name, value, tags)

class Adapter:
    def increment(self, name, value):
        buffer.increment(name, value, {"by": "arroyo"})

buffer = BufferedMetricsBackend(Printing(), math.inf)
in_front = MetricsBuffer(Adapter(), flush_interval=math.inf)
buffer.increment("own", 1)
in_front.incr_counter("in front", 2)
"""


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)"])
def test_what_is_pending_is_sent_at_the_end_with_what_other_buffers_send_through_it(
    end: str,
) -> None:
    ended = python(END + end)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["own 1 {}", "in front 2 {'by': 'arroyo'}"]


@in_new_interpreter
def test_a_process_that_knows_no_sentry_streams_imports_nothing_of_it() -> None:
    assert arroyo_metrics_buffer.status().targets
    assert not any("sentry_streams" in name for name in sys.modules)
