"""Whether the metrics buffers are protected in this environment, and what to do if not."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from arroyo_metrics_buffer import (
    BufferedMetricsBackend,
    BufferStats,
    MetricsBuffer,
    Status,
    TargetStatus,
    stats,
    status,
)
from arroyo_metrics_buffer._patching.patch import NEWER, REMOVE, UPDATE, describe
from arroyo_metrics_buffer._patching.variables import DISABLE

from .self_check import SelfCheck, check_metrics_buffer, check_streams

__all__ = ["doctor"]

WELL = "All is well: every metrics buffer of this environment is protected."
NOT_WELL = "NOT every metrics buffer of this environment is protected. What to do:"
# Exit status 0 if the package comes with arroyo; else the file is told that keeps it away.
IS_REACHED = """
import arroyo, sys
if "arroyo_metrics_buffer" not in sys.modules:
    print(getattr(sys.modules.get("sitecustomize"), "__file__", "nothing"))
    sys.exit(1)
"""

Class = TypeVar("Class")


class Problem(NamedTuple):
    """Why something is not protected, and the one thing to do about it."""

    what: str
    cure: str


@dataclass(frozen=True)
class Findings:
    """What doctor has found.

    Attributes:
        status: What ``status()`` says.
        errors: What keeps modules from being imported, by target.
        self_check: How the class of processors did, if it is this package's.
        streams_self_check: How that of sentry-streams did, if it is this package's.
        run: Why ``arroyo-metrics-buffer run`` does not reach this Python, if it is in use.
        has_arroyo: Whether arroyo is installed.
    """

    status: Status
    errors: dict[str, str]
    self_check: SelfCheck | None
    streams_self_check: SelfCheck | None
    run: str | None
    has_arroyo: bool

    def problems(self) -> Iterator[Problem]:
        """What is not as it should be."""
        if not self.has_arroyo:
            yield Problem(
                f"there is no arroyo for {sys.executable}",
                "run doctor with the Python of your application:"
                " PYTHON -m arroyo_metrics_buffer doctor",
            )
            return
        for target in self.status.targets:
            if not target.protected or target.name in self.errors:
                yield problem_of(target, self.errors.get(target.name))
        for check in (self.self_check, self.streams_self_check):
            if check is not None and not check.is_exact():
                yield Problem(
                    f"the self-check is NOT exact: {check}",
                    "remove the subclass or patch that is in the way, or else report this with"
                    " the output of: arroyo-metrics-buffer doctor --json",
                )
        if self.run is not None:
            yield Problem(
                f"arroyo-metrics-buffer run: {self.run}",
                "put the command that this file belongs to first, and `arroyo-metrics-buffer run`"
                " behind it",
            )


def doctor(*, as_json: bool) -> int:
    """Import what is to be patched, look at it, try it, and print what was found.

    Args:
        as_json: Print JSON instead of text.

    Returns:
        The exit status: 0 if every buffered class is protected, 1 if not, 2 if there is no arroyo.
    """
    # What the package logs when arroyo is imported is printed below.
    logging.getLogger("arroyo_metrics_buffer").addHandler(logging.NullHandler())
    found = look()
    problems = list(found.problems())
    if as_json:
        sys.stdout.write(json.dumps(facts(found, problems), indent=1) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in text(found, problems))
    if not found.has_arroyo:
        return 2
    return 1 if problems else 0


def look() -> Findings:
    """Find out."""
    has_arroyo = importlib.util.find_spec("arroyo") is not None
    errors = import_targets() if has_arroyo else {}
    buffer = in_place("arroyo.processing.processor", MetricsBuffer)
    streams = in_place("sentry_streams.metrics.metrics", BufferedMetricsBackend)
    return Findings(
        status=status(),
        errors=errors,
        self_check=check_metrics_buffer(buffer) if buffer else None,
        streams_self_check=check_streams(streams) if streams else None,
        run=what_hides_run() if has_arroyo else None,
        has_arroyo=has_arroyo,
    )


def import_targets() -> dict[str, str]:
    """Have the modules imported that a consumer imports, and tell what keeps targets from it."""
    errors: dict[str, str] = {}
    for target in status().targets:
        module = target.name.rpartition(".")[0]
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - whatever a module raises
            errors[target.name] = f"{type(error).__name__}: {error}"
    return errors


def in_place(module: str, ours: type[Class]) -> type[Class] | None:
    """The class that buffers are made from now, if it is this package's."""
    cls: Any = getattr(sys.modules.get(module), ours.__name__, None)
    # Not isinstance(), which asks the object too: it may be a proxy that raises.
    return cls if issubclass(type(cls), type) and issubclass(cls, ours) else None


def what_hides_run() -> str | None:
    """Why ``arroyo-metrics-buffer run`` does not reach this Python's programs, if it is in use.

    This Python has imported the package by itself, and proves nothing: another is asked.
    """
    if str(Path(__file__).absolute().with_name("startup")) not in sys.path:
        return None
    asked = subprocess.run(  # noqa: S603 - the same interpreter
        [sys.executable, "-c", IS_REACHED], check=False, capture_output=True, text=True
    )
    if asked.returncode == 0:
        return None
    return (
        f"it does not reach this Python, as {asked.stdout.strip()} is found first and runs no other"
        " sitecustomize"
    )


def problem_of(target: TargetStatus, error: str | None) -> Problem:
    """Why a target is not protected, and what to do: the first line that applies."""
    module, _, cls = target.name.rpartition(".")
    reason, alive = target.reason, target.unpatched
    before = "import arroyo_metrics_buffer before"
    lines = [
        (
            error is not None,
            f"{module} can't be imported: {error}",
            f'see what fails by: {sys.executable} -c "import {module}"',
        ),
        (DISABLE in reason, reason, f"take {DISABLE} out of the environment"),
        (target.state == "disabled", reason, "call arroyo_metrics_buffer.install()"),
        (REMOVE in reason, reason, "remove the patch that is named there"),
        (NEWER in reason, reason, "pip install --upgrade arroyo-metrics-buffer"),
        (reason.endswith(UPDATE), reason, "pip install --upgrade sentry-streams"),
        (alive is None, "gc.freeze() was called before the import", f"{before} that call"),
        (
            bool(alive),
            f"{alive} buffers of the original class are alive",
            f"{before} a {cls} is made",
        ),
        (True, ", ".join(target.changes) or reason, "mend what is named there, and run it again"),
    ]
    what, cure = next((what, cure) for applies, what, cure in lines if applies)
    return Problem(f"{target.name}: {what}", cure)


def facts(found: Findings, problems: list[Problem]) -> dict[str, Any]:
    """What a machine reads."""
    now = found.status
    checks = found.self_check, found.streams_self_check
    self_check, streams_self_check = (check and asdict(check) for check in checks)
    return {
        "protected": not problems,
        "problems": [problem._asdict() for problem in problems],
        "targets": [asdict(target) for target in now.targets],
        "on_backend_error": name_of_setting(now),
        "flush_at_exit": now.flush_at_exit,
        "environment": asdict(now.environment),
        "run": found.run,
        "self_check": self_check,
        "streams_self_check": streams_self_check,
        "stats": asdict(stats()),
    }


def text(found: Findings, problems: list[Problem]) -> Iterator[str]:
    """The lines that a person reads."""
    yield NOT_WELL if problems else WELL
    for number, problem in enumerate(problems, 1):
        yield f"  {number}. {problem.what}"
        yield f"     -> {problem.cure}"
    yield ""
    now = found.status
    environment = now.environment
    yield (
        f"arroyo-metrics-buffer {environment.arroyo_metrics_buffer},"
        f" sentry-arroyo {environment.arroyo or '(none)'},"
        f" confluent-kafka {environment.confluent_kafka or '(none)'}"
    )
    gil = "with the GIL" if environment.gil else "without the GIL"
    yield f"{environment.python} {gil}, {environment.platform}"
    yield f"An error of the metrics backend is {text_of_setting(name_of_setting(now))}."
    sent = "sent" if now.flush_at_exit else "lost"
    yield f"When the process ends, what is pending is {sent}."
    done = stats()
    all_stats = (done.consumer, done.producer, done.streams)
    checks = (found.self_check, None, found.streams_self_check)
    for target, check, of_class in zip(now.targets, checks, all_stats, strict=False):
        yield ""
        yield from text_of_target(target, check, of_class)


def name_of_setting(now: Status) -> str:
    """Tell what becomes of backend errors: "raise", "log", or what a callable is named."""
    setting = now.on_backend_error
    return setting if isinstance(setting, str) else describe(setting)


def text_of_setting(name: str) -> str:
    words = {"raise": "raised by the call that flushed", "log": "logged"}
    return words.get(name, f"logged, and given to {name}")


def text_of_target(
    target: TargetStatus, check: SelfCheck | None, done: BufferStats
) -> Iterator[str]:
    alive = "gc.freeze() keeps that from view" if target.unpatched is None else target.unpatched
    yield target.name
    yield f"  {target.state}: {target.reason}"
    yield f"  changed by others since then: {', '.join(target.changes) or 'nothing'}"
    yield f"  buffers of the original class that are alive: {alive}"
    yield f"  protected: {'yes' if target.protected else 'NO'}"
    if check is not None:
        yield f"  self-check: {check}"
    yield f"  in this process: {text_of_stats(done)}"


def text_of_stats(done: BufferStats) -> str:
    last = ""
    if done.last_backend_error is not None:
        last = f"; the last {done.seconds_since_last_backend_error:.0f} s ago,"
        last += f" {done.last_backend_error}"
    return (
        f"{done.flushes:,} flushes, {done.entries_sent:,} entries sent,"
        f" {done.entries_put_back:,} put back, {done.samples_dropped:,} samples dropped,"
        f" {done.backend_errors:,} backend errors in {done.outages:,} outages{last}"
    )
