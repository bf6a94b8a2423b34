"""Which classes of arroyo this package knows how to replace.

A class is known by its methods: the parameters of each, and the names that its code uses. That
tells a release that changed what the class does, or that took a lock into it, from one that moved
it or reformatted it; and it does not depend on version numbers, which a fork of arroyo may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import NamedTuple


class Method(NamedTuple):
    """What is compared of a method."""

    parameters: tuple[str, ...]
    names: frozenset[str]


Shape = Mapping[str, Method]
"""A class: its methods by name."""


def difference(cls: object, known: Shape) -> str | None:
    """How a class differs from the known shape, in words; None if it does not."""
    if not isinstance(cls, type):
        return f"it is not a class but {type(cls).__name__!r}"
    if cls.__bases__ != (object,):
        return "it has a base class"
    actual = _shape_of(cls)
    for name in sorted(known.keys() | actual.keys()):
        if name not in actual:
            return f"it has no method {name}()"
        if name not in known:
            return f"its method {name}() is not known"
        if actual[name] != known[name]:
            return f"its method {name}() is another"
    return None


def _shape_of(cls: type) -> Shape:
    return {
        name: Method(_parameters(value), frozenset(value.__code__.co_names))
        for name, value in vars(cls).items()
        if isinstance(value, FunctionType)
    }


def _parameters(function: FunctionType) -> tuple[str, ...]:
    code = function.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _method(*parameters: str, names: str) -> Method:
    return Method(("self", *parameters), frozenset(names.split()))


METRICS_BUFFER: Shape = {
    "__init__": _method(
        names="metrics get_metrics defaultdict float int"
        " _MetricsBuffer__timers _MetricsBuffer__counters _MetricsBuffer__reset"
    ),
    "incr_timing": _method(
        "metric",
        "duration",
        names="_MetricsBuffer__timers _MetricsBuffer__throttled_record",
    ),
    "incr_counter": _method(
        "metric",
        "delta",
        names="_MetricsBuffer__counters _MetricsBuffer__throttled_record",
    ),
    "flush": _method(
        names="metrics timing increment items"
        " _MetricsBuffer__timers _MetricsBuffer__counters _MetricsBuffer__reset"
    ),
    "_MetricsBuffer__reset": _method(
        names="clear time"
        " _MetricsBuffer__timers _MetricsBuffer__counters _MetricsBuffer__last_record_time"
    ),
    "_MetricsBuffer__throttled_record": _method(
        names="METRICS_FREQUENCY_SEC flush time _MetricsBuffer__last_record_time"
    ),
}
"""``arroyo.processing.processor.MetricsBuffer`` of sentry-arroyo 2.28.0 to 2.48.0."""
