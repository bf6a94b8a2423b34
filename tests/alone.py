"""Tests that an interpreter may die of, each in an interpreter of its own."""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

NOTE = "ARROYO_METRICS_BUFFER_NOTE"  # names the file that the interpreter leaves its last words in
DEADLINE = 120  # seconds; far beyond what anything here takes, so passing it is a hang


def attempt(what: object) -> None:
    """Note what is tried next, for it may kill the interpreter, and end that if it hangs.

    The deadline holds until the next attempt, and after the last one for the interpreter's end.
    """
    Path(os.environ[NOTE]).write_text(ascii(what), encoding="ascii")
    # From C, so that a thread that never lets the interpreter go is no obstacle.
    faulthandler.dump_traceback_later(DEADLINE, exit=True)


def run_alone(test: pytest.Function) -> None:
    """Run a test in a pytest of its own: whatever becomes of that, this one goes on."""
    options = ["--quiet", "--capture=no", "-p", "no:cacheprovider"]
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder, "note")
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", *options, test.nodeid],
            cwd=test.config.rootpath,
            env={**os.environ, NOTE: str(note)},
            capture_output=True,
            check=False,
            text=True,
            errors="backslashreplace",
        )
        if ended.returncode:
            last = note.read_text(encoding="ascii") if note.exists() else "none"
            output = f"{ended.stdout}\n{ended.stderr}\nthe last attempt: {last}"
            pytest.fail(f"exit status {ended.returncode}\n{output}", pytrace=False)


def is_alone() -> bool:
    """Whether this is the interpreter of one test."""
    return NOTE in os.environ
