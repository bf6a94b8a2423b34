"""What a release of arroyo does with its own classes, and with this package's in their place.

Prints, as JSON, where the release is, the state of each target under it, and the calls that the
metrics backend gets from it, patched and unpatched, for the same calls of the buffers. A release of
sentry-streams, if there is one on the path, is driven too.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from enum import EnumMeta
from types import SimpleNamespace
from typing import Any, get_args

import arroyo
from arroyo.backends.kafka import consumer
from arroyo.processing import processor
from arroyo.utils.metrics import configure_metrics

import arroyo_metrics_buffer

Calls = list[Any]


class Backend:
    """Records how it is called."""

    def __init__(self) -> None:
        self.calls: Calls = []

    def increment(self, *arguments: Any, **keywords: Any) -> None:
        self.calls.append(["increment", arguments, keywords])

    def timing(self, *arguments: Any, **keywords: Any) -> None:
        self.calls.append(["timing", arguments, keywords])

    def gauge(self, *arguments: Any, **keywords: Any) -> None:
        self.calls.append(["gauge", arguments, keywords])


class Clock:
    """Stands in for ``time.time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def drive_metrics_buffer(backend: Backend, clock: Clock) -> list[Calls]:
    """The calls of a buffer that is used as its processor does."""
    chosen = random.Random(1)  # noqa: S311
    try:
        buffer: Any = processor.MetricsBuffer()
    except TypeError:  # 2.25
        member: Any = SimpleNamespace(member_id="a member")
        buffer = processor.MetricsBuffer(member)  # type: ignore[call-arg]
    backend.calls.clear()
    timers, counters = metrics_of(processor.ConsumerTiming), []
    if hasattr(processor, "ConsumerCounter"):
        counters = metrics_of(processor.ConsumerCounter)
    add_timing = getattr(buffer, "increment", None) or buffer.incr_timing
    for _ in range(200):
        clock.now += chosen.choice([0.0, 0.0, 0.25, 0.75, 1.5])
        add_timing(chosen.choice(timers), chosen.choice([0.5, 1.25, 3]))
        if counters:
            buffer.incr_counter(chosen.choice(counters), chosen.choice([0, 1, 2]))
        if chosen.random() < 0.05:
            buffer.flush()
    buffer.flush()
    return [[*backend.calls]]


def metrics_of(kind: Any) -> list[Any]:
    """The members of an enum or of a literal type."""
    return list(kind) if isinstance(kind, EnumMeta) else list(get_args(kind))


def drive_producer(backend: Backend, clock: Clock) -> list[Calls]:
    """The calls of producers, with what their users' callbacks saw."""
    return [
        deliver(configuration, backend, clock) for configuration in ({}, {"client.id": "billing"})
    ]


def deliver(configuration: dict[str, str], backend: Backend, clock: Clock) -> Calls:
    """As librdkafka calls back what ``produce()`` gives it, the messages being purged."""
    chosen = random.Random(1)  # noqa: S311
    producer: Any = consumer.ConfluentProducer({"log_level": 0, **configuration})
    backend.calls.clear()
    seen: Calls = []
    has_latencies = hasattr(producer, "_ConfluentProducer__callback_latency")
    for turn in range(40):
        clock.now += chosen.choice([0.0, 0.25, 0.75, 1.5])

        def done(error: Any, message: Any, turn: int = turn) -> None:
            seen.append([turn, error.name(), message.topic()])

        producer.produce("topic", b"value", on_delivery=done if turn % 3 else None)
        clock.now += chosen.choice([0.0, 0.25])
        if chosen.random() < 0.7:
            purge(producer)
        sent_at = [clock.now - 0.5] if has_latencies else []
        for error in chosen.choices([None, "down"], k=3):
            producer._ConfluentProducer__metrics_delivery_callback(error, "message", *sent_at)
    purge(producer)
    producer.flush(0)
    return [*backend.calls, seen]


def purge(producer: Any) -> None:
    """Have librdkafka give up all messages, and call back for each.

    One poll may return before the last callback, or wait longer than it takes: that depends on the
    release of confluent_kafka.
    """
    producer.purge()
    while len(producer):
        producer.poll(0)


def drive_streams(backend: Backend, clock: Clock) -> list[Calls]:
    """The calls of a buffer of sentry-streams."""
    chosen = random.Random(1)  # noqa: S311
    streams = importlib.import_module(STREAMS)
    buffer = streams.BufferedMetricsBackend(backend, throttle_interval_sec=1.0)
    backend.calls.clear()
    names = [metric.value for metric in streams.Metric]
    tags = [None, {}, {"step": "a|b"}, {"step": "a_b"}, {"step": "map", "pipeline": "billing"}]
    for _ in range(200):
        clock.now += chosen.choice([0.0, 0.0, 0.25, 0.75, 1.5])
        add = getattr(buffer, chosen.choice(["increment", "gauge", "timing"]))
        add(chosen.choice(names), chosen.choice([1, 2, 0.5]), tags=chosen.choice(tags))
        if chosen.random() < 0.05:
            buffer.flush()
    buffer.flush()
    return [[*backend.calls]]


STREAMS = "sentry_streams.metrics.metrics"
TARGETS: dict[str, Callable[[Backend, Clock], list[Calls]]] = {
    "arroyo.processing.processor.MetricsBuffer": drive_metrics_buffer,
    "arroyo.backends.kafka.consumer.ConfluentProducer": drive_producer,
    f"{STREAMS}.BufferedMetricsBackend": drive_streams,
}


def main() -> None:
    backend: Any = Backend()
    configure_metrics(backend)
    outcomes: dict[str, Any] = {"arroyo": arroyo.__file__}
    with suppress(ModuleNotFoundError):
        importlib.import_module(STREAMS)
    for target in arroyo_metrics_buffer.status().targets:
        calls = {}
        if target.state == "patched":
            drive = TARGETS[target.name]
            time.time = clock = Clock()
            arroyo_metrics_buffer.install(clock=clock)
            calls["patched"] = drive(backend, clock)
            time.time = clock = Clock()
            arroyo_metrics_buffer.uninstall()
            calls["upstream"] = drive(backend, clock)
            arroyo_metrics_buffer.install()
        outcomes[target.name] = {"state": target.state, "reason": target.reason, **calls}
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
