"""Drives metrics buffers from several threads: what ``reproduce`` starts, twice.

It writes lines of JSON: one a second while it runs, and the results at the end.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import cycle
from typing import Any

from arroyo.backends.kafka import consumer
from arroyo.processing import processor
from arroyo.utils.metrics import get_metrics

from arroyo_metrics_buffer import install, status, uninstall
from arroyo_metrics_buffer._patching import shapes
from arroyo_metrics_buffer._patching.variables import DISABLE

from .accounts import (
    FLUSH_INTERVAL,
    Errors,
    Tally,
    balance,
    tallied_backend,
    tallied_buffers,
    tallied_producers,
)
from .cluster import SILENT, kafka

ALONE, PATCHED = "arroyo alone", "patched"  # the two runs
STREAMS = "sentry_streams.metrics.metrics"  # where it is installed
NAMES = [f"reproduce.counter.{number}" for number in range(50)]
IN_FLIGHT = 10_000  # messages; librdkafka refuses more than 100,000
DELIVERY_TIMEOUT = 10.0  # seconds, for what is in flight at the end
HANG_TIMEOUT = 60.0  # seconds; a run that takes so much longer than it was asked to hangs

# Releases that the package patches and this does not drive; `make matrix` does.
NOT_DRIVEN = (
    (shapes.METRICS_BUFFER_1_1_0, "this arroyo's has increment() and no incr_counter()"),
    (shapes.METRICS_BUFFER_2_10_3, "this arroyo's takes members of enums for metrics"),
    (shapes.METRICS_BUFFER_2_25_0, "this arroyo's is made with a consumer"),
)


def main(run: str, seconds: float, threads: int) -> None:
    # From C, so that a thread that never lets the interpreter go is no obstacle.
    faulthandler.dump_traceback_later(2 * seconds + HANG_TIMEOUT, exit=True)
    reasons = why_not()
    if run == ALONE:
        uninstall()
    drives: dict[str, Callable[[Load], None]] = {
        "MetricsBuffer": drive_buffer,
        "ConfluentProducer": drive_producer,
        "BufferedMetricsBackend": drive_streams,
    }
    results: dict[str, dict[str, Any]] = {}
    for target in status().targets:
        name = target.name.rpartition(".")[2]
        if name in reasons:
            results[name] = {"not_driven": reasons[name]}
        else:
            load = Load(name, seconds, threads)
            drives[name](load)
            results[name] = load.result()
    tell(results=results)


def why_not() -> dict[str, str]:
    """The classes that can't be driven, and why; leaves the package installed."""
    reasons: dict[str, str] = {}
    uninstall()
    for shape, reason in NOT_DRIVEN:
        if shapes.difference(getattr(processor, "MetricsBuffer", None), shape) is None:
            reasons["MetricsBuffer"] = reason
    # Whoever asks for this wants to see it, whatever the environment keeps the rest from.
    os.environ.pop(DISABLE, None)
    with suppress(ImportError):
        importlib.import_module(STREAMS)
    for target in install().targets:
        if target.state != "patched":
            reasons[target.name.rpartition(".")[2]] = target.reason
    return reasons


class Load:
    """Threads that call the methods of one class, and the accounts of that."""

    def __init__(self, target: str, seconds: float, threads: int) -> None:
        self.threads = threads
        self.operations, self.made, self.delivered = Tally(), Tally(), Tally()
        self.errors = Errors()
        self._target = target
        self._seconds = seconds
        self._start = time.monotonic()

    def run(self, jobs: Sequence[Callable[[], object]]) -> None:
        """Repeat each job in a thread of its own until the time has passed, whatever it raises."""
        self._start = time.monotonic()  # anew: making what is driven may have taken its time
        end = self._start + self._seconds
        # Daemons, so that an interrupted run need not wait for them.
        threads = [threading.Thread(target=self._repeat, args=(j, end), daemon=True) for j in jobs]
        for thread in threads:
            thread.start()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
            self._show()
        for thread in threads:
            thread.join()

    def result(self) -> dict[str, Any]:
        """What became of the class: see ``Result`` in ``reproduce.py``."""
        accounts = balance(self.made, self.delivered)
        return {
            "operations": total(self.operations),
            "errors": dict(self.errors.texts),
            "made": sum(account.made for account in accounts),
            "delivered": sum(account.delivered for account in accounts),
            "lost": sum(max(account.lost, 0) for account in accounts),
            "counted_twice": sum(max(-account.lost, 0) for account in accounts),
            "seconds": round(time.monotonic() - self._start, 1),
        }

    def _repeat(self, job: Callable[[], object], end: float) -> None:
        while time.monotonic() < end:
            self.operations.add("", 1)
            try:
                job()
            except Exception as error:  # noqa: BLE001 - whatever it raises is what is shown
                self.errors.add("", error)

    def _show(self) -> None:
        tell(
            target=self._target,
            seconds=time.monotonic() - self._start,
            made=total(self.made),
            errors=self.errors.texts.total(),
        )


def drive_buffer(load: Load) -> None:
    """A processor's buffer: some threads count, as many flush."""
    with tallied_backend(load.delivered), tallied_buffers(load.made):
        buffer: Any = processor.MetricsBuffer()

        def counting() -> Callable[[], None]:
            names = cycle(NAMES)
            return lambda: buffer.incr_counter(next(names), 1)

        load.run([counting() for _ in range(load.threads)] + [buffer.flush] * load.threads)
        with load.errors.counted("last flush"):
            buffer.flush()


def drive_producer(load: Load) -> None:
    """A producer: one thread produces, one polls, some flush."""
    with (
        tallied_backend(load.delivered),
        tallied_producers(load.made),
        kafka(None) as servers,
    ):
        configuration = {"bootstrap.servers": servers, "client.id": "reproduce", **SILENT}
        producer: Any = consumer.ConfluentProducer(configuration)

        def poll() -> None:
            producer.poll(0.01)

        def produce() -> None:
            if len(producer) < IN_FLIGHT:
                producer.produce("reproduce", b"message")
            else:
                poll()

        def flush() -> None:
            producer.flush(0)

        load.run([produce, poll] + [flush] * load.threads)
        for _ in range(2):  # arroyo's own reports in the second what the first delivers
            with load.errors.counted("last flush"):
                producer.flush(DELIVERY_TIMEOUT)


def drive_streams(load: Load) -> None:
    """A buffer of sentry-streams: some threads count, as many flush."""
    with tallied_backend(load.delivered):
        streams: Any = importlib.import_module(STREAMS)
        buffer = streams.BufferedMetricsBackend(get_metrics(), FLUSH_INTERVAL)

        def counting() -> Callable[[], None]:
            names = cycle(NAMES)

            def count() -> None:
                name = next(names)
                load.made.add(name, 1)
                buffer.increment(name, 1, {"step": "reproduce"})

            return count

        load.run([counting() for _ in range(load.threads)] + [buffer.flush] * load.threads)
        with load.errors.counted("last flush"):
            buffer.flush()


def total(tally: Tally) -> int:
    return int(sum(tally.totals().values()))


def tell(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
