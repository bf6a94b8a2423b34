"""The soak run, for seconds: that it works, and that nothing is lost in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "scripts" / "soak.py"


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc/self/statm")
def test_a_short_soak_finds_nothing_wrong() -> None:
    command = [sys.executable, str(SOAK), "--seconds", "2"]
    ran = subprocess.run(command, capture_output=True, check=False, text=True, timeout=150)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = dict(line.rsplit(maxsplit=1) for line in ran.stdout.splitlines())
    assert rows["lost"] == rows["counted twice"] == "0"
    assert ran.stderr == ""
