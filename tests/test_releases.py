"""C12 and C13 on the releases of arroyo that changed its producer.

Each is driven in a process of its own. ``make releases`` installs them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RELEASES = Path(sys.prefix) / "arroyo"

PRODUCER = "arroyo.backends.kafka.consumer.ConfluentProducer"

DRIVER = """
import json, random, sys, time
sys.path.insert(0, sys.argv[1])
import arroyo_metrics_buffer
from arroyo.backends.kafka import consumer
from arroyo.utils.metrics import configure_metrics

status, = [t for t in arroyo_metrics_buffer.status().targets if t.name == sys.argv[2]]
now, calls = 1000.0, []
time.time = lambda: now

class Backend:
    def increment(self, *args, **kwargs): calls.append(["increment", args, kwargs])
    def timing(self, *args, **kwargs): calls.append(["timing", args, kwargs])
    def gauge(self, *args, **kwargs): calls.append(["gauge", args, kwargs])

configure_metrics(Backend())

def deliveries(configuration):
    # As librdkafka calls back what produce() gives it, the messages being purged.
    global now
    now, rng = 1000.0, random.Random(1)
    producer = consumer.ConfluentProducer({"log_level": 0, **configuration})
    calls.clear()
    seen = []
    for turn in range(40):
        now += rng.choice([0.0, 0.25, 0.75, 1.5])
        done = lambda error, message, turn=turn: seen.append([turn, error.name(), message.topic()])
        producer.produce("topic", b"value", on_delivery=done if turn % 3 else None)
        now += rng.choice([0.0, 0.25])
        if rng.random() < 0.7:
            producer.purge()
            producer.poll(1)
        sent_at = [now - 0.5] if hasattr(producer, "_ConfluentProducer__callback_latency") else []
        for error in rng.choices([None, "down"], k=3):
            producer._ConfluentProducer__metrics_delivery_callback(error, "message", *sent_at)
    producer.purge()
    producer.poll(1)
    producer.flush(0)
    return [*calls], seen

def run():
    return [deliveries(c) for c in ({}, {"client.id": "billing"})]

buffered = hasattr(consumer.ConfluentProducer, "_ConfluentProducer__flush_metrics")
arroyo_metrics_buffer.install(clock=lambda: time.time())
patched = run() if buffered else None
arroyo_metrics_buffer.uninstall()
upstream = run() if buffered else None
print(json.dumps([status.state, status.reason, patched, upstream]))
"""


def drive(version: str) -> tuple[str, str, Any, Any]:
    release = RELEASES / version
    assert release.is_dir(), f"{release} is missing: make releases"
    command = [sys.executable, "-c", DRIVER, str(release), PRODUCER]
    result = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    state, reason, patched, upstream = json.loads(result.stdout)
    return state, reason, patched, upstream


@pytest.mark.parametrize("version", ["2.31.2", "2.38.4", "2.38.5", "2.40.1", "2.40.3", "2.48.0"])
def test_a_patched_producer_makes_the_calls_that_arroyos_own_makes(version: str) -> None:
    state, reason, patched, upstream = drive(version)
    assert (state, reason) == ("patched", "its metrics methods are arroyo_metrics_buffer's")
    assert patched == upstream
    for calls, seen in patched:
        assert len(calls) > 20
        assert len(seen) == 26


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("2.30.0", "this arroyo uses confluent_kafka's own, which has no metrics"),
        ("2.31.0", "this arroyo's sends every metric at once and buffers nothing"),
        ("2.31.1", "this arroyo's sends every metric at once and buffers nothing"),
    ],
)
def test_a_producer_that_buffers_nothing_is_left_alone(version: str, reason: str) -> None:
    assert drive(version)[:2] == ("missing", reason)
