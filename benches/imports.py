"""What an import costs, and what ``run`` adds to an interpreter that never imports arroyo.

Each is the time of a new interpreter that does it, less that of one that does nothing. They take
turns, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import arroyo_metrics_buffer

ROUNDS = 100
STARTUP = Path(arroyo_metrics_buffer.__file__).parent / "_commands" / "startup"
PROGRAMS = {
    "nothing": ("pass", {}),
    "import logging": ("import logging", {}),
    "import arroyo_metrics_buffer": ("import arroyo_metrics_buffer", {}),
    "nothing, under run": ("pass", {"PYTHONPATH": str(STARTUP)}),
}


def seconds(code: str, environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | environment)  # noqa: S603
    return time.perf_counter() - start


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(ROUNDS):
        for name, program in PROGRAMS.items():
            times[name].append(seconds(*program))
    bare, logging, package, run = (1e3 * median(values) for values in times.values())
    print(f"import logging {logging - bare:.1f} ms, import arroyo_metrics_buffer", end=" ")
    print(f"{package - bare:.1f} ms: {(package - bare) / (logging - bare):.2f} times")
    print(f"run adds {run - bare:.1f} ms to {bare:.1f} ms")


if __name__ == "__main__":
    main()
