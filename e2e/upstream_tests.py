"""arroyo's own tests, with its own buffers and with this package's, side by side.

They are those of the source distribution of the arroyo that is installed, Kafka's included. Some
fail now and then, so one that fails with either is tried four times more with both. Exit status: 1
if one that passes with arroyo's buffers at each attempt fails with this package's at more than one,
or never passes; 0 if not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import ExitStack, chdir, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import servers
from ending import Failed, fail_on_signals, process_group

RELEASE = version("sentry-arroyo")
BROKER = "DEFAULT_BROKERS"  # where the tests look for its address, in the environment
TIMEOUT = 600  # seconds for all tests, which take two minutes on two cores
ATTEMPTS = 5  # at a test that has failed with either
LOST = 2  # failures in these attempts that are no accident, if arroyo's buffers have none
KINDS = ("passed", "failed", "skipped")
WIDTH = 72  # columns for the name of a file


@dataclass(frozen=True)
class Buffers:
    """What the tests are run with.

    Attributes:
        whose: They are, in the report.
        command: Starts Python.
        patched: The classes of arroyo that are, as the tests tell at their end.
    """

    whose: str
    command: tuple[str, ...]
    patched: str


ARROYOS = Buffers("arroyo's", (sys.executable,), "")
OURS = Buffers(
    "this package's",
    (sys.executable, "-m", "arroyo_metrics_buffer", "run", "--", sys.executable),
    "arroyo.processing.processor.MetricsBuffer, arroyo.backends.kafka.consumer.ConfluentProducer",
)


class Test(NamedTuple):
    """What became of it, attempt by attempt: ``passed``, ``failed: ...`` or ``skipped: ...``."""

    arroyos: list[str]
    ours: list[str]


def main() -> int:
    fail_on_signals()
    tests: dict[str, Test] = defaultdict(lambda: Test([], []))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        stack.enter_context(chdir(folder))
        put_tests(folder)
        arguments = ["tests"]
        if lacking := servers.missing(servers.OF_KAFKA):
            of_kafka = [path for path in Path("tests").rglob("*.py") if BROKER in path.read_text()]
            arguments += [f"--ignore={path}" for path in of_kafka]
            print(f"left out, as there is no {' and no '.join(lacking)}:", *of_kafka)
        else:
            os.environ[BROKER] = stack.enter_context(servers.kafka(folder)).address
        for _ in range(ATTEMPTS):
            for name, outcome in run_tests(ARROYOS, arguments).items():
                tests[name].arroyos.append(outcome)
            for name, outcome in run_tests(OURS, arguments).items():
                tests[name].ours.append(outcome)
            # A file that can't be imported has no tests to name.
            arguments = [name for name in tests if "::" in name and failed(tests[name])]
            if not arguments:
                break
    return report(tests)


def failed(test: Test) -> bool:
    """At any attempt, with either's buffers."""
    return any(outcome.startswith("failed") for outcome in (*test.arroyos, *test.ours))


def put_tests(folder: Path) -> None:
    """The tests, with what they import and the source distribution leaves out."""
    name = f"sentry-arroyo-{RELEASE}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=sentry-arroyo"]

    def download(to: Path) -> None:
        servers.run(*pip, "--dest", str(to), f"sentry-arroyo=={RELEASE}")

    [archive] = servers.cached(name, download).glob("*.tar.gz")
    shutil.unpack_archive(archive, folder / "source", filter="data")
    [tests] = folder.glob("source/*/tests")
    tests.rename(folder / "tests")
    ours = Path(__file__).with_name("upstream")
    for path in ours.glob("*.py"):
        shutil.copy(path, folder / "tests")


def run_tests(buffers: Buffers, arguments: Iterable[str]) -> dict[str, str]:
    print(f"arroyo {RELEASE}'s tests with {buffers.whose} buffers", flush=True)
    results = Path("results.xml")
    results.unlink(missing_ok=True)
    options = ["--quiet", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    options += ["--rootdir=.", f"--junit-xml={results}"]
    output = run([*buffers.command, "-m", "pytest", *options, *arguments])
    if not results.exists():
        raise Failed(f"{output}\nthe tests did not come to their end")
    suite = ElementTree.parse(results)
    patched = suite.find(".//property[@name='patched']")
    if patched is None or patched.get("value") != buffers.patched:
        raise Failed(f"{output}\nthese were not {buffers.whose} buffers")
    outcomes: dict[str, str] = {}
    for case in suite.iter("testcase"):
        # A test whose fixture fails as well is in there twice.
        if outcomes.get(name := name_of(case), "passed") == "passed":
            outcomes[name] = outcome_of(case)
    return outcomes


def run(command: list[str]) -> str:
    """Run a command until it ends or has to, and its children; return the last of what it said."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        with process_group() as group, suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=TIMEOUT,
                process_group=group,
            )
        output.seek(0)
        return output.read()[-10_000:]


def name_of(case: ElementTree.Element) -> str:
    """The name that pytest takes, which our conftest.py notes; a file that failed has another."""
    noted = case.find("properties/property[@name='name']")
    return case.get("name", "") if noted is None else noted.get("value", "")


def outcome_of(case: ElementTree.Element) -> str:
    for tag, kind in ("error", "failed"), ("failure", "failed"), ("skipped", "skipped"):
        if (found := case.find(tag)) is not None:
            first_line, *_ = found.get("message", "").splitlines() or [""]
            return f"{kind}: {first_line[:100]}"
    return "passed"


def report(tests: dict[str, Test]) -> int:
    """Show each file's totals, and each test that did not just pass; return the exit status."""
    firsts = [(first(test.arroyos), first(test.ours)) for test in tests.values()]
    finals = {name: (final(test.arroyos), final(test.ours)) for name, test in tests.items()}
    print(f"\n{'':<{WIDTH}} {ARROYOS.whose:<23} | {OURS.whose}")
    print(f"{'':<{WIDTH}} {' | '.join([' '.join(f'{kind:>7}' for kind in KINDS)] * 2)}")
    rows = {"all, at the first attempt": firsts, "all, at any attempt": [*finals.values()]}
    for file in dict.fromkeys(name.partition("::")[0] for name in finals):
        rows[file] = [pair for name, pair in finals.items() if name.startswith(file)]
    for label, pairs in rows.items():
        arroyos, ours = zip(*pairs, strict=True)
        print(f"{label:<{WIDTH}} {count(arroyos)} | {count(ours)}")

    print("\nall but those that passed at once:")
    for name, test in tests.items():
        if {*test.arroyos, *test.ours} != {"passed"}:
            print(f"  {name}")
            for buffers, outcomes in zip((ARROYOS, OURS), test, strict=True):
                each = ", ".join(f"{times}x {what}" for what, times in Counter(outcomes).items())
                print(f"    {buffers.whose:<14}  {each}")
    lost = [name for name, test in tests.items() if is_lost(test)]
    print("\nlost: passed with arroyo's always; with this package's never, or not at two attempts:")
    print("\n".join(f"  {name}" for name in lost) or "  none")
    return int(bool(lost))


def is_lost(test: Test) -> bool:
    """One that fails with arroyo's, or once only with this package's, does so now and then."""
    failures = sum(outcome != "passed" for outcome in test.ours)
    never_passed = failures == len(test.ours)
    return set(test.arroyos) == {"passed"} and (never_passed or failures >= LOST)


def first(outcomes: list[str]) -> str:
    return (outcomes or ["not run"])[0]


def final(outcomes: list[str]) -> str:
    return "passed" if "passed" in outcomes else (outcomes or ["not run"])[-1]


def count(outcomes: Iterable[str]) -> str:
    counter = Counter(outcome.partition(":")[0] for outcome in outcomes)
    return " ".join(f"{counter[kind]:>7}" for kind in KINDS)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
