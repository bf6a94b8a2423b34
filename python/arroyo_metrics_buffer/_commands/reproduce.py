"""The defect and its absence, side by side: the known buffers and this package's under threads.

Each runs in an interpreter of its own, where ``stress.py`` drives them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from arroyo_metrics_buffer import status
from arroyo_metrics_buffer._patching.variables import DISABLE

from . import stress
from .progress import Progress

__all__ = ["reproduce"]

RUNS = (stress.ALONE, stress.PATCHED)
WIDTH = 100  # characters
COLUMNS = 4  # beside each other in it


class Result(NamedTuple):
    """What became of a class. All but the errors and the seconds are counts.

    For each metric, ``made - delivered == lost - counted_twice``, and one of the latter is 0: what
    was lost and what was counted twice of the same metric can't be told apart. These are the sums
    over all metrics.
    """

    operations: int
    """Calls of the class's methods by the threads."""
    errors: dict[str, int]
    """How many of them raised, by text."""
    made: int
    """Increments; of a producer deliveries and, where they are measured, their latencies."""
    delivered: int
    """What of that has reached the metrics backend."""
    lost: int
    counted_twice: int
    seconds: float


class NotDriven(NamedTuple):
    """A class that is not there in this release, or is called in another way."""

    not_driven: str
    """The reason."""


Outcomes = dict[str, Result | NotDriven]
"""By class."""


class DiedError(Exception):
    """A run ended before its results."""


def reproduce(*, seconds: float, threads: int, as_json: bool) -> int:
    """Run both and print the table.

    Args:
        seconds: For each class in each of the two runs.
        threads: How many threads write to a buffer, and how many flush it.
        as_json: Print JSON instead.

    Returns:
        The exit status: 0 if there was no error and nothing lost with this package, 1 if there was
        or a run died, 2 if this release of arroyo has no class that can be driven.
    """
    if (value := os.environ.get(DISABLE)) and status().targets[0].state == "disabled":
        sys.stderr.write(f"{DISABLE}={value} is ignored: {stress.PATCHED!r} is patched.\n")
    runs: dict[str, Outcomes] = {}
    try:
        with Progress() as progress:
            for run in RUNS:
                runs[run] = watch(run, seconds, threads, progress)
    except DiedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(document(runs) if as_json else table(runs))
    return verdict(runs[stress.PATCHED])


def watch(run: str, seconds: float, threads: int, progress: Progress) -> Outcomes:
    """Let an interpreter drive both classes, and show how far it is."""
    command = [sys.executable, "-m", stress.__name__, run, str(seconds), str(threads)]
    outcomes: Outcomes | None = None
    # In a group of its own, so that Ctrl-C at a terminal interrupts nobody but this process.
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, process_group=0
    ) as child:
        try:
            for line in child.stdout or ():
                told = json.loads(line)
                if "results" in told:
                    outcomes = {name: outcome(each) for name, each in told["results"].items()}
                else:
                    progress.show(progress_line(run, told))
        except BaseException:
            child.kill()
            raise
    if child.returncode or outcomes is None:
        raise DiedError(f"The run of {run!r} {how_it_ended(child.returncode)}: no results.")
    return outcomes


def outcome(told: dict[str, Any]) -> Result | NotDriven:
    return NotDriven(**told) if "not_driven" in told else Result(**told)


def progress_line(run: str, told: dict[str, Any]) -> str:
    where = f"{run}, {told['target']}:"
    return f"{where:32}{told['seconds']:5.1f} s {told['made']:12,} made {told['errors']:9,} errors"


def how_it_ended(status: int) -> str:
    if status < 0:
        return f"was ended by signal {-status} ({signal.strsignal(-status)})"
    return f"ended with exit status {status}"


def verdict(patched: Outcomes) -> int:
    """The exit status."""
    driven = [each for each in patched.values() if isinstance(each, Result)]
    if not driven:
        return 2
    return 1 if any(each.errors or each.lost or each.counted_twice for each in driven) else 0


def document(runs: Mapping[str, Outcomes]) -> str:
    """For machines."""
    as_dicts = {
        run: {name: each._asdict() for name, each in outcomes.items()}
        for run, outcomes in runs.items()
    }
    environment = asdict(status().environment)
    return json.dumps({"environment": environment, "runs": as_dicts}, indent=1) + "\n"


def table(runs: Mapping[str, Outcomes]) -> str:
    """For people: a column for each class, alone and patched, and what there is to say of it."""
    columns: list[list[str]] = []
    remarks: dict[str, None] = {}  # without repetitions
    for name in runs[RUNS[0]]:
        for run in RUNS:
            outcome = runs[run][name]
            if isinstance(outcome, NotDriven):
                remarks[f"{name} is not driven: {outcome.not_driven}"] = None
                continue
            columns.append([name, run, *(show(outcome) for show in ROWS.values())])
            for text, count in outcome.errors.items():
                remarks[f"{name}, {run}: {count:,} x {text}"] = None
    environment = status().environment
    gil = "with" if environment.gil else "without"
    lines = [f"sentry-arroyo {environment.arroyo}, {environment.python} {gil} the GIL", ""]
    for first in range(0, len(columns), COLUMNS):
        lines += [*block(columns[first : first + COLUMNS]), ""]
    lines += (textwrap.fill(remark, WIDTH, subsequent_indent=" " * 8) for remark in remarks)
    return "".join(f"{line}\n" for line in lines)


def block(columns: list[list[str]]) -> list[str]:
    """Columns beside each other, with the labels of their rows."""
    widths = [max(20, len(name) + 2) for name, *_ in columns]
    return [
        f"{label:14}" + "".join(f"{c:>{width}}" for c, width in zip(cells, widths, strict=True))
        for label, *cells in zip(["", "", *ROWS], *columns, strict=True)
    ]


ROWS: dict[str, Callable[[Result], str]] = {
    "operations": lambda result: f"{result.operations:,}",
    "errors": lambda result: f"{sum(result.errors.values()):,}",
    "made": lambda result: f"{result.made:,}",
    "delivered": lambda result: f"{result.delivered:,}",
    "lost": lambda result: f"{result.lost:,}",
    "counted twice": lambda result: f"{result.counted_twice:,}",
    "seconds": lambda result: f"{result.seconds:.1f}",
}
