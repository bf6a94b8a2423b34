"""C14: an arroyo whose file was fixed by hand is known for what it is, and patched."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arroyo.backends.kafka import consumer as arroyo_consumer
from arroyo.processing import processor as arroyo_processor

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer, TargetStatus
from support.arroyo_source import Changes, changed, class_of
from support.backends import ProducerBackend
from support.producers import closed_after_test

processor: Any = arroyo_processor
consumer: Any = arroyo_consumer

SEND_TIMERS = """        for metric, value in self.__timers.items():
            self.metrics.timing(metric, value)
"""
SEND_COUNTERS = """        for metric, value in self.__counters.items():
            self.metrics.increment(metric, value)
"""
SEND = SEND_TIMERS + SEND_COUNTERS
RESET = "        self.__reset()\n"
SEND_COPIES = SEND.replace("self.__timers", "timers").replace("self.__counters", "counters")
INIT = "        self.metrics = get_metrics()\n"
CLEAR = """        self.__timers.clear()
        self.__counters.clear()
"""
SWAP = """            timers, self.__timers = self.__timers, defaultdict(float)
            counters, self.__counters = self.__counters, defaultdict(int)
            self.__last_record_time = time.time()
"""
LOCK = {INIT: INIT + "        self.__lock = threading.Lock()\n"}
LOCKED_ADDS = {
    "        self.__timers[metric] += duration\n": (
        "        with self.__lock:\n            self.__timers[metric] += duration\n"
    ),
    "        self.__counters[metric] += delta\n": (
        "        with self.__lock:\n            self.__counters[metric] += delta\n"
    ),
}
SWAP_UNDER_A_LOCK = {**LOCK, SEND + RESET: f"        with self.__lock:\n{SWAP}{SEND_COPIES}"}


def copies(form: str) -> str:
    return "".join(f"        {name} = {form.format(name)}\n" for name in ("timers", "counters"))


FIXES: dict[str, tuple[Changes, str]] = {
    "list, reset, send": (
        {
            SEND + RESET: copies("list(self.__{}.items())")
            + RESET
            + SEND_COPIES.replace(".items()", "")
        },
        "a copy by list()",
    ),
    "list, send, reset": (
        {SEND: copies("list(self.__{}.items())") + SEND_COPIES.replace(".items()", "")},
        "a copy by list()",
    ),
    "list in the loops": (
        {".__timers.items()": ".__timers.items())", "in self.__timers": "in list(self.__timers"},
        "a copy by list()",
    ),
    "dict": ({SEND: copies("dict(self.__{})") + SEND_COPIES}, "a copy by dict()"),
    "copy": ({SEND + RESET: copies("self.__{}.copy()") + RESET + SEND_COPIES}, "a copy by copy()"),
    "new tables": (
        {
            CLEAR: "        self.__timers = defaultdict(float)\n"
            "        self.__counters = defaultdict(int)\n"
        },
        "a swap of the tables",
    ),
    "swap under a lock": (SWAP_UNDER_A_LOCK, "a lock, a swap of the tables"),
    "a lock everywhere": ({**SWAP_UNDER_A_LOCK, **LOCKED_ADDS}, "a lock, a swap of the tables"),
    "copies under a lock": (
        {
            **LOCK,
            SEND + RESET: "        with self.__lock:\n"
            + copies("    dict(self.__{})").replace("        ", "            ")
            + "            self.__reset()\n"
            + SEND_COPIES,
        },
        "a copy by dict(), a lock",
    ),
}

COUNTS = "self.__produce_counters.items()"
LATENCIES = "in self.__callback_latency:"
PRODUCER_INIT = "        self.__metrics = get_metrics()\n"
PRODUCER_RESET = "        self.__reset_metrics()\n\n    def flush"
PRODUCER_FIXES: dict[str, tuple[Changes, str]] = {
    "list": (
        {COUNTS: f"list({COUNTS})", LATENCIES: "in list(self.__callback_latency):"},
        "a copy by list()",
    ),
    "dict": ({COUNTS: "dict(self.__produce_counters).items()"}, "a copy by dict()"),
    "swap under a lock": (
        {
            PRODUCER_INIT: PRODUCER_INIT + "        self._lock = threading.RLock()\n",
            "        for status, count in self.__produce_counters.items():\n": """
        with self._lock:
            counters, self.__produce_counters = self.__produce_counters, defaultdict(int)
            latencies, self.__callback_latency = self.__callback_latency, []
            self.__last_record_time = time.time()
        for status, count in counters.items():
""",
            LATENCIES: "in latencies:",
            PRODUCER_RESET: "\n    def flush",
            "        self.__produce_counters[status] += 1\n": """
        with self._lock:
            self.__produce_counters[status] += 1
""",
        },
        "a lock, a swap of the tables",
    ),
}


def status(index: int) -> TargetStatus:
    return arroyo_metrics_buffer.status().targets[index]


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    """arroyo's own classes are in place, and put back after the test."""
    arroyo_metrics_buffer.uninstall()
    buffer, producer = processor.MetricsBuffer, consumer.ConfluentProducer
    yield
    arroyo_metrics_buffer.uninstall()
    processor.MetricsBuffer, consumer.ConfluentProducer = buffer, producer


@pytest.fixture
def newer_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sentry_arroyo-2.49.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("fix", FIXES)
def test_a_buffer_that_was_fixed_by_hand_is_replaced(
    fix: str, caplog: pytest.LogCaptureFixture
) -> None:
    changes, what = FIXES[fix]
    processor.MetricsBuffer = fixed = class_of(processor, "MetricsBuffer", changes)
    arroyo_metrics_buffer.install()
    assert processor.MetricsBuffer is MetricsBuffer
    assert status(0).state == "patched"
    assert status(0).protected
    assert status(0).reason == (
        "arroyo uses arroyo_metrics_buffer.MetricsBuffer;"
        f" arroyo's file is fixed by hand ({what}), which can be removed"
    )
    assert caplog.records == []  # of level WARNING
    arroyo_metrics_buffer.uninstall()
    assert processor.MetricsBuffer is fixed


@pytest.mark.parametrize("fix", PRODUCER_FIXES)
def test_a_producer_that_was_fixed_by_hand_is_patched(fix: str, backend: ProducerBackend) -> None:
    changes, what = PRODUCER_FIXES[fix]
    consumer.ConfluentProducer = fixed = class_of(consumer, "ConfluentProducer", changes)
    before = dict(vars(fixed))
    made = closed_after_test(fixed({"log_level": 0}))
    made._ConfluentProducer__metrics_delivery_callback(None, "message", 1000.0)
    arroyo_metrics_buffer.install()
    assert status(1).state == "patched"
    assert status(1).reason == (
        "its metrics methods are arroyo_metrics_buffer's;"
        f" arroyo's file is fixed by hand ({what}), which can be removed"
    )
    made._ConfluentProducer__metrics_delivery_callback(None, "message", 1000.0)
    assert made._ConfluentProducer__deliveries.snapshot()[0] == {"success": 1}
    made.flush(0)
    assert backend.counts() == {"success": 2}
    arroyo_metrics_buffer.uninstall()
    assert vars(fixed).items() >= before.items()


OTHERS: dict[str, Changes] = {
    "it sends something else too": {
        SEND: copies("dict(self.__{})") + SEND_COPIES + "        self.metrics.gauge('x', 1)\n"
    },
    "it keeps the totals": {SEND + RESET: copies("dict(self.__{})") + SEND_COPIES},
    "it sends no counters": {SEND + RESET: copies("dict(self.__{})") + RESET + SEND_TIMERS},
    "it adds to a copy": {
        "self.__counters[metric] += delta": "dict(self.__counters)[metric] += delta"
    },
    "it takes tags": {
        **LOCK,
        "metric: ConsumerCounter, delta: int)": "metric: ConsumerCounter, delta: int, tags: Any)",
    },
    "it has a method more": {
        **LOCK,
        "    def __reset(self)": "    def close(self): ...\n\n    def __reset(self)",
    },
    "it tells the time by another clock": {
        **LOCK,
        "        self.__last_record_time = time.time()\n": (
            "        self.__last_record_time = time.monotonic()\n"
        ),
    },
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_buffer_that_differs_in_any_other_way_is_left_alone(other: str) -> None:
    processor.MetricsBuffer = cls = class_of(processor, "MetricsBuffer", OTHERS[other])
    arroyo_metrics_buffer.install()
    assert processor.MetricsBuffer is cls
    assert status(0).state == "unknown"
    assert status(0).reason.endswith("; look for a newer release of arroyo-metrics-buffer")


@pytest.mark.usefixtures("newer_release")
@pytest.mark.parametrize("fix", ["a lock everywhere", "copy"])
def test_a_release_that_became_thread_safe_itself_is_left_alone(fix: str) -> None:
    cls = class_of(processor, "MetricsBuffer", FIXES[fix][0])
    processor.MetricsBuffer = cls
    arroyo_metrics_buffer.install()
    assert processor.MetricsBuffer is cls
    assert status(0).state == "unknown"
    assert "look for a newer release" in status(0).reason


def test_a_release_that_nobody_can_tell_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    processor.MetricsBuffer = cls = class_of(processor, "MetricsBuffer", FIXES["dict"][0])
    arroyo_metrics_buffer.install()
    assert processor.MetricsBuffer is cls


def test_a_file_that_was_fixed_by_hand_is_patched(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("arroyo")
    assert spec is not None
    assert spec.submodule_search_locations
    shutil.copytree(spec.submodule_search_locations[0], tmp_path / "arroyo")
    for path, changes in (
        ("processing/processor.py", FIXES["list, reset, send"][0]),
        ("backends/kafka/consumer.py", PRODUCER_FIXES["list"][0]),
    ):
        file = tmp_path / "arroyo" / path
        file.write_text(changed(file.read_text(), changes))
    code = """
import arroyo_metrics_buffer, arroyo.processing.processor, arroyo.backends.kafka.consumer
for target in arroyo_metrics_buffer.status().targets:
    print(target.state, target.protected, "by hand (a copy by list())" in target.reason)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        text=True,
        timeout=60,
    )
    assert ran.stdout.split() == ["patched", "True", "True"] * 2
    assert ran.stderr == ""
