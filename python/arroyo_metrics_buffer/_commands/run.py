"""Runs another program with this package imported first: ``arroyo-metrics-buffer run``."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from arroyo_metrics_buffer._patching.variables import ON_BACKEND_ERROR

# Nothing but sitecustomize.py is in it: what is in it, the program can import.
_FOLDER = str(Path(__file__).absolute().with_name("startup"))


def run(program: list[str], *, on_backend_error: str | None) -> int:
    """Become a program whose interpreters import this package first.

    Args:
        program: Its name or path, and its arguments.
        on_backend_error: As of ``install()``. None leaves it to the environment.

    Returns:
        As a shell does, 127 if the program was not found, and 126 if it could not be started. On
        Windows, where no process can become another program, its exit code when it has ended.
    """
    environment = {**os.environ, "PYTHONPATH": _python_path(os.environ.get("PYTHONPATH"))}
    if on_backend_error is not None:
        environment[ON_BACKEND_ERROR] = on_backend_error
    try:
        if sys.platform == "win32":
            return subprocess.call(program, env=environment)
        # Python ignores these, and what is ignored stays so in a program that is not Python.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        _become(program, environment)
    except OSError as error:
        sys.stderr.write(f"arroyo-metrics-buffer: {program[0]}: {error.strerror}\n")
        return 127 if isinstance(error, FileNotFoundError | NotADirectoryError) else 126


def _become(program: list[str], environment: dict[str, str]) -> NoReturn:
    """As execvp(3): what the system knows no format of is a script for ``sh``."""
    path = shutil.which(program[0])
    if path is None:
        os.execvpe(program[0], program, environment)  # it fails, and tells why
    try:
        os.execve(path, program, environment)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    os.execve("/bin/sh", ["/bin/sh", path, *program[1:]], environment)


def _python_path(before: str | None) -> str:
    """With the folder in front, once. An entry may be empty, and then is the working directory."""
    entries = before.split(os.pathsep) if before else []
    return os.pathsep.join([_FOLDER, *(entry for entry in entries if entry != _FOLDER)])
