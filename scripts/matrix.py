"""Every release of arroyo: what this package does with it, beside what it does itself.

Installs each one there is, once, and prints a row for every stretch of releases that are alike. The
exit status is 1 if a patched class makes other calls than arroyo's own, or is not known.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.arroyo_releases import RELEASES, Unusable, drive_release

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


class Row(NamedTuple):
    """What became of a release."""

    outcomes: tuple[str, ...]
    is_right: bool


def main() -> int:
    versions = every_version()
    with ThreadPoolExecutor(2) as pool:
        rows = list(zip(versions, pool.map(try_out, versions), strict=True))
    for row, alike in groupby(rows, key=lambda row: row[1]):
        first, *rest = [version for version, _ in alike]
        stretch = f"{first} to {rest[-1]} ({len(rest) + 1})" if rest else first
        print(f"{stretch:28}", *(f"\n    {outcome}" for outcome in row.outcomes), sep="")
    wrong = [version for version, row in rows if not row.is_right]
    print(f"{len(rows)} releases, wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def every_version() -> list[str]:
    """Oldest first."""
    command = [*PIP, "index", "versions", "--json", "sentry-arroyo"]
    listed = subprocess.run(command, capture_output=True, check=True, text=True)
    versions: list[str] = json.loads(listed.stdout)["versions"]
    return versions[::-1]


def try_out(version: str) -> Row:
    try:
        install(version)
        outcomes = drive_release(version)
    except Unusable as error:
        reason = str(error).strip().rpartition("\n")[2]
        return Row((f"can't be used: {reason}",), is_right=True)
    lines = []
    is_right = True
    for target, outcome in outcomes.items():
        words = f"{target.rpartition('.')[2]}: {outcome['state']}, {outcome['reason']}"
        if "patched" in outcome:
            same = outcome["patched"] == outcome["upstream"]
            words += f"; the {'same' if same else 'WRONG'} calls as arroyo's own"
            is_right &= same
        lines.append(words)
        is_right &= outcome["state"] != "unknown"
    return Row(tuple(lines), is_right)


def install(version: str) -> None:
    if (RELEASES / version).is_dir():
        return
    command = [*PIP, "install", "--quiet", "--no-deps", "--target", str(RELEASES / version)]
    ended = subprocess.run(
        [*command, f"sentry-arroyo=={version}"], capture_output=True, check=False, text=True
    )
    if ended.returncode:
        raise Unusable(ended.stderr)


if __name__ == "__main__":
    sys.exit(main())
