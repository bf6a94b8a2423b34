"""Counts the instructions of the hot path, and fails if they are more than were recorded.

Unlike times, they are the same on every machine and under any load: what valgrind's callgrind
counts in the extension module alone, for a fixed sequence of calls. They change with the code, the
compiler and the version of Python that the module is built for.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path

from arroyo_metrics_buffer import _core

RECORDED = Path(__file__).with_suffix(".json")
TOLERANCE = 1.04
CALLS = 1_000

# Each is run for CALLS calls and for twice as many; the difference has no start-up in it.
PRELUDE = """
import math, sys
from arroyo_metrics_buffer._core import BufferedMetricsBackend, DeliveryBuffer, MetricsBuffer
calls = int(sys.argv[1])
buffer = MetricsBuffer(object(), flush_interval=math.inf)
deliveries = DeliveryBuffer(flush_interval=math.inf)
streams = BufferedMetricsBackend(object(), math.inf)
tags = {"step": "map", "pipeline": "billing"}
names = [f"metric {i}" for i in range(100)]
copies = [f"metric {i - i}" for i in range(100)]
for name in names: buffer.incr_counter(name, 1)
def run():
"""
CASES = {
    "incr_counter": "for name in names[:1] * calls: buffer.incr_counter(name, 1)",
    "incr_timing": "for _ in range(calls): buffer.incr_timing('timer', 0.5)",
    "incr_counter, 100 names": "for name in names * (calls // 100): buffer.incr_counter(name, 1)",
    "incr_counter, copies": "for name in copies * (calls // 100): buffer.incr_counter(name, 1)",
    "increment, two tags": "for _ in range(calls): streams.increment('x', 1, tags)",
    "a delivery": "for _ in range(calls): deliveries.record(None, 0.5)",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="record today's instead of comparing")
    record = parser.parse_args().record
    if shutil.which("valgrind") is None:
        sys.stderr.write("valgrind is missing, instructions can't be counted\n")
        return 2
    counted = {name: instructions(code) for name, code in CASES.items()}
    recorded: dict[str, dict[str, int]] = json.loads(RECORDED.read_text("utf-8"))
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    tag += "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    if record:
        RECORDED.write_text(json.dumps(recorded | {tag: counted}, indent=1) + "\n", "utf-8")
    if (bounds := recorded.get(tag)) is None and not record:
        print(f"There is no record for {tag} yet: benches/instructions.py --record")
    too_many = False
    for name, count in counted.items():
        bound = None if record or bounds is None else bounds[name] * TOLERANCE
        exceeded = bound is not None and count > bound
        too_many |= exceeded
        remark = "" if bound is None else f"   {bound:.0f} allowed"
        print(f"{name:28}{count:6} instructions{remark}{', TOO MANY' if exceeded else ''}")
    return 1 if too_many else 0


def instructions(code: str) -> int:
    """Instructions in the extension module per call."""
    once, twice = (in_module(code, calls) for calls in (CALLS, 2 * CALLS))
    return round((twice - once) / CALLS)


def in_module(code: str, calls: int) -> int:
    """Instructions in the extension module of a whole run."""
    with tempfile.NamedTemporaryFile() as output:
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output.name}"]
        program = f"{PRELUDE}    {code}\nrun()\n"
        command = [*tool, sys.executable, "-c", program, str(calls)]
        environment = {"PYTHONHASHSEED": "0"}
        ran = subprocess.run(  # noqa: S603
            command, capture_output=True, check=False, text=True, env=environment
        )
        if ran.returncode != 0:
            sys.exit(ran.stderr)
        return self_cost(Path(output.name).read_text("utf-8").splitlines(), _core.__file__)


def self_cost(profile: Iterable[str], module: str) -> int:
    """The cost of a shared object by itself, from a profile in callgrind's format.

    https://valgrind.org/docs/manual/cl-format.html: a cost line belongs to the object that the last
    ``ob=`` line named, except the one after ``calls=``, which is what the called function cost.
    """
    objects: dict[str, str] = {}
    total, current, skip = 0, "", False
    for line in profile:
        if named := re.fullmatch(r"c?ob=(\(\d+\))(?: (.+))?", line):
            number, path = named.groups()
            objects.setdefault(number, path or "")
            if not line.startswith("c"):
                current = objects[number]
        elif line.startswith("calls="):
            skip = True
        elif cost := re.fullmatch(r"[+*-]?\d* (\d+)", line):
            if not skip and current == module:
                total += int(cost.group(1))
            skip = False
    return total


if __name__ == "__main__":
    sys.exit(main())
