"""Run the core's tests under ThreadSanitizer and AddressSanitizer, and Python's under memcheck.

Each first has to find a fault that is planted for it. What can't be run for want of a tool is
named. Start it with the Python whose extension memcheck is to look at.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
# What takes minutes there. test_bad_input.py is not among it: CPython 3.11 makes a wide 0 of memory
# that it multiplies by 0 without having set it.
PYTHON_TESTS = ("backend_errors", "producer", "reentrancy")
# A timer's signal comes late there, when it has no handler any more; a bound of a million is far.
LEFT_OUT = "signal or bounded"

# An error that lies in ctypes' part of a process, as ours would in our extension.
PLANTED_IN_PYTHON = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
freed = ctypes.c_void_p(libc.malloc(64))
libc.free(freed)
ctypes.string_at(freed, 32)
"""


class Failed(Exception):  # noqa: N818 - what a run has, not what a programmer made
    """A fault was found, or a planted one was not."""


def main() -> None:
    os.chdir(ROOT)
    nightly = shutil.which("rustup") and not run("cargo", "+nightly", "--version").returncode
    if nightly:
        report = "data race .*planted_faults::a_race"
        sanitized("ThreadSanitizer", "thread", "a_race", report, ["threads"])
        tests = ["deliveries", "properties", "sums", "threads"]
        sanitized("AddressSanitizer", "address", "a_use_after_free", "heap-use-after-free", tests)
    else:
        missing("ThreadSanitizer, AddressSanitizer", "the nightly toolchain of Rust")
    if shutil.which("valgrind"):
        memcheck()
    else:
        missing("memcheck", "valgrind")


def missing(name: str, tool: str) -> None:
    print(f"{name}: NOT RUN, {tool} is missing")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever that is."""
    return subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


def sanitized(name: str, sanitizer: str, fault: str, report: str, tests: list[str]) -> None:
    """Run tests of the core, all but those of forks, which sanitizers do not follow."""
    planted = cargo_test(sanitizer, ["planted_faults"], "--", "--ignored", fault)
    if planted.returncode == 0 or not re.search(report, planted.stdout):
        raise Failed(f"{planted.stdout}{name} did not find planted_faults::{fault}")
    clean = cargo_test(sanitizer, tests)
    if clean.returncode:
        raise Failed(clean.stdout)
    passed = sum(map(int, re.findall(r"(\d+) passed", clean.stdout)))
    print(f"{name}: finds a planted fault, and none in {passed} tests of the core")


def cargo_test(
    sanitizer: str, tests: list[str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    version = run("rustc", "+nightly", "-vV").stdout
    host = re.search(r"^host: (.+)$", version, re.MULTILINE)
    assert host, version
    return run(
        *["cargo", "+nightly", "test", "--quiet", "--locked"],
        *["--package", "arroyo-metrics-buffer-core"],
        *["--target", host[1], "--target-dir", f"target/{sanitizer}"],
        *(f"--test={test}" for test in tests),
        *arguments,
        RUSTFLAGS=f"-Zsanitizer={sanitizer} -Cunsafe-allow-abi-mismatch=sanitizer",
        TSAN_OPTIONS=f"suppressions={ROOT / 'core' / 'tests' / 'tsan.supp'}",
        PROPTEST_CASES="64",
    )


def memcheck() -> None:
    """Run a part of the Python tests."""
    planted = errors_of("-c", PLANTED_IN_PYTHON)
    if not any(touches(error, "_ctypes") for error in planted):
        raise Failed("memcheck did not find the planted fault")
    tests = [f"tests/contract/test_{name}.py" for name in PYTHON_TESTS]
    pytest = ["-m", "pytest", "-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT})", *tests]
    ours = [error for error in errors_of(*pytest) if touches(error, "_core")]
    if ours:
        raise Failed("\n".join(ElementTree.tostring(error, "unicode") for error in ours))
    print(f"memcheck: finds a planted fault, and none of ours in {' '.join(tests)}")


def errors_of(*arguments: str) -> Iterator[ElementTree.Element]:
    """What memcheck reports of a run of Python, CPython's own errors included."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        ended = run(
            # Leaks are test_memory.py's business: at the end CPython has most of its memory still.
            *["valgrind", "--show-leak-kinds=none", "--child-silent-after-fork=yes"],
            *["--num-callers=50", "--xml=yes", f"--xml-file={report.name}"],
            *[sys.executable, *arguments],
            PYTHONMALLOC="malloc",
        )
        if ended.returncode:
            raise Failed(ended.stdout)
        yield from ElementTree.parse(report.name).iter("error")


def touches(error: ElementTree.Element, library: str) -> bool:
    """Whether a library is in a stack: of the access, or of who made or freed the memory."""
    return any(library in Path(frame.text or "").name for frame in error.iter("obj"))


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(str(failed))
