"""What a flush costs, and a delivery of a producer."""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from arroyo.backends.kafka import consumer as patched
from arroyo.utils.metrics import DummyMetricsBackend, configure_metrics

import arroyo_metrics_buffer
from contenders import BUFFERS, NEVER, Contender, Nothing
from measuring import OURS, Case

NAMES = (1, 10, 100, 10_000)
SAMPLES = (1, 1_000, 100_000)
DELIVERIES = 10_000  # a batch, some milliseconds long
AT_LEAST = 1_000  # entries in the flushes of a batch


def cases() -> Iterator[Case]:
    for names in NAMES:
        flushing = {name: flush(contender, names) for name, contender in BUFFERS.items()}
        yield Case("flush", f"{names:,} names", "µs", 30, flushing)
    producers = {"arroyo": producer(unpatched()), OURS: producer(patched)}
    delivering = {name: delivery(each) for name, each in producers.items()}
    yield Case("producer", "a delivery", "ns", 50, delivering)
    for samples in SAMPLES:
        reporting = {name: report(each, samples) for name, each in producers.items()}
        yield Case("producer", f"flush of {samples:,} latencies", "µs", 20, reporting)


def flush(contender: Contender, names: int) -> Callable[[], float]:
    buffer = contender.make(Nothing())
    counters = [f"metric {i}" for i in range(names)]
    flushes = max(AT_LEAST // names, 1)

    def fill() -> None:
        for name in counters:
            buffer.incr_counter(name, 1)

    return lambda: microseconds(fill, buffer.flush, flushes)


def microseconds(fill: Callable[[], None], flush: Callable[[], object], flushes: int) -> float:
    """Per flush."""
    seconds = 0.0
    for _ in range(flushes):
        fill()
        start = time.perf_counter()
        flush()
        seconds += time.perf_counter() - start
    return seconds / flushes * 1e6


def unpatched() -> Any:
    """A copy of arroyo's module that nobody patches."""
    copy = types.ModuleType("unpatched_consumer")
    exec(Path(patched.__file__).read_text(encoding="utf-8"), vars(copy))  # noqa: S102
    return copy


def producer(module: Any) -> Any:
    """One that sends to a backend that does nothing."""
    configure_metrics(DummyMetricsBackend(), force=True)
    module.METRICS_FREQUENCY_SEC = NEVER
    arroyo_metrics_buffer.install()
    made = module.ConfluentProducer({"client.id": "bench", "log_level": 0})
    return types.SimpleNamespace(
        delivered=made._ConfluentProducer__metrics_delivery_callback,  # noqa: SLF001
        flush=made._ConfluentProducer__flush_metrics,  # noqa: SLF001
    )


def deliver(producer: Any, deliveries: int) -> None:
    delivered, sent_at = producer.delivered, time.time()
    for _ in range(deliveries):
        delivered(None, None, sent_at)


def delivery(producer: Any) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        deliver(producer, DELIVERIES)
        end = time.perf_counter()
        producer.flush()
        return (end - start) / DELIVERIES * 1e9

    return run


def report(producer: Any, samples: int) -> Callable[[], float]:
    flushes = max(AT_LEAST // samples, 1)
    return lambda: microseconds(lambda: deliver(producer, samples), producer.flush, flushes)
