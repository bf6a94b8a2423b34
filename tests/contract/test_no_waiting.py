"""C5: nobody waits for a backend that another thread is in."""

from __future__ import annotations

import math
import threading

import pytest

from arroyo_metrics_buffer import MetricsBuffer
from support.backends import Blocking, Recorder
from support.threads import run_together


def test_calls_return_while_another_thread_is_inside_the_backend() -> None:
    backend = Blocking()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    buffer.incr_counter("before", 1)
    flusher = threading.Thread(target=buffer.flush, daemon=True)
    flusher.start()
    assert backend.entered.wait(30)

    # The backend is let go only after all of these have returned.
    buffer.incr_counter("meanwhile", 1)
    buffer.incr_timing("meanwhile", 1)
    assert buffer.snapshot() == ({"meanwhile": 1.0}, {"meanwhile": 1})
    assert buffer.metrics is backend
    backend.released.set()

    flusher.join(30)
    buffer.flush()
    assert backend.calls == [
        ("increment", "before", 1),
        ("timing", "meanwhile", 1.0),
        ("increment", "meanwhile", 1),
    ]


def test_a_flush_does_not_wait_for_another_flush() -> None:
    slow, backend = Blocking(), Recorder()
    buffer = MetricsBuffer(slow, flush_interval=math.inf)
    buffer.incr_counter("first", 1)
    flusher = threading.Thread(target=buffer.flush, daemon=True)
    flusher.start()
    assert slow.entered.wait(30)

    buffer.metrics = backend
    buffer.incr_counter("second", 1)
    buffer.flush()
    assert backend.calls == [("increment", "second", 1)]
    slow.released.set()
    flusher.join(30)
    assert slow.calls == [("increment", "first", 1)]


@pytest.mark.usefixtures("tiny_switch_interval")
def test_threads_that_hold_the_interpreter_and_threads_that_let_it_go_never_deadlock() -> None:
    # A lock held while waiting for the interpreter would hang this within a few rounds.
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)

    def write_and_flush() -> None:
        for i in range(3_000):
            buffer.incr_counter(f"name {i % 50}", 1)
            buffer.flush()
            buffer.snapshot()

    run_together(*[write_and_flush] * 6)
    assert sum(call.value for call in backend.calls) == 6 * 3_000
