"""Releases of arroyo beside the one that is installed, each in a folder of its own.

They are pure Python, so one folder serves every interpreter, also that of an environment that has
nothing but a wheel to test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RELEASES = ROOT / "target" / "arroyo"
PROGRAM = Path(__file__).with_name("drive_release.py")


class Unusable(Exception):  # noqa: N818 - what a release is, not what a programmer made
    """A release can't be installed, or not be imported on this Python."""


def release_folder(version: str) -> Path:
    """Where a release is."""
    release = RELEASES / version
    assert release.is_dir(), f"{release} is missing: make releases"
    return release


def drive_release(version: str, streams: Path | None = None) -> dict[str, Any]:
    """What the targets do under a release: see ``drive_release.py``.

    ``streams`` is the folder of a release of sentry-streams.
    """
    release = release_folder(version)
    folders = [release, streams] if streams else [release]
    path = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", PROGRAM],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    if ended.returncode:
        raise Unusable(ended.stderr)
    outcomes: dict[str, Any] = json.loads(ended.stdout)
    assert Path(outcomes.pop("arroyo")).is_relative_to(release)
    return outcomes
