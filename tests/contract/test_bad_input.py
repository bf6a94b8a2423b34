"""C9: bad input gets a clear error and changes nothing."""

from __future__ import annotations

import decimal
import fractions
import math
import re
from typing import Any

import pytest

from arroyo_metrics_buffer import MetricsBuffer
from support.backends import Recorder


class Raises:
    """An object whose conversions raise an error of their own."""

    def __index__(self) -> int:
        raise LookupError("of its own")

    def __float__(self) -> float:
        raise LookupError("of its own")


@pytest.fixture
def buffer() -> MetricsBuffer:
    buffer = MetricsBuffer(Recorder(), flush_interval=math.inf)
    buffer.incr_counter("c", 2**63 - 2)
    buffer.incr_timing("t", 0.5)
    return buffer


def everything(buffer: MetricsBuffer) -> object:
    return list(buffer.metrics.calls), buffer.snapshot()


@pytest.mark.parametrize(
    ("method", "arguments", "error", "message"),
    [
        ("incr_counter", (1, 1), TypeError, "metric must be a str, not int"),
        ("incr_counter", (None, 1), TypeError, "metric must be a str, not NoneType"),
        ("incr_counter", (b"c", 1), TypeError, "metric must be a str, not bytes"),
        ("incr_counter", ("c", 1.0), TypeError, "delta must be an integer, not float"),
        ("incr_counter", ("c", "1"), TypeError, "delta must be an integer, not str"),
        ("incr_counter", ("c", None), TypeError, "delta must be an integer, not NoneType"),
        ("incr_counter", ("c", decimal.Decimal(1)), TypeError, "an integer, not Decimal"),
        ("incr_counter", ("c", 2**63), OverflowError, "delta does not fit in 64 bits"),
        ("incr_counter", ("c", -(2**63) - 1), OverflowError, "delta does not fit in 64 bits"),
        ("incr_counter", ("c", 10**1000), OverflowError, "delta does not fit in 64 bits"),
        ("incr_counter", ("c", 2), OverflowError, "counter c would leave 64 bits"),
        ("incr_counter", ("c", Raises()), LookupError, "of its own"),
        ("incr_counter", ("c",), TypeError, "delta"),
        ("incr_counter", ("c", 1, 1), TypeError, "positional"),
        ("incr_timing", (1, 1.0), TypeError, "metric must be a str, not int"),
        ("incr_timing", ("t", "1"), TypeError, "duration must be a number, not str"),
        ("incr_timing", ("t", 1j), TypeError, "duration must be a number, not complex"),
        ("incr_timing", ("t", None), TypeError, "duration must be a number, not NoneType"),
        ("incr_timing", ("t", 10**1000), OverflowError, "too large"),
        ("incr_timing", ("t", Raises()), LookupError, "of its own"),
        ("incr_timing", ("t",), TypeError, "duration"),
    ],
)
def test_bad_input_raises_and_leaves_everything_as_it_was(
    buffer: MetricsBuffer,
    method: str,
    arguments: tuple[Any, ...],
    error: type[Exception],
    message: str,
) -> None:
    before = everything(buffer)
    with pytest.raises(error, match=re.escape(message)):
        getattr(buffer, method)(*arguments)
    assert everything(buffer) == before


@pytest.mark.parametrize("method", ["incr_counter", "incr_timing"])
def test_the_error_of_an_object_that_changes_its_class_is_the_one_it_raised(
    buffer: MetricsBuffer, method: str
) -> None:
    class Other:
        """One without conversions."""

    class Changes:
        def __index__(self) -> int:
            self.__class__ = Other  # type: ignore[assignment]
            return outcome()

        def __float__(self) -> float:
            self.__class__ = Other  # type: ignore[assignment]
            return float(outcome())

    outcome = Raises().__index__
    with pytest.raises(LookupError, match="of its own"):
        getattr(buffer, method)("c", Changes())
    outcome = (10**1000).__index__
    with pytest.raises(OverflowError):
        getattr(buffer, method)("c", Changes())


class Unprintable(str):
    """A name that gives nothing but its text."""

    __slots__ = ()

    def __str__(self) -> str:
        raise KeyboardInterrupt

    def __repr__(self) -> str:
        raise KeyboardInterrupt


def test_the_error_of_a_counter_has_the_text_of_a_name_that_can_not_be_printed(
    buffer: MetricsBuffer,
) -> None:
    with pytest.raises(OverflowError, match="counter c would leave 64 bits"):
        buffer.incr_counter(Unprintable("c"), 2)


def test_what_a_name_raises_when_it_is_shown_is_raised(buffer: MetricsBuffer) -> None:
    buffer.incr_counter(Unprintable("name"), 1)
    with pytest.raises(KeyboardInterrupt):
        repr(buffer)


def test_a_counter_may_go_to_the_very_ends_of_64_bits() -> None:
    buffer = MetricsBuffer(Recorder(), flush_interval=math.inf)
    for end, beyond in ((2**63 - 1, 1), (-(2**63), -1)):
        for name in ("first touch", f"name {end}"):
            buffer.incr_counter(name, end)
            with pytest.raises(OverflowError):
                buffer.incr_counter(name, beyond)
            assert buffer.snapshot()[1][name] == end
            buffer.incr_counter(name, -end - 1)
            buffer.incr_counter(name, 1)
            assert buffer.snapshot()[1][name] == 0


def test_counters_arrive_as_int_and_timers_as_float() -> None:
    class Index:
        def __index__(self) -> int:
            return 3

    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    deltas: list[Any] = [True, 2, Index()]
    for i, delta in enumerate(deltas):
        buffer.incr_counter(f"c{i}", delta)
    durations: list[Any] = [True, 2, Index(), fractions.Fraction(1, 2), decimal.Decimal(1)]
    for i, duration in enumerate(durations):
        buffer.incr_timing(f"t{i}", duration)
    buffer.flush()
    assert [type(call.value) for call in backend.calls] == [float] * 5 + [int] * 3
    assert [call.value for call in backend.calls] == [1.0, 2.0, 3.0, 0.5, 1.0, 1, 2, 3]


def test_nan_and_infinities_pass_through() -> None:
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    for name, durations in {
        "nan": [1.0, math.nan],
        "inf": [1.0, math.inf],
        "inf - inf": [math.inf, -math.inf],
    }.items():
        for duration in durations:
            buffer.incr_timing(name, duration)
    buffer.flush()
    assert str([call.value for call in backend.calls]) == "[nan, inf, nan]"


def test_a_str_subclass_is_compared_by_its_text_and_not_by_its_methods() -> None:
    class Liar(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            raise AssertionError

        def __hash__(self) -> int:
            raise AssertionError

        def __str__(self) -> str:
            raise AssertionError

        def encode(self, *_: Any) -> bytes:
            raise AssertionError

    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    for text in ("x", "é", "\ud800"):
        buffer.incr_counter(text, 1)
        buffer.incr_counter(Liar(text), 1)
    buffer.flush()
    assert backend.calls == [("increment", text, 2) for text in ("x", "é", "\ud800")]


def test_names_that_differ_in_any_character_are_different_names() -> None:
    texts = ["", "\x00", "a", "a\x00", "A", "é", "e\u0301", "\ud800", "\ud801", "\ufffd", "𐀀", "?"]
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    for text in texts:
        buffer.incr_timing(text, 1)
    buffer.flush()
    assert [call.name for call in backend.calls] == texts
