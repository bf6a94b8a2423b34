"""Tests that an interpreter may die of, or others disturb: each in an interpreter of its own."""

from __future__ import annotations

import faulthandler
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

NOTE = "ARROYO_METRICS_BUFFER_NOTE"  # names the file that has the last attempt
TESTS = Path(__file__).parent.parent
DEADLINE = 120  # seconds; far beyond what anything here takes, so passing it is a hang


def in_new_interpreter(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test where no other disturbs it; if its interpreter crashes or hangs, it has failed."""

    @functools.wraps(test)
    def run(**parameters: object) -> None:
        call = f"tests.{test.__name__}.__wrapped__(**{parameters!r})"
        code = (
            f"import {test.__module__} as tests; from support import new_interpreter;"
            f"new_interpreter.note_attempt('the test'); {call}"
        )
        folders = [TESTS, Path(test.__code__.co_filename).parent, os.environ.get("PYTHONPATH")]
        path = os.pathsep.join(str(folder) for folder in folders if folder)
        with tempfile.TemporaryDirectory() as folder:
            note = Path(folder, "note")
            ended = subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "PYTHONPATH": path, NOTE: str(note)},
                capture_output=True,
                check=False,
                text=True,
                errors="backslashreplace",
            )
            if ended.returncode:
                last = note.read_text(encoding="ascii") if note.exists() else "none"
                output = f"{ended.stdout}\n{ended.stderr}\nthe last attempt: {last}"
                pytest.fail(f"exit status {ended.returncode}\n{output}", pytrace=False)

    return run


def note_attempt(what: object) -> None:
    """Note what is tried next, for it may kill the interpreter, and end that if it hangs.

    The deadline holds until the next attempt, and after the last one for the interpreter's end.
    """
    Path(os.environ[NOTE]).write_text(ascii(what), encoding="ascii")
    # From C, so that a thread that never lets the interpreter go is no obstacle.
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
