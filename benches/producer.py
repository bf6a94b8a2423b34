"""What a delivery and a flush of arroyo's producer cost: its own methods against the patched ones.

Rounds as in call_cost.py. The backend does nothing, so a flush is all overhead.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import types
from pathlib import Path
from typing import Any

from arroyo.backends.kafka import consumer as patched
from arroyo.utils.metrics import DummyMetricsBackend, configure_metrics
from call_cost import ratio

import arroyo_metrics_buffer

DELIVERIES = 10_000  # a batch, some milliseconds long
NEVER = 1e9  # seconds
CONFIGURATION = {"client.id": "bench", "log_level": 0}


def unpatched() -> Any:
    """A copy of arroyo's module that nobody patches."""
    copy = types.ModuleType("unpatched_consumer")
    exec(Path(patched.__file__).read_text(), vars(copy))  # noqa: S102
    return copy


def deliver(producer: Any, deliveries: int) -> None:
    callback = producer._ConfluentProducer__metrics_delivery_callback  # noqa: SLF001
    sent_at = time.time()
    for _ in range(deliveries):
        callback(None, None, sent_at)


def delivery_cost(producer: Any) -> float:
    """Nanoseconds per delivery."""
    start = time.perf_counter()
    deliver(producer, DELIVERIES)
    end = time.perf_counter()
    producer._ConfluentProducer__flush_metrics()  # noqa: SLF001
    return (end - start) / DELIVERIES * 1e9


def flush_cost(producer: Any, samples: int) -> float:
    """Nanoseconds per flush of one count and so many latency samples."""
    flushes = max(DELIVERIES // 10 // samples, 1)
    seconds = 0.0
    flush = producer._ConfluentProducer__flush_metrics  # noqa: SLF001
    for _ in range(flushes):
        deliver(producer, samples)
        start = time.perf_counter()
        flush()
        seconds += time.perf_counter() - start
    return seconds / flushes * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    configure_metrics(DummyMetricsBackend(), force=True)
    arroyo_metrics_buffer.install()
    producers = []
    modules: tuple[Any, ...] = (unpatched(), patched)
    for module in modules:
        module.METRICS_FREQUENCY_SEC = NEVER
        producers.append(module.ConfluentProducer(CONFIGURATION))
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}")
    figures = {"a delivery": delivery_cost} | {
        f"a flush of {samples:,}": lambda producer, samples=samples: flush_cost(producer, samples)
        for samples in (1, 1_000, 100_000)
    }
    for name, cost in figures.items():
        upstream, ours = zip(*([cost(p) for p in producers] for _ in range(rounds)), strict=True)
        print(f"{name}, median of {rounds} rounds [quartiles]")
        print(f"  upstream / ours   {ratio(upstream, ours)}")
        for implementation, nanoseconds in (("upstream", upstream), ("ours", ours)):
            print(f"  {implementation:<17} {statistics.median(nanoseconds):,.0f} ns")


if __name__ == "__main__":
    main()
