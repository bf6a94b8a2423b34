"""Break the Rust code in one small way after another, and list the changes that no test notices.

cargo-mutants makes those of the core. What survives the quick tests is given to the tests of forks,
and what survives these to the models. What may survive is in ``.cargo/mutants.toml``, with reasons.

The mutants in this file are such as cargo-mutants does not make: of memory orderings, of the order
of statements, and of the extension, which the Python tests kill. Each is made in a copy of what is
committed. Start it with the Python to test with. ``--ours`` leaves cargo-mutants out; ``--check``
only says whether each mutant of this file still applies.
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
CORE = "--package=arroyo-metrics-buffer-core"
LAYER_TIMEOUT = 240  # seconds; a layer needs half of that when nothing hangs
PYTHON_TESTS = ("backend_errors", "conservation", "no_waiting", "reentrancy", "signals", "throttle")
LOOM = {"RUSTFLAGS": "--cfg loom", "LOOM_MAX_PREEMPTIONS": "2"}


class Mutant(NamedTuple):
    """Pieces of code that each stand in one place of a file, and what stands there instead."""

    name: str
    file: str
    changes: dict[str, str]
    modelled: bool = True  # whether loom can run it


MUTANTS = [
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
        "src/object.rs",
        {
            "let old = mem::replace(&mut *self.backend.lock(), Backend(backend));": (
                "*self.backend.lock() = Backend(backend);"
            ),
            "        drop(old);": "",
        },
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only see whether each applies")
    parser.add_argument("--ours", action="store_true", help="without cargo-mutants")
    options = parser.parse_args()
    for mutant in MUTANTS:
        mutated(mutant)
    if options.check:
        return
    survivors = [] if options.ours else cargo_mutants()
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        for mutant in MUTANTS:
            copy.write(mutant)
            killer = killer_of(copy, mutant)
            copy.restore(mutant)
            print(f"{mutant.name}: {killer or 'SURVIVES'}", flush=True)
            survivors += [] if killer else [mutant.name]
    print(
        *(["", "Nothing survives."] if not survivors else ["", "Survived:", *survivors]), sep="\n"
    )
    sys.exit(bool(survivors))


def cargo_mutants() -> list[str]:
    """The mutants of the core that no test and no model notices."""
    tests = {path.stem for path in (ROOT / "core" / "tests").glob("*.rs")}
    output = ROOT / "target" / "cargo-mutants"
    survivors: list[str] = []
    for names, variables in [
        (tests - {"forks", "model"}, {}),
        ({"forks"}, {"FORKS": "1000"}),
        ({"model"}, LOOM),
    ]:
        chosen = [f"--re=^{re.escape(name)}$" for name in survivors]
        command = ["cargo", "mutants", CORE, f"--output={output}", *chosen, "--", "--locked"]
        command += [f"--test={name}" for name in sorted(names)]
        environment = {**os.environ, "CARGO_PROFILE_DEV_DEBUG": "0", **variables}
        ended = subprocess.run(command, env=environment, check=False)
        if ended.returncode not in (0, 2, 3):  # all caught, some missed, some hang
            sys.exit("cargo mutants failed")
        survivors = (output / "mutants.out" / "missed.txt").read_text("utf-8").splitlines()
        if not survivors:
            break
    return survivors


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


def verdict(status: int | None, output: str, failure: str) -> str:
    """What killed a mutant: a test, by name, or how the run ended. Empty if it survives."""
    if status == 0:
        return ""
    if "error: could not compile" in output or "Failed to build" in output:
        sys.exit(output)
    if failed := re.search(failure, output, re.MULTILINE):
        return failed[1]
    return "hangs" if status is None else "crashes"


def killer_of(copy: Copy, mutant: Mutant) -> str:
    if mutant.file.startswith("src/"):
        return python_tests(copy)
    by_a_model = cargo_tests(copy, "--test=model", **LOOM) if mutant.modelled else ""
    return by_a_model or cargo_tests(copy)


def cargo_tests(copy: Copy, *arguments: str, **environment: str) -> str:
    command = ["cargo", "test", "--quiet", "--locked", CORE, *arguments]
    return verdict(*copy.run(*command, FORKS="1000", **environment), r"^    (\w+)$")


def python_tests(copy: Copy) -> str:
    wheel = ["maturin", "build", "--release", "--locked", "--interpreter", sys.executable]
    quick = {"CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16"}
    ended = copy.run(sys.executable, "-m", *wheel, "--out", str(copy.site), **quick)
    if ended[0]:
        sys.exit(ended[1])
    for built in copy.site.glob("*.whl"):
        copy.run(sys.executable, "-m", "zipfile", "--extract", str(built), str(copy.site))
        built.unlink()
    tests = [f"tests/contract/test_{name}.py" for name in PYTHON_TESTS]
    pytest = [sys.executable, "-m", "pytest", "--quiet", "--exitfirst", "-p", "no:cacheprovider"]
    ended = copy.run(*pytest, *tests, PYTHONPATH=str(copy.site))
    return verdict(*ended, r"^FAILED tests/contract/\w+\.py::(\w+)")


if __name__ == "__main__":
    main()
