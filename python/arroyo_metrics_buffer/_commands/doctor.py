"""Whether arroyo's buffers are protected in this environment, and how anyone can tell."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from arroyo_metrics_buffer import BufferStats, MetricsBuffer, Status, TargetStatus, stats, status
from arroyo_metrics_buffer._patching.patch import describe

__all__ = ["doctor"]

VERDICTS = {
    True: "Every buffer of this arroyo is protected.\n",
    False: "NOT every buffer of this arroyo is protected: what is above says why.\n",
}
MIN_FLUSHES = 10  # for a self-check to tell anything
SELF_CHECK_TIMEOUT = 5.0  # seconds, for that many flushes to happen where the machine is busy
# Exit status 0 if the package comes with arroyo; else the file is told that keeps it away.
IS_REACHED = """
import arroyo, sys
if "arroyo_metrics_buffer" not in sys.modules:
    print(getattr(sys.modules.get("sitecustomize"), "__file__", "nothing"))
    sys.exit(1)
"""
NO_ARROYO = f"There is no arroyo for {sys.executable}.\n"


def doctor(*, as_json: bool) -> int:
    """Import what is to be patched, look at it, try it, and print what was found.

    Args:
        as_json: Print JSON instead of text.

    Returns:
        The exit status: 0 if every buffered class of arroyo is protected, 1 if not, 2 if there is
        no arroyo.
    """
    # What the package logs when arroyo is imported is printed below.
    logging.getLogger("arroyo_metrics_buffer").addHandler(logging.NullHandler())
    has_arroyo = importlib.util.find_spec("arroyo") is not None
    errors = import_targets() if has_arroyo else {}
    now = status()
    now = replace(now, targets=tuple(with_error(target, errors) for target in now.targets))
    check = self_check(patched) if (patched := class_in_place()) else None
    hidden = what_hides_run() if has_arroyo else None
    protected = now.protected and (check is None or check.is_exact()) and hidden is None
    if as_json:
        facts = {
            "protected": protected,
            "targets": [asdict(target) for target in now.targets],
            "on_backend_error": name_of_setting(now),
            "environment": asdict(now.environment),
            "run": hidden,
            "self_check": asdict(check) if check else None,
            "stats": asdict(stats()),
        }
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in text(now, check, hidden))
        sys.stdout.write(VERDICTS[protected] if has_arroyo else NO_ARROYO)
    if not has_arroyo:
        return 2
    return 0 if protected else 1


def import_targets() -> dict[str, str]:
    """Have the modules imported that a consumer imports, and tell what keeps targets from it."""
    errors: dict[str, str] = {}
    for target in status().targets:
        module = target.name.rpartition(".")[0]
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - whatever a module raises
            reason = f"{module} can't be imported: {type(error).__name__}: {error}"
            errors[target.name] = reason
    return errors


def with_error(target: TargetStatus, errors: dict[str, str]) -> TargetStatus:
    """What can't be imported is no protected class, whatever is waiting for it."""
    if (reason := errors.get(target.name)) is None:
        return target
    return replace(target, reason=reason, protected=False)


def class_in_place() -> type[MetricsBuffer] | None:
    """What a processor would make its buffer from, if that is this package's."""
    cls: Any = getattr(sys.modules.get("arroyo.processing.processor"), "MetricsBuffer", None)
    # Not isinstance(), which asks the object too: it may be a proxy that raises.
    return cls if issubclass(type(cls), type) and issubclass(cls, MetricsBuffer) else None


def what_hides_run() -> str | None:
    """Why ``arroyo-metrics-buffer run`` does not reach this Python's programs, if it is in use.

    This one has imported the package by itself, and proves nothing: another is asked.
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
        " sitecustomize; put the command that this belongs to first, and `arroyo-metrics-buffer"
        " run` behind it"
    )


def text(now: Status, check: SelfCheck | None, hidden: str | None) -> Iterator[str]:
    """The lines that a person reads."""
    environment = now.environment
    yield (
        f"arroyo-metrics-buffer {environment.arroyo_metrics_buffer},"
        f" sentry-arroyo {environment.arroyo or '(none)'},"
        f" confluent-kafka {environment.confluent_kafka or '(none)'}"
    )
    gil = "with the GIL" if environment.gil else "without the GIL"
    yield f"{environment.python} {gil}, {environment.platform}"
    yield f"Errors of the metrics backend are {text_of_setting(name_of_setting(now))}."
    sent = "sent" if now.flush_at_exit else "lost"
    yield f"What is pending when the process ends is {sent}."
    for target in now.targets:
        yield ""
        yield from text_of_target(target)
    yield ""
    if hidden is not None:
        yield f"arroyo-metrics-buffer run: {hidden}"
        yield ""
    yield f"self-check: {check or 'not run, since there is nothing of this package to try'}"
    done = stats()
    yield f"stats of consumers: {text_of_stats(done.consumer)}"
    yield f"stats of producers: {text_of_stats(done.producer)}"
    yield ""


def name_of_setting(now: Status) -> str:
    """Tell what becomes of backend errors: "raise", "log", or what a callable is named."""
    setting = now.on_backend_error
    return setting if isinstance(setting, str) else describe(setting)


def text_of_setting(name: str) -> str:
    return {"raise": "raised", "log": "logged"}.get(name, f"logged, and given to {name}")


def text_of_target(target: TargetStatus) -> Iterator[str]:
    yield target.name
    yield f"  {target.state}: {target.reason}"
    yield f"  changed by others since: {', '.join(target.changes) or 'nothing'}"
    alive = "gc.freeze() keeps that from view" if target.unpatched is None else target.unpatched
    yield f"  buffers of arroyo's own alive: {alive}"
    yield f"  protected: {'yes' if target.protected else 'NO'}"


def text_of_stats(done: BufferStats) -> str:
    last = ""
    if done.last_backend_error is not None:
        last = f", {done.seconds_since_last_backend_error:.0f} s ago {done.last_backend_error}"
    return (
        f"{done.flushes:,} flushes, {done.entries_sent:,} entries sent,"
        f" {done.entries_put_back:,} put back,"
        f" {done.samples_dropped:,} samples dropped, {done.backend_errors:,} backend errors"
        f" in {done.outages:,} outages{last}"
    )


class SelfCheckMetric(StrEnum):
    """Names that arroyo uses. Members of an enum, as its older releases want them."""

    RUN_COUNT = "arroyo.consumer.run.count"
    POLL_TIME = "arroyo.consumer.poll.time"
    PROCESSING_TIME = "arroyo.consumer.processing.time"


@dataclass(frozen=True)
class SelfCheck:
    """What became of increments that threads made while others flushed.

    Attributes:
        seconds: How long it took.
        threads: How many took part.
        flushes: How many there were.
        made: Increments, each of 1.
        delivered: Their sum as the backend got it.
        errors: What was raised, in words.
    """

    seconds: float
    threads: int
    flushes: int
    made: int
    delivered: float
    errors: tuple[str, ...]

    def is_exact(self) -> bool:
        """Whether there was no error, nothing lost and nothing counted twice."""
        return not self.errors and self.made == self.delivered

    def __str__(self) -> str:
        outcome = "exact" if self.is_exact() else "NOT exact"
        return ", ".join(
            [
                f"{self.threads} threads",
                f"{self.made:,} increments made and {self.delivered:,.0f} delivered",
                f"{self.flushes:,} flushes in {self.seconds:.1f} s",
                *self.errors,
                outcome,
            ]
        )


def self_check(cls: type[MetricsBuffer], seconds: float = 0.5) -> SelfCheck:
    """Have two threads write to a buffer and two flush it, until some flushes met some writes."""
    delivered: Counter[str] = Counter()
    made: list[int] = []
    errors: list[str] = []
    lock = threading.Lock()
    together = threading.Barrier(4, timeout=SELF_CHECK_TIMEOUT)
    before, start = stats().consumer.flushes, time.monotonic()

    def goes_on() -> bool:
        passed, flushes = time.monotonic() - start, stats().consumer.flushes - before
        return passed < seconds or (
            flushes < MIN_FLUSHES and passed < SELF_CHECK_TIMEOUT and not errors
        )

    class Backend:
        def increment(self, name: str, value: float) -> None:
            with lock:
                delivered[name] += value  # type: ignore[assignment]

        timing = increment

    def write() -> int:
        buffer.incr_counter(SelfCheckMetric.RUN_COUNT, 1)
        buffer.incr_timing(SelfCheckMetric.POLL_TIME, 1.0)
        buffer.incr_timing(SelfCheckMetric.PROCESSING_TIME, 1.0)
        return 3

    def flush() -> int:
        buffer.flush()
        return 0

    def repeat(job: Callable[[], int]) -> None:
        count = 0
        try:
            together.wait()
            while goes_on():
                count += job()
        except Exception as error:  # noqa: BLE001 - to be told
            errors.append(f"{type(error).__name__}: {error}")
        made.append(count)

    # As older releases' constructors want other arguments, not through cls itself.
    buffer = MetricsBuffer.__new__(cls)
    MetricsBuffer.__init__(buffer, Backend())
    jobs = [write, write, flush, flush]
    threads = [threading.Thread(target=repeat, args=(job,)) for job in jobs]
    with frequent_thread_switches():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with suppress(Exception):  # then something is missing
        buffer.flush()
    return SelfCheck(
        seconds=time.monotonic() - start,
        threads=len(threads),
        flushes=stats().consumer.flushes - before,
        made=sum(made),
        delivered=delivered.total(),
        errors=tuple(errors),
    )


@contextmanager
def frequent_thread_switches() -> Generator[None]:
    """Let the interpreter switch threads as often as it can."""
    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(switch_interval)
