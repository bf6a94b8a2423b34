"""The matrix: every Python that the package supports, the oldest and the newest arroyo.

``nox --list`` shows it. What a session does is in the Makefile; here is what it is done with. Each
has a virtual environment of its own, which is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nox

VERSIONS = ["3.11", "3.12", "3.13", "3.14", "3.15", "3.14t", "3.15t"]
# Where interpreters may be that are not on the PATH: pyenv's, and what `make pythons` built.
FOLDERS = [
    Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions",
    Path(os.environ.get("PYTHONS", "~/.cache/arroyo-metrics-buffer")).expanduser(),
]
TOOLS = "TOOLS=build test"  # the linters' and benchmarks' may not be there for a new Python yet

every_python = nox.parametrize("version", VERSIONS, ids=VERSIONS)

nox.options.default_venv_backend = "none"  # make makes them
nox.options.sessions = ["lint", "tests", "arroyo"]


@nox.session
@every_python
def tests(session: nox.Session, version: str) -> None:
    """Run the suite, or what of it is given after ``--``."""
    make(session, *(session.posargs or ["test"]), *environment(session, version))


@nox.session
@every_python
def wheel(session: nox.Session, version: str) -> None:
    """Build a wheel, and check it."""
    make(session, "wheel", *environment(session, version), *session.posargs)


@nox.session
@nox.parametrize("release", ["minimal", "newest"], ids=["minimal", "newest"])
def arroyo(session: nox.Session, release: str) -> None:
    """Run the suite with the oldest arroyo that pyproject.toml admits, or with the newest."""
    groups: dict[str, Any] = nox.project.load_toml("pyproject.toml")["dependency-groups"]
    requirement = next(each for each in groups["test"] if each.startswith("sentry-arroyo"))
    if release == "minimal":
        requirement = requirement.replace(">=", "==")
    venv = f".nox/arroyo-{release}"
    make(session, "install", f"VENV={venv}", TOOLS)
    pip = Path(venv, "bin", "pip")
    session.run(pip, "install", "--quiet", "--upgrade", requirement, external=True)
    make(session, "test", f"VENV={venv}", TOOLS)


@nox.session
def lint(session: nox.Session) -> None:
    """Run the linters."""
    make(session, "lint")


def make(session: nox.Session, *arguments: str) -> None:
    session.run("make", "--no-print-directory", *arguments, external=True)


def environment(session: nox.Session, version: str) -> list[str]:
    """Make's variables for an interpreter; where there is none the session is skipped."""
    name = f"python{version}"
    found = (str(path) for folder in FOLDERS for path in sorted(folder.glob(f"*/bin/{name}")))
    for path in filter(None, [shutil.which(name), *found]):
        if version_of(path) == version:
            return [f"PYTHON={path}", f"VENV=.nox/cp{version.replace('.', '')}", TOOLS]
    # CI installs what it asks for: skipped, it would pass for tested.
    stop = session.error if os.environ.get("CI") else session.skip
    return stop(f"there is no {name} on this machine")


def version_of(path: str) -> str:
    """Ask it: it may be a shim of pyenv's, and a free-threaded one goes by the other's name too."""
    code = "import sys; print('{}.{}'.format(*sys.version_info) + sys.abiflags)"
    asked = subprocess.run([path, "-c", code], check=False, capture_output=True, text=True)
    return asked.stdout.strip()
