"""The matrix: every Python that the package supports, and the oldest arroyo.

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

# scripts/elsewhere has 3.15: the tests need confluent-kafka, which has no wheel for it yet.
VERSIONS = ["3.11", "3.12", "3.13", "3.14", "3.14t"]
# Where interpreters may be that are not on the PATH: pyenv's, and what `make pythons` built.
FOLDERS = [
    Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions",
    Path(os.environ.get("PYTHONS", "~/.cache/arroyo-metrics-buffer")).expanduser(),
]
TOOLS = "TOOLS=build"  # what else is needed may not be there for a new Python yet

every_python = nox.parametrize("version", VERSIONS, ids=VERSIONS)

nox.options.default_venv_backend = "none"  # make makes them
nox.options.sessions = ["lint", "tests", "oldest_arroyo"]


@nox.session
@every_python
def tests(session: nox.Session, version: str) -> None:
    """Run the suite on the wheel, or what of it is given after ``--``."""
    tests = f"TESTS={' '.join(session.posargs)}"
    make(session, "test-wheel", *environment(session, version), tests)


@nox.session
@every_python
def wheel(session: nox.Session, version: str) -> None:
    """Build a wheel, and check it."""
    make(session, "wheel", *environment(session, version), *session.posargs)


@nox.session
def oldest_arroyo(session: nox.Session) -> None:
    """Run the suite with the oldest arroyo that it is written for; the others take the newest."""
    groups: dict[str, Any] = nox.project.load_toml("pyproject.toml")["dependency-groups"]
    requirement = next(each for each in groups["test"] if each.startswith("sentry-arroyo"))
    constraint = Path(session.create_tmp(), "constraint.txt").resolve()
    constraint.write_text(requirement.replace(">=", "=="), encoding="utf-8")
    make(session, "releases", "VENV=.nox/oldest-arroyo", TOOLS)  # which are older than that
    make(session, "test-wheel", "VENV=.nox/oldest-arroyo", TOOLS, PIP_CONSTRAINT=str(constraint))


@nox.session
def lint(session: nox.Session) -> None:
    """Run the linters."""
    make(session, "lint")


def make(session: nox.Session, *arguments: str, **variables: str) -> None:
    session.run("make", "--no-print-directory", *arguments, env=variables, external=True)


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
