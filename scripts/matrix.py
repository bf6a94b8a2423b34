"""Every release of arroyo and of sentry-streams: what this package does with it.

Installs each one there is, once, and prints a row for every stretch of releases that are alike. The
exit status is 1 if a patched class makes other calls than the release's own, or is not known.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.arroyo_releases import RELEASES, Unusable, drive_release
from support.streams import STREAMS

ROOT = Path(__file__).parents[1]
ARROYO = "2.48.0"  # beside which the releases of sentry-streams are driven
# The only one whose buffer is another, and not patched.
UNKNOWN = ("sentry-streams", "0.0.41")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


class Row(NamedTuple):
    """What became of a release."""

    outcomes: tuple[str, ...]
    is_right: bool


def main() -> int:
    wrong = [*all_of("sentry-arroyo", try_out_arroyo), *all_of("sentry-streams", try_out_streams)]
    print(f"wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def all_of(distribution: str, try_out: Callable[[str], Row]) -> list[str]:
    """Try out all releases, print what became of them, and return those that are wrong."""
    versions = every_version(distribution)
    with ThreadPoolExecutor(2) as pool:
        rows = list(zip(versions, pool.map(try_out, versions), strict=True))
    print(f"{len(rows)} releases of {distribution}")
    for row, alike in groupby(rows, key=lambda row: row[1]):
        first, *rest = [version for version, _ in alike]
        stretch = f"{first} to {rest[-1]} ({len(rest) + 1})" if rest else first
        print(f"{stretch:28}", *(f"\n    {outcome}" for outcome in row.outcomes), sep="")
    return [
        f"{distribution} {version}"
        for version, row in rows
        if not row.is_right and (distribution, version) != UNKNOWN
    ]


def every_version(distribution: str) -> list[str]:
    """Oldest first."""
    command = [*PIP, "index", "versions", "--json", distribution]
    listed = subprocess.run(command, capture_output=True, check=True, text=True)
    versions: list[str] = json.loads(listed.stdout)["versions"]
    return versions[::-1]


def try_out_arroyo(version: str) -> Row:
    return try_out(RELEASES / version, lambda: drive_release(version))


def try_out_streams(version: str) -> Row:
    def drive() -> dict[str, Any]:
        outcomes = drive_release(ARROYO, STREAMS / version)
        return {name: each for name, each in outcomes.items() if "sentry_streams" in name}

    return try_out(STREAMS / version, drive)


def try_out(folder: Path, drive: Callable[[], dict[str, Any]]) -> Row:
    try:
        install(folder)
        outcomes = drive()
    except Unusable as error:
        reason = str(error).strip().rpartition("\n")[2]
        return Row((f"can't be used: {reason}",), is_right=True)
    lines = []
    is_right = True
    for target, outcome in outcomes.items():
        words = f"{target.rpartition('.')[2]}: {outcome['state']}, {outcome['reason']}"
        if "patched" in outcome:
            same = outcome["patched"] == outcome["upstream"]
            words += f"; the {'same' if same else 'WRONG'} calls as its own"
            is_right &= same
        lines.append(words)
        is_right &= outcome["state"] != "unknown"
    return Row(tuple(lines), is_right)


def install(folder: Path) -> None:
    """Install a release as ``make releases`` does."""
    target = folder.relative_to(ROOT)
    ended = subprocess.run(
        ["make", "--silent", str(target)], cwd=ROOT, capture_output=True, check=False, text=True
    )
    if ended.returncode:
        raise Unusable(ended.stderr)


if __name__ == "__main__":
    sys.exit(main())
