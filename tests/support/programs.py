"""Programs that a test runs to their end, or starts, watches and interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DEADLINE = 180  # seconds for a program that ends by itself, so passing it is a hang


def run_to_end(
    *command: str | os.PathLike[str], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program, with variables beside those of this process."""
    return subprocess.run(
        command,
        capture_output=True,
        check=False,
        env=os.environ | environment,
        text=True,
        timeout=DEADLINE,
    )


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, warnings being errors."""
    return run_to_end(sys.executable, "-W", "error", "-c", code, **environment)


@contextmanager
def started(
    *command: str, in_background: bool = False, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start a program, and kill it if it outlives the block.

    A program inherits whether SIGINT is ignored, and a shell has it ignored in its background. So
    that the tests prove the same wherever they run, the program gets what it would get in the
    foreground of a shell, or else in the background.
    """
    # A handler is no matter for a new program: it gets the default action.
    inherited = signal.SIG_IGN if in_background else signal.default_int_handler
    before = signal.signal(signal.SIGINT, inherited)
    try:
        program = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with program:
        try:
            yield program
        finally:
            program.kill()
