"""Break the code in one small way after another, and see the suite turn red for each.

Every mutant is made in a copy of what is committed, and given to the three layers of the suite:
the models of the core, its other cargo tests, and the Python tests of the contract. The table that
comes of it is docs/mutants.md. Start it with the Python to test with; names of mutants choose some,
``--check`` only says whether each still applies.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "mutants.md"
LAYER_TIMEOUT = 240  # seconds; a layer needs half of that when nothing hangs
PYTHON_TESTS = (
    *("backend_errors", "bad_input", "conservation", "drop_in", "fork", "no_waiting"),
    *("producer", "reentrancy", "signals", "state_machine", "throttle"),
)


class Mutant(NamedTuple):
    """Pieces of code that each stand in one place of a file, and what stands there instead."""

    name: str
    file: str
    changes: dict[str, str]
    modelled: bool = True  # whether loom can run it


MUTANTS = [
    Mutant(
        "the lock lets everyone in",
        "core/src/lock.rs",
        {"!set(&self.0, Ordering::Acquire)": "!set(&self.0, Ordering::Acquire) || true"},
    ),
    Mutant(
        "who locks need not see what was done before",
        "core/src/lock.rs",
        {"!set(&self.0, Ordering::Acquire)": "!set(&self.0, Ordering::Relaxed)"},
    ),
    Mutant(
        "who unlocks need not show what was done",
        "core/src/lock.rs",
        {"store(false, Ordering::Release)": "store(false, Ordering::Relaxed)"},
    ),
    Mutant(
        "waiters are parked, as parking_lot parks them",
        "core/src/lock.rs",
        {
            "use parking_lot::lock_api;": "use parking_lot::lock_api::{self, RawMutex as _};",
            "NeverParks(AtomicBool);": "NeverParks(parking_lot::RawMutex);",
            "INIT: Self = Self(AtomicBool::new(false));": (
                "INIT: Self = Self(<parking_lot::RawMutex as lock_api::RawMutex>::INIT);"
            ),
            "while !self.try_lock() {\n            yield_now();\n        }": "self.0.lock();",
            "!set(&self.0, Ordering::Acquire)": "self.0.try_lock()",
            "self.0.store(false, Ordering::Release);": "unsafe { self.0.unlock() };",
        },
        modelled=False,
    ),
    Mutant(
        "what is pending is cleared after it was sent",
        "src/buffer.rs",
        {"let time = start": "drop(self.pending.take());\n                let time = start"},
    ),
    Mutant(
        "what was not sent is not put back",
        "src/buffer.rs",
        {"self.pending.put_back(&mut taken);\n        drop(taken);": "drop(taken);"},
    ),
    Mutant(
        "what was sent is put back too",
        "src/buffer.rs",
        {"taken.contents.forget_first(accepted);": ""},
    ),
    Mutant(
        "what is put back replaces what is newer",
        "core/src/pending.rs",
        {"            first.merge(older);\n": ""},
    ),
    Mutant(
        "what is put back comes after what is newer",
        "core/src/pending.rs",
        {"            mem::swap(&mut *first, older);\n": ""},
    ),
    Mutant(
        "a flush takes the first shard only",
        "core/src/pending.rs",
        {"if taken.contents.reserve_for(&shard).is_ok() {": "if false {"},
    ),
    Mutant(
        "merging totals overwrites them",
        "core/src/sums.rs",
        {"older.total = older.total + newer.total": "older.total = newer.total"},
    ),
    Mutant(
        "a name is its object and not its text",
        "core/src/sums.rs",
        {"self.address == key.address || *self.text == *key.text": "self.address == key.address"},
    ),
    Mutant(
        "counters may leave 64 bits",
        "core/src/sums.rs",
        {"i64::try_from(self).is_ok()": "true"},
    ),
    Mutant(
        "a flush is due at the interval, not past it",
        "core/src/throttle.rs",
        {"> self.flush_interval": ">= self.flush_interval"},
    ),
    Mutant(
        "everyone who finds a flush due is told to",
        "core/src/throttle.rs",
        {
            ".compare_exchange(last, now.to_bits(), Ordering::Relaxed, Ordering::Relaxed)": (
                ".swap(now.to_bits(), Ordering::Relaxed)"
            ),
            "                .is_ok()\n": "                != u64::MAX\n",
        },
    ),
    Mutant(
        "the interval begins when a flush ends",
        "src/buffer.rs",
        {
            "        self.pending.throttle().restart(began);\n": "",
            "        let accepted = sending.accepted;\n": (
                "        let accepted = sending.accepted;\n"
                "        self.pending.throttle().restart(self.clock.now(py)?);\n"
            ),
        },
    ),
    Mutant(
        "the errors of a backend are swallowed",
        "src/reporting.rs",
        {"OnBackendError::Raise => Err(error),": "OnBackendError::Raise => Ok(()),"},
    ),
    Mutant(
        "an old backend is freed under the lock",
        "src/metrics_buffer/mod.rs",
        {
            "let old = mem::replace(&mut *self.metrics.lock(), Backend(metrics));": (
                "*self.metrics.lock() = Backend(metrics);"
            ),
            "        drop(old);": "",
        },
    ),
    Mutant(
        "a fork takes no locks",
        "core/src/fork.rs",
        {"    registry.iter().for_each(|entry| entry.lock().acquire());\n": ""},
    ),
    Mutant(
        "a child keeps what its parent had pending",
        "core/src/fork.rs",
        {"release(|lock| unsafe { lock.after_fork_in_child() });": "release(|_| ());"},
    ),
    Mutant(
        "a child goes on with the flush of its parent",
        "core/src/fork.rs",
        {"GENERATION.fetch_add(1, Ordering::Relaxed);": ""},
    ),
    Mutant(
        "samples that are dropped are not counted",
        "core/src/deliveries.rs",
        {"                self.count_dropped(1);\n": ""},
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the names of the mutants to try")
    parser.add_argument("--check", action="store_true", help="only see whether each applies")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if any(part in m.name for part in options.names or [""])]
    for mutant in chosen:
        mutated(mutant)
    if options.check:
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        rows = []
        for mutant in chosen:
            copy.write(mutant)
            rows.append([mutant.name, *(layer(copy, mutant) for layer in LAYERS.values())])
            print(" | ".join(rows[-1]), flush=True)
            copy.restore(mutant)
    if chosen == MUTANTS:
        write_table(rows)
    if survivors := [row[0] for row in rows if not killed(row)]:
        sys.exit(f"survived: {', '.join(survivors)}")


def mutated(mutant: Mutant) -> str:
    """The text of the file with the mutant in it."""
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    for code, instead in mutant.changes.items():
        if text.count(code) != 1:
            sys.exit(f"{mutant.name}: {text.count(code)} places in {mutant.file} read {code!r}")
        text = text.replace(code, instead)
    return text


class Copy:
    """A copy of what is committed, with an extension of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "copy"
        self.site = folder / "site"
        subprocess.run(["git", "clone", "--quiet", ROOT, self.root], check=True)

    def write(self, mutant: Mutant) -> None:
        (self.root / mutant.file).write_text(mutated(mutant), encoding="utf-8")

    def restore(self, mutant: Mutant) -> None:
        subprocess.run(["git", "checkout", "--quiet", mutant.file], cwd=self.root, check=True)

    def run(self, *command: str, **environment: str) -> tuple[int | None, str]:
        """Run a command and return its status, None if it had to be killed, and what it printed."""
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env={**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target" / "mutants"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=LAYER_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[0]
        return process.returncode, output


SURVIVES = ""
NOT_RUN = "not run"


def killed(row: list[str]) -> bool:
    return not {*row[1:]} <= {SURVIVES, NOT_RUN}


def verdict(status: int | None, output: str, failure: str) -> str:
    """What killed a mutant: a test, by name, or how the run ended."""
    if status == 0:
        return SURVIVES
    if "error: could not compile" in output or "Failed to build" in output:
        sys.exit(output)
    if failed := re.search(failure, output, re.MULTILINE):
        return f"`{failed[1]}`"
    return "hangs" if status is None else "crashes"


def models(copy: Copy, mutant: Mutant) -> str:
    if not mutant.modelled:
        return NOT_RUN
    flags = {"RUSTFLAGS": "--cfg loom", "LOOM_MAX_PREEMPTIONS": "2"}
    return cargo_test(copy, "--test=model", **flags)


def cargo_tests(copy: Copy, _: Mutant) -> str:
    return cargo_test(copy)


def cargo_test(copy: Copy, *arguments: str, **environment: str) -> str:
    package = ["--package", "arroyo-metrics-buffer-core"]
    command = ["cargo", "test", "--quiet", "--locked", *package, *arguments]
    return verdict(*copy.run(*command, **environment), r"^    (\w+)$")


def python_tests(copy: Copy, _: Mutant) -> str:
    wheel = ["maturin", "build", "--release", "--locked", "--interpreter", sys.executable]
    copy.run(sys.executable, "-m", *wheel, "--out", str(copy.site))
    for built in copy.site.glob("*.whl"):
        copy.run(sys.executable, "-m", "zipfile", "--extract", str(built), str(copy.site))
        built.unlink()
    tests = [f"tests/contract/test_{name}.py" for name in PYTHON_TESTS]
    pytest = [sys.executable, "-m", "pytest", "--quiet", "--exitfirst", "-p", "no:cacheprovider"]
    ended = copy.run(*pytest, *tests, PYTHONPATH=str(copy.site))
    return verdict(*ended, r"^FAILED tests/contract/\w+\.py::(\w+)")


LAYERS = {"models": models, "cargo tests": cargo_tests, "Python tests": python_tests}


def write_table(rows: list[list[str]]) -> None:
    header = ["what is broken", *LAYERS]
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    TABLE.write_text(
        f"""# Mutants

`make mutants` breaks the code in one small way after another and runs three layers of the suite.
The test named is the first one that failed; where there is none, the layer did not notice. Killed:
{sum(map(killed, rows))} of {len(rows)}.

{table}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
