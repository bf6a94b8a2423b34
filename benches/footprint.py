"""What the package weighs: its import, a buffer, the wheel."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from contenders import BUFFERS, Contender, Nothing
from measuring import OURS, Case

BUFFERS_MADE = 5_000
NAMES = [f"metric {i}" for i in range(13)]  # 7 timers and 6 counters


def cases() -> Iterator[Case]:
    importing = {
        "python alone": interpreter("pass"),
        "arroyo's processor": interpreter("import arroyo.processing.processor"),
        OURS: interpreter("import arroyo_metrics_buffer"),
    }
    yield Case("weight", "a process that imports it", "ms", 15, importing)
    buffers = {name: memory(name) for name in ("arroyo", OURS)}
    yield Case("weight", "a buffer with 13 names", "bytes", 5, buffers)


def interpreter(code: str) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603
        return (time.perf_counter() - start) * 1e3

    return run


def memory(contender: str) -> Callable[[], float]:
    # In a process of its own, whose heap has no room left by others.
    command = [sys.executable, __file__, contender]
    return lambda: float(subprocess.check_output(command))  # noqa: S603


def per_buffer(contender: Contender) -> float:
    """Bytes, with as many names as arroyo has."""
    before, buffers = resident(), []
    for _ in range(BUFFERS_MADE):
        buffers.append(buffer := contender.make(Nothing()))
        for name in NAMES[:7]:
            buffer.incr_timing(name, 1.0)
        for name in NAMES[7:]:
            buffer.incr_counter(name, 1)
    return (resident() - before) / len(buffers)


def resident() -> int:
    """Bytes of memory that the process has now. Linux only."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def wheel() -> int | None:
    """Bytes of the newest wheel in dist/, if there is one."""
    wheels = sorted(Path("dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    return wheels[-1].stat().st_size if wheels else None


if __name__ == "__main__":
    print(per_buffer(BUFFERS[sys.argv[1]]))
