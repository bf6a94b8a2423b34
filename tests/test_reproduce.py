"""The command that shows the defect and its absence."""

from __future__ import annotations

import json
import os
import subprocess
import sys

REPRODUCE = (sys.executable, "-m", "arroyo_metrics_buffer", "reproduce", "--seconds", "1.5")


def test_the_patched_classes_have_no_error_and_lose_nothing() -> None:
    # Asked for by name, it patches whatever the environment says.
    environment = os.environ | {"ARROYO_METRICS_BUFFER_DISABLE": "1"}
    command = [*REPRODUCE, "--json"]
    ran = subprocess.run(
        command, capture_output=True, check=False, env=environment, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    runs = json.loads(ran.stdout)
    for result in runs["patched"].values():
        assert result["operations"] > 0
        assert (result["errors"], result["lost"], result["counted_twice"]) == ({}, 0, 0)
    # What arroyo's own classes do is a matter of chance; that they were at work is not.
    assert runs["arroyo alone"].keys() == {"MetricsBuffer", "ConfluentProducer"}
    for result in runs["arroyo alone"].values():
        assert result["operations"] > 0


def test_without_json_it_prints_a_table() -> None:
    ran = subprocess.run(REPRODUCE, capture_output=True, check=False, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = {line.split("  ")[0]: line.split() for line in ran.stdout.splitlines()}
    for label in ("operations", "errors", "lost", "seconds"):
        assert len(rows[label]) == 5
