"""Which classes of arroyo and sentry-streams this package knows.

A class is known by its methods, the parameters of each and the words in its code, and by what it
derives from, whatever classes of others are in between. That tells a release that changed what the
class does, or that took a lock into it, from one that moved it or reformatted it; and it does not
depend on version numbers, which a fork of arroyo may change.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any, NamedTuple, cast

PRODUCER = "confluent_kafka.Producer"


class Method(NamedTuple):
    """What is compared of a method: its parameters, and the names and strings in its code."""

    parameters: tuple[str, ...]
    words: frozenset[str]


class Shape(NamedTuple):
    """What is compared of a class: what it derives from, and its methods by name."""

    base: str
    methods: Mapping[str, Method]


def difference(cls: object, known: Shape, *, ignored: Collection[str] = ()) -> str | None:
    """How a class differs from the known shape, in words; None if it does not.

    Methods whose names are ignored may be any.
    """
    if not isinstance(cls, type):
        return f"it is not a class but {type(cls).__name__!r}"
    if (base := _base(cls)) != known.base:
        return f"its base is {base}, not {known.base}"
    actual = methods_of(cls)
    for name in sorted((known.methods.keys() | actual.keys()) - set(ignored)):
        if name not in actual:
            return f"it has no method {name}()"
        if name not in known.methods:
            return f"its method {name}() is not known"
        if actual[name] != known.methods[name]:
            return f"its method {name}() is another"
    return None


def confluent_kafkas_producer() -> type | None:
    """confluent_kafka's own class, whatever an agent has put in its place; None if there is none.

    Agents replace it by a subclass: in the package, as ddtrace and OpenTelemetry do, or in the
    extension module, as New Relic does. ``__base__`` leads from each to the class that is in C.
    """
    for name in "confluent_kafka.cimpl", "confluent_kafka":
        cls = getattr(sys.modules.get(name), "Producer", None)
        if isinstance(cls, type):
            while (base := cls.__base__) not in (None, object):
                cls = base
            return cls
    return None


def _base(cls: type) -> str:
    if confluent_kafkas_producer() in cls.__mro__[1:]:
        return PRODUCER
    return " and ".join(base.__name__ for base in cls.__bases__)


def methods_of(cls: type) -> Mapping[str, Method]:
    """The methods of a class, by name, without those that it inherits."""
    return {
        name: method_of(value)
        for name, value in attributes_of(cls).items()
        if isinstance(value, FunctionType)
    }


def attributes_of(cls: type) -> Mapping[str, Any]:
    """What is in a class, but for the functions that ``typing`` puts into those of a protocol."""
    return {
        name: value
        for name, value in vars(cls).copy().items()
        if not (isinstance(value, FunctionType) and value.__globals__.get("__name__") == "typing")
    }


def method_of(function: FunctionType) -> Method:
    """What is compared of a function."""
    words = frozenset(_words(function.__code__)) - {function.__doc__}
    return Method(_parameters(function), words)


def _parameters(function: FunctionType) -> tuple[str, ...]:
    code = function.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _words(part: Any) -> Iterator[str]:
    """The names and strings in a function's code, or in a constant of it."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, tuple):
        for item in cast("tuple[object, ...]", part):
            yield from _words(item)
    elif isinstance(part, CodeType):
        yield from part.co_names
        yield from _words(part.co_consts)


def _method(parameters: str, words: str) -> Method:
    return Method(("self", *parameters.split()), frozenset(words.split()))


_TABLES = "_MetricsBuffer__timers _MetricsBuffer__counters _MetricsBuffer__reset "
_INIT = _TABLES + "defaultdict float int "
_FLUSH = _TABLES + "timing increment items "
_THROTTLED = _method("", "METRICS_FREQUENCY_SEC flush time _MetricsBuffer__last_record_time")

METRICS_BUFFER = Shape(
    "object",
    {
        "__init__": _method("", _INIT + "metrics get_metrics"),
        "incr_timing": _method(
            "metric duration", "_MetricsBuffer__timers _MetricsBuffer__throttled_record"
        ),
        "incr_counter": _method(
            "metric delta", "_MetricsBuffer__counters _MetricsBuffer__throttled_record"
        ),
        "flush": _method("", _FLUSH + "metrics"),
        "_MetricsBuffer__reset": _method(
            "",
            "clear time"
            " _MetricsBuffer__timers _MetricsBuffer__counters _MetricsBuffer__last_record_time",
        ),
        "_MetricsBuffer__throttled_record": _THROTTLED,
    },
)
"""``arroyo.processing.processor.MetricsBuffer`` of sentry-arroyo 2.28.0 to 2.48.0.

Those of 2.14.25 to 2.24.0 and of 0.0.33 are the same.
"""

METRICS_BUFFER_2_26_0 = Shape(
    "object",
    {**METRICS_BUFFER.methods, "__init__": _method("", _INIT + "metrics get_consumer_metrics")},
)
"""The same class of 2.26.0 and 2.27.0."""

METRICS_BUFFER_2_25_0 = Shape(
    "object",
    {
        **METRICS_BUFFER.methods,
        "__init__": _method(
            "consumer",
            _INIT + "metrics get_consumer_metrics member_id _MetricsBuffer__consumer",
        ),
    },
)
"""The same class of 2.25.0."""

METRICS_BUFFER_2_11_5 = Shape(
    "object",
    {
        **METRICS_BUFFER.methods,
        "__init__": _method("", _INIT + "get_metrics _MetricsBuffer__metrics"),
        "flush": _method("", _FLUSH + "_MetricsBuffer__metrics"),
    },
)
"""The same class of 2.11.5 to 2.14.24."""

METRICS_BUFFER_2_10_3 = Shape(
    "object",
    {
        **METRICS_BUFFER_2_11_5.methods,
        "flush": _method("", _FLUSH + "value _MetricsBuffer__metrics"),
    },
)
"""The same class of 2.10.3 to 2.11.4, whose metrics are members of enums."""

METRICS_BUFFER_1_1_0 = Shape(
    "object",
    {
        "__init__": _method("", "get_metrics _MetricsBuffer__metrics _MetricsBuffer__reset"),
        "increment": _method(
            "metric duration", "_MetricsBuffer__data _MetricsBuffer__throttled_record"
        ),
        "flush": _method(
            "",
            "timing items value _MetricsBuffer__data _MetricsBuffer__metrics _MetricsBuffer__reset",
        ),
        "_MetricsBuffer__reset": _method(
            "",
            "defaultdict float time _MetricsBuffer__data _MetricsBuffer__last_record_time",
        ),
        "_MetricsBuffer__throttled_record": _THROTTLED,
    },
)
"""The same class of 1.1.0 to 2.10.2, which has timers only."""

_INIT_2_38_5 = (
    "super __init__ dict get client.id producer_name get_metrics defaultdict int"
    " _ConfluentProducer__metrics _ConfluentProducer__produce_counters"
    " _ConfluentProducer__reset_metrics"
)
_PRODUCE = "super produce pop callback on_delivery _ConfluentProducer__delivery_callback"
_WRAPPED = (
    "_ConfluentProducer__metrics_delivery_callback error message return None"
    " Optional[KafkaError] ConfluentMessage"
)
_STATUS = (
    "increment items name value tags status producer_name arroyo.producer.produce_status"
    " _ConfluentProducer__metrics _ConfluentProducer__produce_counters"
    " _ConfluentProducer__reset_metrics"
)
_RESET = "clear time _ConfluentProducer__produce_counters _ConfluentProducer__last_record_time"
_THROTTLED_RECORD = (
    "METRICS_FREQUENCY_SEC time _ConfluentProducer__last_record_time"
    " _ConfluentProducer__flush_metrics"
)

PRODUCER_2_38_5 = Shape(
    PRODUCER,
    {
        "__init__": _method("configuration", _INIT_2_38_5),
        "_ConfluentProducer__metrics_delivery_callback": _method(
            "error _message",
            "success error _ConfluentProducer__produce_counters"
            " _ConfluentProducer__throttled_record",
        ),
        "_ConfluentProducer__delivery_callback": _method("user_callback", _WRAPPED),
        "produce": _method("", _PRODUCE),
        "_ConfluentProducer__flush_metrics": _method("", _STATUS),
        "flush": _method("timeout", "super flush _ConfluentProducer__flush_metrics"),
        "_ConfluentProducer__reset_metrics": _method("", _RESET),
        "_ConfluentProducer__throttled_record": _method("", _THROTTLED_RECORD),
    },
)
"""``arroyo.backends.kafka.consumer.ConfluentProducer`` of 2.38.5 to 2.40.1."""

PRODUCER_2_31_2 = Shape(
    PRODUCER,
    {
        **PRODUCER_2_38_5.methods,
        "__init__": _method("configuration", _INIT_2_38_5.replace(" dict ", " ")),
        "flush": _method("timeout", "super flush cast int _ConfluentProducer__flush_metrics"),
    },
)
"""The same class of 2.31.2 to 2.38.4."""

PRODUCER_2_40_3 = Shape(
    PRODUCER,
    {
        **PRODUCER_2_38_5.methods,
        "__init__": _method(
            "configuration", _INIT_2_38_5 + " _ConfluentProducer__callback_latency"
        ),
        "_ConfluentProducer__metrics_delivery_callback": _method(
            "error _message time_of_produce",
            "success error append time _ConfluentProducer__produce_counters"
            " _ConfluentProducer__callback_latency _ConfluentProducer__throttled_record",
        ),
        "_ConfluentProducer__delivery_callback": _method(
            "user_callback time_of_produce", _WRAPPED + " partial time_of_produce float"
        ),
        "produce": _method("", _PRODUCE + " time"),
        "_ConfluentProducer__flush_metrics": _method(
            "",
            _STATUS + " timing arroyo.producer.callback_latency N/A"
            " _ConfluentProducer__callback_latency",
        ),
        "_ConfluentProducer__reset_metrics": _method(
            "", _RESET + " _ConfluentProducer__callback_latency"
        ),
    },
)
"""The same class of 2.40.3 to 2.48.0."""

_UNBUFFERED = "increment arroyo.producer.produce_status success error tags status"

PRODUCER_2_31_1 = Shape(
    PRODUCER,
    {
        "__init__": _method(
            "configuration",
            "super __init__ get client.id producer_name get_metrics _ConfluentProducer__metrics",
        ),
        "_ConfluentProducer__metrics_delivery_callback": _method(
            "error _message", _UNBUFFERED + " producer_name _ConfluentProducer__metrics"
        ),
        "_ConfluentProducer__delivery_callback": _method("user_callback", _WRAPPED),
        "produce": _method("", _PRODUCE),
    },
)
"""The same class of 2.31.1, which sends every metric at once."""

PRODUCER_2_31_0 = Shape(
    PRODUCER,
    {
        **PRODUCER_2_31_1.methods,
        "__init__": _method(
            "configuration", "super __init__ get_metrics _ConfluentProducer__metrics"
        ),
        "_ConfluentProducer__metrics_delivery_callback": _method(
            "error _message", _UNBUFFERED + " _ConfluentProducer__metrics"
        ),
    },
)
"""The same class of 2.31.0."""

_BUFFERED = "_BufferedMetricsBackend__"
_OF_BACKEND = f"{_BUFFERED}timers {_BUFFERED}counters {_BUFFERED}gauges {_BUFFERED}"
_ADD = f"{_BUFFERED}add_to_buffer {_BUFFERED}throttled_flush {_BUFFERED}"

BUFFERED_BACKEND = Shape(
    "MetricsBackend",
    {
        "__init__": _method(
            "backend throttle_interval_sec",
            f"{_OF_BACKEND}backend {_BUFFERED}last_flush_time {_BUFFERED}throttle_interval_sec",
        ),
        f"{_BUFFERED}add_to_buffer": _method(
            "buffer name value tags replace", f"{_BUFFERED}normalize_tags frozenset hash"
        ),
        f"{_BUFFERED}normalize_tags": _method("tags", ": _ items replace |"),
        "increment": _method("name value tags", f"{_ADD}counters"),
        "gauge": _method("name value tags", f"{_ADD}gauges replace"),
        "timing": _method("name value tags", f"{_ADD}timers"),
        f"{_BUFFERED}throttled_flush": _method(
            "", f"{_BUFFERED}last_flush_time {_BUFFERED}throttle_interval_sec flush time"
        ),
        "flush": _method(
            "", f"{_OF_BACKEND}backend {_BUFFERED}reset gauge increment tags timing values"
        ),
        f"{_BUFFERED}reset": _method("", f"{_OF_BACKEND}last_flush_time clear time"),
    },
)
"""``sentry_streams.metrics.metrics.BufferedMetricsBackend`` of sentry-streams 0.0.42 to 0.0.69."""
