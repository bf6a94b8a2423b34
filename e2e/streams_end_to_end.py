"""A pipeline of sentry-streams, its metrics accounted for: e2e/streams_end_to_end.py RELEASE.

The release is installed into a folder of its own. A consumer runs the pipeline with the Python
adapter of sentry-streams, on librdkafka's mock cluster. Its main thread and the thread of its
KafkaProducer write arroyo's metrics and the pipeline's own to the metrics buffer of sentry-streams.
The script compares the sums that the buffer was given with the sums that sentry-streams' backend
has written when the process has ended. Exit status: 0 if they are equal, if no thread has died and
if all messages are copied.

Gauges are left out: the buffer keeps the last value only. The adapter in Rust is left out too: it
consumes and produces without arroyo's Python.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer

import servers
from accounts import aligned, amount
from arroyo_metrics_buffer._commands.accounts import Account
from arroyo_metrics_buffer._commands.cluster import KAFKA_TIMEOUT, SILENT, kafka
from ending import Failed, fail_on_signals
from streams_consumer import NAME, metric

CONSUMER = Path(__file__).with_name("streams_consumer.py")
MESSAGES = [
    b"%s %d" % (b"drop" if number % 4 == 0 else b"copy", number) for number in range(50_000)
]
COPIES = Counter(message + b" stamped" for message in MESSAGES if message.startswith(b"copy"))
FLUSH_INTERVAL = 0.01  # seconds; sentry-streams' is 10
STALL = 10.0  # seconds without a copy, after which no more are expected
WRITTEN = " - INFO - streams.pipeline | "  # before each metric that the backend writes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("release", help="of sentry-streams")
    parser.add_argument("--unpatched", action="store_true", help="with the buffers as they are")
    options = parser.parse_args()
    fail_on_signals()
    try:
        # For the consumer: this process has imported all that it needs.
        os.environ["PYTHONPATH"] = str(installed(options.release))
        if options.unpatched:
            os.environ["ARROYO_METRICS_BUFFER_DISABLE"] = "1"
        with tempfile.TemporaryDirectory(prefix="e2e-") as folder:
            return run(Path(folder), unpatched=options.unpatched)
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def installed(release: str) -> Path:
    """The folder that has the release, and all that it needs."""

    def install(folder: Path) -> None:
        # Its runner imports sentry-sdk, and does not ask for it.
        packages = [f"sentry-streams=={release}", "sentry-sdk"]
        servers.run(sys.executable, "-m", "pip", "install", "--target", str(folder), *packages)

    return servers.cached(f"sentry-streams-{release}-{sysconfig.get_config_var('SOABI')}", install)


def run(folder: Path, *, unpatched: bool) -> int:
    start = time.monotonic()
    log, tallies = folder / "log", folder / "tallies.json"
    with kafka(None) as brokers:
        feed(brokers)
        (folder / "configuration.json").write_text(json.dumps(configuration(brokers)))
        command = [sys.executable, str(CONSUMER), str(folder / "configuration.json"), str(tallies)]
        with servers.running(command + ["--unpatched"] * unpatched, log) as consumer:
            copies = copied(brokers, consumer)
    written = log.read_text()
    if consumer.returncode:
        others = [line for line in written.splitlines() if WRITTEN not in line]
        print(*others[-40:], sep="\n")
    if not tallies.exists():
        raise Failed(f"the consumer ended with {consumer.returncode}")
    facts = json.loads(tallies.read_text())
    accounts = balance(facts["made"], delivered(written))
    print(
        table(accounts), *(f"{n:,} calls by {who}" for who, n in facts["calls"].items()), sep="\n"
    )
    troubles = [*of_consumer(facts, consumer, unpatched=unpatched), *of_copies(copies)]
    troubles += [
        f"{account.metric} is not exact: {account.made} made, {account.delivered} delivered"
        for account in accounts
        if account.lost
    ]
    print(f"{time.monotonic() - start:.0f} s", *(troubles or ["exact"]), sep="\n")
    return 1 if troubles else 0


def feed(brokers: str) -> None:
    producer = Producer({"bootstrap.servers": brokers, **SILENT})
    for number, message in enumerate(MESSAGES):
        producer.produce("source", message)
        if number % 1_000 == 0:
            producer.flush()
    producer.flush()
    producer.list_topics("destination", timeout=KAFKA_TIMEOUT)  # makes it, on the mock cluster


def configuration(brokers: str) -> dict[str, Any]:
    """What a deployment of sentry-streams is configured with."""
    source = {"bootstrap_servers": [brokers], "override_params": SILENT}
    sink = {**source, "override_params": {"client.id": "sink", **SILENT}}
    steps = {"source": {**source, "auto_offset_reset": "earliest"}, "sink": sink}
    metrics = {"type": "log", "period_sec": FLUSH_INTERVAL, "tags": {}}
    return {"env": {}, "pipeline": {"segments": [{"steps_config": steps}]}, "metrics": metrics}


def copied(brokers: str, consumer: subprocess.Popen[bytes]) -> Counter[bytes]:
    """The messages that have been copied when all are, or no more come."""
    reader = Consumer(
        {"bootstrap.servers": brokers, "group.id": "e2e", "auto.offset.reset": "earliest", **SILENT}
    )
    reader.subscribe(["destination"])
    copies: Counter[bytes] = Counter()
    last = time.monotonic()
    while copies.total() < COPIES.total() and consumer.poll() is None:
        if batch := reader.consume(1_000, timeout=0.1):
            copies.update(message.value() or b"" for message in batch)
            last = time.monotonic()
        elif time.monotonic() > last + STALL:
            break
    reader.close()
    return copies


def delivered(written: str) -> dict[str, float]:
    """What the backend wrote, summed by metric."""
    sums: defaultdict[str, float] = defaultdict(int)
    for line in written.splitlines():
        _, found, entry = line.partition(WRITTEN)
        if found and not entry.startswith("gauge"):
            kind, total, *texts = entry.split()
            name, _, value = total.partition("=")
            tags = dict(text.split(":", 1) for text in texts)
            assert tags.pop("pipeline") == NAME
            sums[metric(kind, name, tags)] += json.loads(value)
    return sums


def balance(made: Mapping[str, float], arrived: Mapping[str, float]) -> list[Account]:
    return [
        Account(name, made.get(name, 0), arrived.get(name, 0)) for name in sorted({*made, *arrived})
    ]


def table(accounts: Sequence[Account]) -> str:
    rows = [[a.metric, *map(amount, (a.made, a.delivered, a.lost))] for a in accounts]
    return aligned([["metric", "made", "delivered", "lost"], *rows])


def of_consumer(
    facts: Mapping[str, Any], consumer: subprocess.Popen[bytes], *, unpatched: bool
) -> Iterator[str]:
    if consumer.returncode:
        yield f"the consumer ended with {consumer.returncode}"
    if not facts.get("is_polled", True):
        yield "the producer's thread ended"
    yield from (f"{times} x {text}" for text, times in facts["errors"].items())
    if not unpatched and {*facts["targets"].values()} != {"patched"}:
        yield f"not all is patched: {facts['targets']}"
    if len(facts["calls"]) == 1:
        yield "the buffer was used by one thread alone"


def of_copies(copies: Counter[bytes]) -> Iterator[str]:
    if missing := (COPIES - copies).total():
        yield f"{missing:,} messages were not copied"
    if others := (copies - COPIES).total():
        yield f"{others:,} messages are no copies, or copied twice"


if __name__ == "__main__":
    sys.exit(main())
