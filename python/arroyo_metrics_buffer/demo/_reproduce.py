"""The defect and its absence, side by side: arroyo's buffers and this package's under threads.

Each runs in a process of its own, a buffer of a processor first and then a producer on librdkafka's
mock cluster, and everything that they are given and deliver is tallied.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from arroyo.backends.kafka import consumer
from arroyo.processing import processor

from arroyo_metrics_buffer import install, uninstall

from ._accounts import Errors, Tally, balance, instrumented
from ._kafka import SILENT, kafka

__all__ = ["reproduce"]

NAMES = [f"reproduce.counter.{number}" for number in range(50)]
BURST = 50  # messages between two looks at the clock
IN_FLIGHT = 10_000  # messages; librdkafka refuses more than 100,000


class Result(NamedTuple):
    """What became of one class under threads."""

    operations: int
    """Increments, or deliveries: each is a count and, in newer releases, a latency."""
    errors: dict[str, int]
    """How often, by text."""
    lost: int
    counted_twice: int
    seconds: float


def reproduce(*, seconds: float, threads: int, as_json: bool) -> int:
    """Run both and print the table.

    Args:
        seconds: For each of the four runs.
        threads: How many threads write to a buffer, and how many flush it.
        as_json: Print JSON instead.

    Returns:
        The exit status: 0 if there was no error and nothing lost with this package, 1 if there was.
    """
    runs: dict[str, dict[str, Result]] = {}
    for name, flag in (("arroyo alone", "--unpatched"), ("patched", "--patched")):
        sys.stderr.write(f"{name}: {2 * seconds:.0f} s\n")
        command = [sys.executable, "-m", __name__, flag, str(seconds), str(threads)]
        output = subprocess.check_output(command)  # noqa: S603
        runs[name] = {target: Result(**result) for target, result in json.loads(output).items()}
    if as_json:
        as_dicts = {n: {t: r._asdict() for t, r in run.items()} for n, run in runs.items()}
        sys.stdout.write(json.dumps(as_dicts, indent=1) + "\n")
    else:
        sys.stdout.write(table(runs))
    exact = all(not (r.errors or r.lost or r.counted_twice) for r in runs["patched"].values())
    return 0 if exact else 1


def table(runs: dict[str, dict[str, Result]]) -> str:
    """A column for each class, alone and patched, and the errors' texts."""
    columns = [(t, name, result) for name, run in runs.items() for t, result in run.items()]
    columns.sort(key=lambda column: column[0], reverse=True)
    rows: list[tuple[str, ...]] = [
        ("", *(target for target, _, _ in columns)),
        ("", *(name for _, name, _ in columns)),
        ("operations", *(f"{r.operations:,}" for _, _, r in columns)),
        ("errors", *(f"{sum(r.errors.values()):,}" for _, _, r in columns)),
        ("lost", *(f"{r.lost:,}" for _, _, r in columns)),
        ("counted twice", *(f"{r.counted_twice:,}" for _, _, r in columns)),
        ("seconds", *(f"{r.seconds:.1f}" for _, _, r in columns)),
    ]
    lines = [f"{row[0]:14}" + "".join(f"{cell:>20}" for cell in row[1:]) for row in rows]
    texts = sum((Counter(result.errors) for _, _, result in columns), Counter[str]())
    return "\n".join([*lines, *(f"{count:>10,} x {text}" for text, count in texts.items()), ""])


def worker(seconds: float, threads: int) -> dict[str, Any]:
    """Both classes, one after the other, as they are in this process."""
    return {
        "MetricsBuffer": run(write_and_flush, seconds, threads)._asdict(),
        "ConfluentProducer": run(produce_and_flush, seconds, threads)._asdict(),
    }


def run(stress: Callable[[float, int, Errors], None], seconds: float, threads: int) -> Result:
    made, delivered, errors = Tally(), Tally(), Errors()
    start = time.monotonic()
    with instrumented(made, delivered):
        stress(seconds, threads, errors)
    accounts = balance(made, delivered)
    return Result(
        operations=round(sum(account.made for account in accounts)),
        errors=dict(errors.texts),
        lost=round(sum(max(account.lost, 0) for account in accounts)),
        counted_twice=round(sum(max(-account.lost, 0) for account in accounts)),
        seconds=round(time.monotonic() - start, 1),
    )


def write_and_flush(seconds: float, threads: int, errors: Errors) -> None:
    buffer: Any = processor.MetricsBuffer()

    def write() -> None:
        for name in NAMES:
            buffer.incr_counter(name, 1)

    together(seconds, errors, [write] * threads + [buffer.flush] * threads)
    with errors.counted("last flush"):
        buffer.flush()


def produce_and_flush(seconds: float, threads: int, errors: Errors) -> None:
    with kafka(None) as servers:
        configuration = {"bootstrap.servers": servers, "client.id": "reproduce", **SILENT}
        producer: Any = consumer.ConfluentProducer(configuration)

        def produce() -> None:
            for _ in range(BURST):
                if len(producer) < IN_FLIGHT:
                    producer.produce("reproduce", b"message")

        def flush() -> None:
            producer.flush(0)

        def poll() -> None:
            producer.poll(0.01)

        together(seconds, errors, [produce, poll] + [flush] * threads)
        for _ in range(2):  # arroyo's own reports what the first delivers in the second
            with errors.counted("last flush"):
                producer.flush(10)


def together(seconds: float, errors: Errors, jobs: Sequence[Callable[[], object]]) -> None:
    """Repeat each job in a thread of its own until the time has passed, whatever it raises."""
    end = time.monotonic() + seconds

    def repeat(job: Callable[[], object]) -> None:
        while time.monotonic() < end:
            with errors.counted(""):
                job()

    threads = [threading.Thread(target=repeat, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    # The environment may keep the import from installing.
    (uninstall if sys.argv[1] == "--unpatched" else install)()
    sys.stdout.write(json.dumps(worker(float(sys.argv[2]), int(sys.argv[3]))))
