"""C2, C12 and C13 on the releases of arroyo and sentry-streams that changed their buffers.

Each is driven in a process of its own. ``make releases`` installs them; ``make matrix`` does the
same with every release there is.
"""

from __future__ import annotations

import pytest

from support.arroyo_releases import drive_release
from support.streams import streams_folder
from support.targets import BUFFER, PRODUCER, STREAMS


@pytest.mark.parametrize(
    ("version", "by"),
    [
        ("1.1.0", "_patching.older.TimersOnly"),
        ("2.10.2", "_patching.older.TimersOnly"),
        ("2.10.3", "_patching.older.WithEnumNames"),
        ("2.11.4", "_patching.older.WithEnumNames"),
        ("2.11.5", "_patching.older.WithOriginalConstructor"),
        ("2.14.24", "_patching.older.WithOriginalConstructor"),
        ("2.14.25", "MetricsBuffer"),
        ("2.24.0", "MetricsBuffer"),
        ("2.25.0", "_patching.older.WithOriginalConstructor"),
        ("2.27.0", "_patching.older.WithOriginalConstructor"),
        ("2.28.0", "MetricsBuffer"),
        ("2.48.0", "MetricsBuffer"),
    ],
)
def test_a_replaced_buffer_makes_the_calls_that_arroyos_own_makes(version: str, by: str) -> None:
    outcome = drive_release(version)[BUFFER]
    assert outcome["state"] == "patched"
    assert outcome["reason"] == f"arroyo uses arroyo_metrics_buffer.{by}"
    assert outcome["patched"] == outcome["upstream"]
    assert len(outcome["patched"][0]) > 100


@pytest.mark.parametrize("version", ["2.31.2", "2.38.4", "2.38.5", "2.40.1", "2.40.3", "2.48.0"])
def test_a_patched_producer_makes_the_calls_that_arroyos_own_makes(version: str) -> None:
    outcome = drive_release(version)[PRODUCER]
    assert outcome["state"] == "patched"
    assert outcome["reason"] == "its metrics methods are arroyo_metrics_buffer's"
    assert outcome["patched"] == outcome["upstream"]
    for *calls, seen in outcome["patched"]:
        assert len(calls) > 20
        assert len(seen) == 26


def test_a_release_that_is_older_than_the_buffers_is_left_alone() -> None:
    outcome = drive_release("1.0.7")[BUFFER]
    reason = "this arroyo is older than 1.1.0 and buffers nothing"
    assert outcome == {"state": "missing", "reason": reason}


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("2.30.0", "this arroyo uses confluent_kafka's own, which has no metrics"),
        ("2.31.0", "this arroyo's sends every metric at once and buffers nothing"),
        ("2.31.1", "this arroyo's sends every metric at once and buffers nothing"),
    ],
)
def test_a_producer_that_buffers_nothing_is_left_alone(version: str, reason: str) -> None:
    assert drive_release(version)[PRODUCER] == {"state": "missing", "reason": reason}


@pytest.mark.parametrize("version", ["0.0.42", "0.0.69"])
def test_a_replaced_buffer_of_sentry_streams_makes_the_calls_that_its_own_makes(
    version: str,
) -> None:
    outcome = drive_release("2.48.0", streams_folder(version))[STREAMS]
    assert outcome["state"] == "patched"
    assert outcome["reason"] == "sentry_streams uses arroyo_metrics_buffer.BufferedMetricsBackend"
    assert outcome["patched"] == outcome["upstream"]
    assert len(outcome["patched"][0]) > 100
