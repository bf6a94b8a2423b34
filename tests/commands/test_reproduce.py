"""The command that shows the defect and its absence."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from arroyo_metrics_buffer._commands.progress import Progress
from arroyo_metrics_buffer._commands.reproduce import (
    NotDriven,
    Outcomes,
    Result,
    reproduce,
    table,
    verdict,
)
from arroyo_metrics_buffer._commands.stress import Load
from support.arroyo_releases import release_folder
from support.programs import run_to_end, started
from support.streams import NEWEST, with_streams

REPRODUCE = (sys.executable, "-W", "error", "-m", "arroyo_metrics_buffer", "reproduce")
TIMEOUT = 120
PROGRESS = re.compile(
    r"(arroyo alone|patched), (MetricsBuffer|ConfluentProducer):"
    r" +[\d.]+ s +[\d,]+ made +[\d,]+ errors"
)
CLASSES = ["MetricsBuffer", "ConfluentProducer"]
EXACT = Result(operations=1, errors={}, made=1, delivered=1, lost=0, counted_twice=0, seconds=1.0)


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_to_end(*REPRODUCE, "--seconds", "0.5", *options, **environment)


def test_the_patched_classes_have_no_error_and_lose_nothing() -> None:
    # Asked for by name, it patches whatever the environment says, and says so.
    ran = run("--json", ARROYO_METRICS_BUFFER_DISABLE="true")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told, *progress = ran.stderr.splitlines()
    assert told == "ARROYO_METRICS_BUFFER_DISABLE=true is ignored: 'patched' is patched."
    assert all(map(PROGRESS.fullmatch, progress))
    runs = json.loads(ran.stdout)["runs"]
    assert list(runs) == ["arroyo alone", "patched"]
    for result in runs["patched"].values():
        assert result["made"] == result["delivered"] > 0
        assert (result["errors"], result["lost"], result["counted_twice"]) == ({}, 0, 0)
    # What arroyo's own classes do is a matter of chance; that they were at work is not.
    for result in runs["arroyo alone"].values():
        assert result["made"] - result["delivered"] == result["lost"] - result["counted_twice"]
        assert result["operations"] > 0
        assert result["made"] > 0
    assert list(runs["arroyo alone"]) == list(runs["patched"]) == CLASSES


def test_where_sentry_streams_is_installed_its_buffer_is_a_third() -> None:
    ran = run("--json", **with_streams(NEWEST))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    runs = json.loads(ran.stdout)["runs"]
    for outcomes in runs.values():
        assert list(outcomes) == [*CLASSES, "BufferedMetricsBackend"]
    third = runs["patched"]["BufferedMetricsBackend"]
    assert third["made"] == third["delivered"] > 0
    assert (third["errors"], third["lost"], third["counted_twice"]) == ({}, 0, 0)
    assert runs["arroyo alone"]["BufferedMetricsBackend"]["made"] > 0


def test_a_third_class_has_a_block_of_its_own_in_the_table() -> None:
    outcomes: Outcomes = dict.fromkeys([*CLASSES, "BufferedMetricsBackend"], EXACT)
    lines = table({"arroyo alone": outcomes, "patched": outcomes}).splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split() for line in lines if "Buffer" in line] == [
        ["MetricsBuffer"] * 2 + ["ConfluentProducer"] * 2,
        ["BufferedMetricsBackend"] * 2,
    ]


def test_what_one_metric_lost_does_not_hide_what_another_counted_twice() -> None:
    load = Load("MetricsBuffer", seconds=0, threads=1)
    for metric, made, delivered in ("lost", 5, 3), ("counted twice", 1, 4):
        load.made.add(metric, made)
        load.delivered.add(metric, delivered)
    result = load.result()
    assert (result["made"], result["delivered"]) == (6, 7)
    assert (result["lost"], result["counted_twice"]) == (2, 3)


def test_without_json_it_prints_a_table_and_its_progress() -> None:
    ran = run("--threads", "1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = {line.split("  ")[0]: line.split() for line in ran.stdout.splitlines()}
    for label in ("operations", "errors", "made", "delivered", "lost", "seconds"):
        assert len(rows[label]) == 5
    assert max(map(len, ran.stdout.splitlines())) <= 100
    shown = [PROGRESS.fullmatch(line) for line in ran.stderr.splitlines()]
    assert [line and line.groups() for line in shown] == [
        (name, target) for name in ("arroyo alone", "patched") for target in CLASSES
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_each_line_of_progress_takes_the_place_of_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress() as progress:
        progress.show("1 s")
        progress.show("2 s")
    assert terminal.getvalue() == "\r1 s\x1b[K\r2 s\x1b[K\n"


def test_ctrl_c_ends_reproduce_and_the_processes_that_it_started() -> None:
    with started(*REPRODUCE, "--seconds", "100") as ran:
        assert ran.stderr
        assert PROGRESS.fullmatch(ran.stderr.readline().strip())
        ran.send_signal(signal.SIGINT)
        # What it started has the same stderr, so this comes to an end when that has.
        stdout, stderr = ran.communicate(timeout=30)
    assert ran.returncode == 130
    assert stdout == ""
    assert all(map(PROGRESS.fullmatch, stderr.splitlines()))


def test_ctrl_c_does_not_reach_a_run_in_the_background_of_a_shell() -> None:
    with started(*REPRODUCE, "--seconds", "0.5", in_background=True) as ran:
        assert ran.stderr
        assert PROGRESS.fullmatch(ran.stderr.readline().strip())
        ran.send_signal(signal.SIGINT)
        stdout, stderr = ran.communicate(timeout=TIMEOUT)
    assert ran.returncode == 0, stdout + stderr
    assert all(map(PROGRESS.fullmatch, stderr.splitlines()))


@pytest.mark.parametrize(
    ("death", "told"),
    [("exit 3", "ended with exit status 3"), ("kill -KILL $$", "was ended by signal 9 (Killed)")],
)
def test_reproduce_tells_how_a_run_died(
    death: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mortal = tmp_path / "python"
    mortal.write_text(f"#!/bin/sh\n{death}\n", encoding="ascii")
    mortal.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(mortal))
    assert reproduce(seconds=1, threads=1, as_json=False) == 1
    assert capsys.readouterr() == ("", f"The run of 'arroyo alone' {told}: no results.\n")


@pytest.mark.parametrize(
    ("release", "status", "told"),
    [
        ("1.1.0", 2, "MetricsBuffer is not driven: this arroyo's has increment()"),
        ("1.0.7", 2, "MetricsBuffer is not driven: this arroyo is older than 1.1.0"),
        ("2.10.3", 2, "MetricsBuffer is not driven: this arroyo's takes members of enums"),
        ("2.25.0", 2, "MetricsBuffer is not driven: this arroyo's is made with a consumer"),
        ("2.30.0", 0, "ConfluentProducer is not driven: this arroyo uses confluent_kafka's own"),
        ("2.31.1", 0, "ConfluentProducer is not driven: this arroyo's sends every metric at once"),
    ],
)
def test_what_a_release_does_not_have_is_told_and_the_rest_is_driven(
    release: str, status: int, told: str
) -> None:
    ran = run(PYTHONPATH=str(release_folder(release)), PYTHONWARNINGS="ignore")
    assert ran.returncode == status, ran.stdout + ran.stderr
    assert told in ran.stdout
    assert ("MetricsBuffer is not driven" in ran.stdout) == (status == 2)
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (EXACT, 0),
        (EXACT._replace(errors={"RuntimeError": 1}), 1),
        (EXACT._replace(lost=1), 1),
        (EXACT._replace(counted_twice=1), 1),
        (NotDriven("it is not there"), 2),
    ],
)
def test_the_exit_status_tells_whether_the_patched_classes_were_exact(
    outcome: Result | NotDriven, status: int
) -> None:
    assert verdict({"MetricsBuffer": outcome}) == status
