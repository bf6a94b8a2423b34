"""Without the GIL: it stays off, and threads that add at the same time have shards of their own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig

import pytest

from arroyo_metrics_buffer import MetricsBuffer
from support.backends import Recorder
from support.threads import run_together

pytestmark = pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL"
)


def is_gil_enabled_after(code: str) -> bool:
    # An extension module that needs the GIL turns it on, with a warning.
    program = f"import sys; {code}; print(sys._is_gil_enabled())"
    command = [sys.executable, "-W", "error", "-c", program]
    output = subprocess.check_output(command, text=True, timeout=60)
    return {"True\n": True, "False\n": False}[output]


def test_the_package_leaves_the_gil_off() -> None:
    assert not is_gil_enabled_after("import arroyo_metrics_buffer")


def test_the_order_of_names_is_that_of_each_thread() -> None:
    buffer = MetricsBuffer(backend := Recorder(), flush_interval=1e9)
    names = [[f"{thread} {i}" for i in range(100)] for thread in range(8)]

    def add(names: list[str]) -> None:
        for name in names:
            buffer.incr_counter(name, 1)
            buffer.incr_counter("shared", 1)

    run_together(*[lambda names=each: add(names) for each in names])
    assert buffer.snapshot()[1]["shared"] == 800
    buffer.flush()
    sent = [call.name for call in backend.calls]
    assert backend.sum_of("shared") == 800
    assert sent.count("shared") == 1
    for each in names:
        places = [sent.index(name) for name in each]
        assert places == sorted(places)
