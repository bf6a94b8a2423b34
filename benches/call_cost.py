"""What one call costs: upstream's class and ours against an empty pyo3 method.

Every round times each implementation once, in turn, so that a change of the machine's speed meets
all of them; a round gives one ratio each, and the table shows their median and quartiles.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import timeit
from collections.abc import Callable, Sequence

from arroyo.processing import processor
from empty_method import Empty  # type: ignore[attr-defined]

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer

CALLS = 20_000  # a few hundred microseconds a batch: shorter than most interruptions

STATEMENTS = {
    "incr_counter": 'buffer.incr_counter("arroyo.consumer.run.count", 1)',
    "incr_timing": 'buffer.incr_timing("arroyo.consumer.poll.time", 0.001)',
}


def timer(statement: str, buffer: object) -> Callable[[], float]:
    """A function that times CALLS calls and returns nanoseconds per call."""
    # Unrolled: a loop costs a fifth of the call.
    unrolled = timeit.Timer("; ".join([statement] * 10), globals={"buffer": buffer})
    return lambda: unrolled.timeit(CALLS // 10) / CALLS * 1e9


def measure(statement: str, rounds: int) -> dict[str, list[float]]:
    """Nanoseconds per call, one figure per round and implementation."""
    arroyo_metrics_buffer.uninstall()
    timers = {
        "upstream": timer(statement, processor.MetricsBuffer()),
        "empty": timer(statement, Empty()),
        "ours": timer(statement, MetricsBuffer()),
    }
    for once in timers.values():
        once()
    samples: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, once in timers.items():
            samples[name].append(once())
    return samples


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return f"{median:5.2f} [{low:.2f} to {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    rounds = parser.parse_args().rounds
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}")
    for name, statement in STATEMENTS.items():
        samples = measure(statement, rounds)
        print(f"{name}, median of {rounds} rounds [quartiles]")
        print(f"  upstream / ours   {ratio(samples['upstream'], samples['ours'])}")
        print(f"  ours / empty      {ratio(samples['ours'], samples['empty'])}")
        for implementation, nanoseconds in samples.items():
            print(f"  {implementation:<17} {statistics.median(nanoseconds):5.1f} ns")


if __name__ == "__main__":
    main()
