"""A consumer that streams_end_to_end.py starts. It runs streams_pipeline.py until it gets SIGTERM.

What the metrics buffer of sentry-streams is given is tallied, and written to a file at the end.
What the buffer delivers is in the log, written there by sentry-streams' own backend.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PIPELINE = Path(__file__).with_name("streams_pipeline.py")
NAME = "e2e"  # of the pipeline: a tag of all that the backend writes
END_TIMEOUT = 30.0  # seconds for deliveries


def main(configuration: Path, tallies: Path, *, unpatched: bool) -> None:
    facts: dict[str, Any] = {}

    def write() -> None:
        facts.update(made=made.totals(), calls=calls.totals(), errors=errors.texts)
        tallies.write_text(json.dumps(facts))

    # Handlers of atexit run in reverse order. The package registers its own at import, and what it
    # sends then has to be tallied too.
    atexit.register(write)
    package = importlib.import_module("arroyo_metrics_buffer")
    accounts = importlib.import_module("arroyo_metrics_buffer._commands.accounts")
    made, calls, errors = accounts.Tally(), accounts.Tally(), accounts.Errors()

    metrics: Any = importlib.import_module("sentry_streams.metrics.metrics")
    runner = importlib.import_module("sentry_streams.runner")
    consumer: Any = importlib.import_module("arroyo.backends.kafka.consumer")
    processor: Any = importlib.import_module("arroyo.processing.processor")
    facts["targets"] = {target.name: target.state for target in package.status().targets}
    metrics.BufferedMetricsBackend = tallying(metrics.BufferedMetricsBackend, made, calls, errors)
    consumer.METRICS_FREQUENCY_SEC = processor.METRICS_FREQUENCY_SEC = accounts.FLUSH_INTERVAL
    sys.setswitchinterval(accounts.SWITCH_INTERVAL)

    # Not load_runtime_with_config_file(), whose schema has no flush interval below 0.1 s.
    configured = json.loads(configuration.read_text())
    runtime = runner.load_runtime(NAME, "INFO", "arroyo", "0", str(PIPELINE), configured)
    signal.signal(signal.SIGTERM, lambda *_: runtime.shutdown())
    [producer] = [each for each in gc.get_objects() if isinstance(each, consumer.KafkaProducer)]
    try:
        runtime.run()
    finally:
        facts["is_polled"] = await_deliveries(producer)
        if unpatched:
            # sentry-streams does not flush it at the end. That loss would hide the one of the race.
            vars(metrics.get_metrics())["_Metrics__backend"].flush()


def tallying(buffer: Any, made: Any, calls: Any, errors: Any) -> Any:
    """A buffer class that tallies what it is given, by which thread, and what it raises."""

    @contextmanager
    def tallied(label: str, value: float) -> Iterator[None]:
        thread = threading.current_thread().name
        made.add(label, value)
        calls.add(thread, 1)
        try:
            yield
        except Exception as error:
            errors.add(thread, error)
            raise

    class TallyingBackend(buffer):  # type: ignore[misc]
        def increment(
            self, name: str, value: float = 1, tags: Mapping[str, str] | None = None
        ) -> None:
            with tallied(metric("counter", name, tags or {}), value):
                super().increment(name, value, tags)

        def timing(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
            # In multiples of 2**-20 s: sums of such floats are exact up to 2**33 s, in whatever
            # order they are added.
            value = round(value * 2**20) / 2**20
            with tallied(metric("timing", name, tags or {}), value):
                super().timing(name, value, tags)

    return TallyingBackend


def metric(kind: str, name: str, tags: Mapping[str, str]) -> str:
    """What tells it from all others."""
    return " ".join([kind, name, *sorted(f"{key}:{value}" for key, value in tags.items())])


def await_deliveries(producer: Any) -> bool:
    """Wait until no message is under way; tell whether the thread lives that polls for that."""
    attributes = vars(producer)
    confluent, thread = (attributes[f"_KafkaProducer__{name}"] for name in ("producer", "result"))
    deadline = time.monotonic() + END_TIMEOUT
    while len(confluent) and not thread.done() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not thread.done()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configuration", type=Path, help="what sentry-streams is configured with")
    parser.add_argument("tallies", type=Path, help="the file to write")
    parser.add_argument("--unpatched", action="store_true", help="flush the buffer at the end")
    main(**vars(parser.parse_args()))
