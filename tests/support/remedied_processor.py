"""A processor of arroyo's in an application that has a remedy of its own for the race.

Arguments: when the remedy comes, ``before`` or ``after`` the import of the package; which it is;
the flush interval. Prints, as JSON, what was added and what arrived, the warnings, and what the
status says.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import threading
import time
from collections import Counter
from typing import Any

INCREMENTS = 10_000
MESSAGES = 200
COUNTER = "arroyo.consumer.pause"
TIMER = "arroyo.consumer.dlq.time"
RUNS = "arroyo.consumer.run.count"
NESTED = "arroyo.consumer.resume"

warnings: list[str] = []


class Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            warnings.append(record.getMessage())


class Backend:
    """Keeps the sums, and now and then calls the buffer itself."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.nested = 0
        self.buffer: Any = None
        self._lock = threading.Lock()

    def increment(self, name: str, value: float, tags: object = None) -> None:
        with self._lock:
            self.sums[name] += value  # type: ignore[assignment]
            is_nested = name == RUNS and self.buffer is not None
            self.nested += is_nested
        if is_nested:
            self.buffer.incr_counter(NESTED, 1)

    timing = increment

    def gauge(self, *_: object, **__: object) -> None: ...


def import_package(order: str, form: str) -> Any:
    """Import arroyo and the package, and put the remedy into the class that is there then."""
    logging.getLogger("arroyo_metrics_buffer").addHandler(Warnings())
    if order == "after":
        importlib.import_module("arroyo_metrics_buffer")
    processor: Any = importlib.import_module("arroyo.processing.processor")
    importlib.import_module("myapp.remedies").apply(form, processor.MetricsBuffer)
    importlib.import_module("arroyo_metrics_buffer")
    return processor


def broker_with_messages(topic: Any) -> Any:
    from arroyo.backends.local.backend import LocalBroker  # noqa: PLC0415
    from arroyo.backends.local.storages.memory import MemoryMessageStorage  # noqa: PLC0415
    from arroyo.types import Partition  # noqa: PLC0415

    broker: LocalBroker[int] = LocalBroker(MemoryMessageStorage())
    broker.create_topic(topic, 1)
    for number in range(MESSAGES):
        broker.produce(Partition(topic, 0), number)
    return broker


def make_processor(processor: Any) -> tuple[Any, list[int]]:
    """A processor of all messages, and the list that it puts them in."""
    from arroyo.processing.strategies import CommitOffsets, RunTask  # noqa: PLC0415
    from arroyo.types import Topic  # noqa: PLC0415

    processed: list[int] = []
    topic = Topic("topic")

    class Factory:
        def create_with_partitions(self, commit: Any, _partitions: object) -> Any:
            task: Any = RunTask(
                lambda message: processed.append(message.payload), CommitOffsets(commit)
            )
            return task

        def shutdown(self) -> None: ...

    consumer = broker_with_messages(topic).get_consumer("group")
    return processor.StreamProcessor(consumer, topic, Factory()), processed


def count_runs(made: Any) -> list[None]:
    """Have a processor note each time that it counts a run."""
    runs: list[None] = []
    run_once = made._run_once

    def counted() -> None:
        runs.append(None)
        run_once()

    made._run_once = counted
    return runs


def run(made: Any, processed: list[int], buffer: Any) -> None:
    """Run a processor until all is processed, while threads write to its buffer."""

    def write() -> None:
        for _ in range(INCREMENTS):
            buffer.incr_counter(COUNTER, 1)
            buffer.incr_timing(TIMER, 0.5)

    def end() -> None:
        for writer in writers:
            writer.join()
        while len(processed) < MESSAGES:
            time.sleep(0.001)
        made.signal_shutdown()

    writers = [threading.Thread(target=write) for _ in range(2)]
    ending = threading.Thread(target=end)
    for thread in (*writers, ending):
        thread.start()
    made.run()
    ending.join()


def main(order: str, form: str, interval: str) -> None:
    processor = import_package(order, form)
    from arroyo.utils.metrics import configure_metrics  # noqa: PLC0415

    from arroyo_metrics_buffer import status  # noqa: PLC0415

    processor.METRICS_FREQUENCY_SEC = float(interval)
    sys.setswitchinterval(1e-5)
    backend: Any = Backend()
    configure_metrics(backend)
    made, processed = make_processor(processor)
    backend.buffer = buffer = vars(made)["_StreamProcessor__metrics_buffer"]
    runs = count_runs(made)
    run(made, processed, buffer)
    backend.buffer = None
    buffer.flush()
    target, sums = status().targets[0], backend.sums
    outcome = {
        "added": [2 * INCREMENTS, INCREMENTS, len(runs), backend.nested],
        "arrived": [sums[COUNTER], sums[TIMER], sums[RUNS], sums[NESTED]],
        "warnings": warnings,
        "state": target.state,
        "reason": target.reason,
        "protected": target.protected,
    }
    json.dump(outcome, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
