"""C6 and C7 under signals: a handler may call in at any point, and an interrupt loses nothing.

Where KeyboardInterrupt, or any exception that a signal handler or another thread raises, lands in a
call that flushes, this holds:

* The call raises it, also with ``install(on_backend_error="log")``, and also where it lands in the
  logging of another error.
* Each entry has been sent or is pending, in the order of sending. One at most may be both: the one
  that the backend was working on, since nobody but the backend knows whether it had accepted it.
* After the last call of the backend everything is sent. An interrupt there puts nothing back.
* What an ``incr_*`` adds is added, unless the conversion of its argument was interrupted.

This does not: a call that is interrupted after it found the flush due, and before it sent anything,
has used up the interval, so the next flush comes an interval later. And an interrupt that lands in
a ``__del__``, say of a name, is not raised: Python only reports it to ``sys.unraisablehook``.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import io
import itertools
import logging
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import pytest

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer
from arroyo_metrics_buffer._core import DeliveryBuffer
from support.backends import Outage, Recorder
from support.new_interpreter import in_new_interpreter
from support.threads import DEADLINE
from support.times import ManualClock

needs_posix_signals = pytest.mark.skipif(
    sys.platform == "win32", reason="no SIGALRM and no pthread_kill()"
)

ENTRY_VALUES = [1, 2, 4, 8]  # the values a flush sends, in order; no two subsets have the same sum


class Backend:
    """Accepts values, and refuses one. Looking its methods up can be interrupted too."""

    def __init__(self, refused: float | None = None) -> None:
        self.accepted: list[float] = []
        self.refused = refused

    def __getattr__(self, _method: str) -> Callable[..., None]:
        def accept(name: str, value: float, tags: object = None) -> None:
            if value == self.refused:
                raise Outage
            self.accepted.append(value)

        return accept


class ByProperty(MetricsBuffer):
    """Looks its backend up in Python."""

    backend: Backend

    @property  # type: ignore[misc]
    def metrics(self) -> Backend:
        return self.backend


class Flush(NamedTuple):
    """A buffer that has the entries to send, once it is called."""

    buffer: MetricsBuffer | DeliveryBuffer
    backend: Backend
    call: Callable[[], object]
    again: Callable[[], object]

    def pending(self) -> list[float]:
        """The values that the next flush would send, in order."""
        first, second = self.buffer.snapshot()
        return [*first.values(), *(second.values() if isinstance(second, dict) else second)]


def flush_of_metrics_buffer(backend: Backend, missing: str | None = None) -> Flush:
    """By ``flush()``, or by the call that adds the missing entry and finds the flush due."""
    clock = ManualClock()
    buffer = ByProperty(backend, flush_interval=0.5, clock=clock)
    buffer.backend = backend
    adding = {
        "t1": functools.partial(buffer.incr_timing, "t1", 1),
        "t2": functools.partial(buffer.incr_timing, "t2", 2),
        "c1": functools.partial(buffer.incr_counter, "c1", 4),
        "c2": functools.partial(buffer.incr_counter, "c2", 8),
    }
    call = adding.pop(missing) if missing else buffer.flush
    for add in adding.values():
        add()
    clock.now = 1.0
    return Flush(buffer, backend, call, buffer.flush)


def flush_of_delivery_buffer(backend: Backend) -> Flush:
    buffer = DeliveryBuffer(flush_interval=0.5, clock=ManualClock())
    buffer.add({"success": 1, "error": 2}, [4, 8])
    flush = functools.partial(buffer.flush, backend, "a producer")
    return Flush(buffer, backend, flush, flush)


WAYS_TO_FLUSH: dict[str, Callable[[Backend], Flush]] = {
    "flush()": flush_of_metrics_buffer,
    "incr_timing()": functools.partial(flush_of_metrics_buffer, missing="t2"),
    "incr_counter()": functools.partial(flush_of_metrics_buffer, missing="c2"),
    "DeliveryBuffer.flush()": flush_of_delivery_buffer,
}
each_way_to_flush = pytest.mark.parametrize("way", WAYS_TO_FLUSH)


class Step:
    """A step that the interpreter makes in Python code, and what happens at it.

    Steps are instructions, lines, calls and ends of functions: signal handlers run at no other.
    """

    def __init__(self, number: int, act: Callable[[], object]) -> None:
        self.number = number
        self.act = act
        self.place: str | None = None  # the function that it was in, if there were so many steps

    def run(self, call: Callable[[], object]) -> None:
        """Call, and act at the step of that number that is made in what is called."""
        sys.settrace(self._trace)
        try:
            call()
        finally:
            sys.settrace(None)

    def _trace(self, frame: FrameType, _event: str, _argument: object) -> Any:
        frame.f_trace_opcodes = True
        self.number -= 1
        if self.number == 0:
            self.place = frame.f_code.co_name
            self.act()
        return self._trace


def interrupt() -> None:
    raise KeyboardInterrupt


def log(level: int) -> None:
    """Have the package's records logged, by a handler that does nothing."""
    logger = logging.getLogger("arroyo_metrics_buffer")
    logger.propagate = False
    logger.setLevel(level)
    logger.addHandler(logging.NullHandler())


FUNCTIONS_IN_A_FLUSH = {"__call__", "getEffectiveLevel", "__getattr__", "accept"}
FUNCTIONS_IN_LOGGING = {"isEnabledFor", "makeRecord", "handle"}


def free_no_buffer_by_surprise() -> None:
    """Keep the garbage collector from freeing buffers.

    A buffer that is freed has a callback of weakref's called. Python drops an interrupt in there.
    """
    gc.disable()


def interrupt_everywhere(way: str, *, refused: float | None = None) -> set[str]:
    """Interrupt a flush at its first step, another one at its second, and so on to the last.

    Returns where that was.
    """
    free_no_buffer_by_surprise()
    places: set[str] = set()
    for number in itertools.count(1):
        flush = WAYS_TO_FLUSH[way](backend := Backend(refused))
        step = Step(number, interrupt)
        raised: type[BaseException] | None = None
        try:
            step.run(flush.call)
        except (KeyboardInterrupt, Outage) as error:
            raised = type(error)
        if step.place is None:
            assert raised is not KeyboardInterrupt
            return places
        places.add(step.place)
        assert raised is KeyboardInterrupt, (step.place, number)

        sent, pending = backend.accepted.copy(), flush.pending()
        if step.place == "accept" and sent[-1:] == pending[:1]:
            del sent[-1:]  # accepted, but the backend did not live to return
        assert sent + pending == ENTRY_VALUES, (step.place, number)

        backend.accepted.clear()
        backend.refused = None
        flush.again()
        assert backend.accepted == pending
        assert flush.pending() == []
    raise AssertionError


@each_way_to_flush
@in_new_interpreter
def test_an_interrupt_anywhere_in_a_flush_loses_nothing(way: str) -> None:
    assert interrupt_everywhere(way) >= FUNCTIONS_IN_A_FLUSH


@each_way_to_flush
@in_new_interpreter
def test_an_interrupt_anywhere_in_a_flush_that_is_logged_loses_nothing(way: str) -> None:
    log(logging.DEBUG)
    assert interrupt_everywhere(way) >= FUNCTIONS_IN_A_FLUSH | FUNCTIONS_IN_LOGGING


@each_way_to_flush
@pytest.mark.parametrize("on_backend_error", ["raise", "log"])
@in_new_interpreter
def test_an_interrupt_anywhere_in_a_flush_that_fails_is_raised_and_loses_nothing(
    way: str, on_backend_error: Any
) -> None:
    log(logging.WARNING)
    arroyo_metrics_buffer.install(on_backend_error=on_backend_error)
    assert interrupt_everywhere(way, refused=4) >= FUNCTIONS_IN_A_FLUSH | FUNCTIONS_IN_LOGGING


@each_way_to_flush
@in_new_interpreter
def test_a_handler_may_call_in_at_every_step_of_a_flush(way: str) -> None:
    log(logging.DEBUG)
    for number in itertools.count(1):
        backend = Backend()
        flush = WAYS_TO_FLUSH[way](backend)

        def call_in(flush: Flush = flush) -> None:
            if isinstance(flush.buffer, DeliveryBuffer):
                flush.buffer.record(None)
                flush.buffer.add({"error": 15}, [])
                flush.again()
                flush.buffer.add({}, [32])
            else:
                flush.buffer.incr_counter("again", 16)
                flush.again()
                flush.buffer.incr_timing("again", 32)
            flush.buffer.snapshot()
            repr(flush.buffer)

        step = Step(number, call_in)
        step.run(flush.call)
        flush.again()
        if step.place is None:
            assert backend.accepted == ENTRY_VALUES
            return
        assert sum(backend.accepted) == sum(ENTRY_VALUES) + 16 + 32, (step.place, number)


SIGINT_SENT_BY: dict[str, Callable[[], None]] = {
    "raise_signal()": lambda: signal.raise_signal(signal.SIGINT),
    "kill()": lambda: os.kill(os.getpid(), signal.SIGINT),
}


@needs_posix_signals
@pytest.mark.parametrize("sent_by", SIGINT_SENT_BY)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("on_backend_error", ["raise", "log"])
def test_an_interrupt_of_the_backend_puts_back_what_it_was_called_with(
    sent_by: str, when: str, on_backend_error: Any
) -> None:
    class Interrupted(Recorder):
        def increment(self, name: str, value: int) -> None:
            if name == "b" and when == "before":
                self.interrupt()
            super().increment(name, value)
            if name == "b" and when == "after":
                self.interrupt()

        def interrupt(self) -> None:
            SIGINT_SENT_BY[sent_by]()
            deadline = time.monotonic() + DEADLINE
            while time.monotonic() < deadline:
                pass  # the system may have given the signal to another thread

    arroyo_metrics_buffer.install(on_backend_error=on_backend_error)
    buffer = MetricsBuffer(Interrupted(), flush_interval=math.inf)
    for name in "abc":
        buffer.incr_counter(name, 1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            buffer.flush()
    finally:
        signal.signal(signal.SIGINT, before)
    assert buffer.snapshot() == ({}, {"b": 1, "c": 1})
    assert buffer.metrics.sums() == ({"a": 1} if when == "before" else {"a": 1, "b": 1})


def by_timer(handle: Callable[[], None], done: threading.Event) -> None:
    """Have signals handled at the pace of the handler: one that is late would interrupt itself."""

    def handler(_signal: int, _frame: object) -> None:
        handle()
        if not done.is_set():
            signal.setitimer(signal.ITIMER_REAL, 2e-5)

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 2e-5)


def by_thread(handle: Callable[[], None], done: threading.Event) -> None:
    handled = queue.SimpleQueue[None]()
    main = threading.get_ident()

    def handler(_signal: int, _frame: object) -> None:
        handle()
        handled.put(None)

    def send() -> None:
        while not done.is_set():
            signal.pthread_kill(main, signal.SIGUSR1)
            handled.get(timeout=DEADLINE)

    signal.signal(signal.SIGUSR1, handler)
    threading.Thread(target=send, daemon=True).start()


SIGNALS_SENT_BY = {"a timer": by_timer, "a thread": by_thread}


@needs_posix_signals
@pytest.mark.parametrize("sender", SIGNALS_SENT_BY)
@in_new_interpreter
def test_a_signal_handler_may_call_in_at_any_point(sender: str) -> None:
    handled = 0
    done = threading.Event()

    def handle() -> None:
        nonlocal handled
        handled += 1
        buffer.incr_counter("handled", 1)
        buffer.incr_timing("handled", 1)
        if handled % 2:
            buffer.flush()
        if handled % 10 == 0:
            buffer.snapshot()
            repr(buffer)
        if handled == 5_000:
            done.set()

    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=0.001)
    sys.setswitchinterval(1e-6)
    SIGNALS_SENT_BY[sender](handle, done)
    calls = 0
    while not done.is_set():
        buffer.incr_counter("x", 1)
        calls += 1
        if calls % 7 == 0:
            buffer.flush()
    buffer.flush()
    assert backend.sum_of("x") == calls
    assert backend.sum_of("handled") == 2 * handled


class LetsOthersRun(Backend):
    """Lets other threads run before and after it accepts, as one that sends does."""

    def __getattr__(self, method: str) -> Callable[..., None]:
        accept = super().__getattr__(method)

        def accept_slowly(name: str, value: float) -> None:
            time.sleep(0)
            accept(name, value)
            time.sleep(0)

        return accept_slowly


class AcceptsInOneStep(Backend):
    """Accepts an entry and returns in one step of the interpreter, so nothing can come between."""

    def __init__(self) -> None:
        super().__init__()
        self.log = io.StringIO()

    def __getattr__(self, _method: str) -> Callable[..., None]:
        return functools.partial(print, file=self.log)

    def total(self) -> float:
        return sum(float(line.split()[-1]) for line in self.log.getvalue().splitlines())


def interrupt_with_signal(thread: int) -> None:
    signal.pthread_kill(thread, signal.SIGINT)


def interrupt_with_exception(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt)
    )


def interrupt_at_any_time(
    call: Callable[[], object], interrupt: Callable[[int], None], check: Callable[[], None]
) -> Counter[str]:
    """Call again and again, with 1,000 interrupts from another thread and a check after each.

    Returns in which functions they were, and how often in each.
    """
    ready = queue.SimpleQueue[int]()
    done = 0
    places = Counter[str]()

    def send() -> None:
        for i in itertools.count():
            if (thread := ready.get(timeout=DEADLINE)) == done:
                return
            time.sleep(i % 50 * 1e-6)  # so that they don't all land in the same place
            interrupt(thread)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    for _ in range(1_000):
        try:
            ready.put(threading.get_ident())
            while True:
                call()
        except KeyboardInterrupt as error:
            places.update({frame.name for frame in traceback.extract_tb(error.__traceback__)})
        check()
    ready.put(done)
    sender.join(DEADLINE)
    return places


INTERRUPTED_BY = {"a signal": interrupt_with_signal, "another thread": interrupt_with_exception}


@needs_posix_signals
@pytest.mark.parametrize("by", INTERRUPTED_BY)
@in_new_interpreter
def test_an_interrupt_at_any_time_loses_nothing(by: str) -> None:
    flush = flush_of_metrics_buffer(LetsOthersRun())
    kept = [flush]  # none may be freed while an interrupt may come

    def call() -> None:
        nonlocal flush
        flush = flush_of_metrics_buffer(LetsOthersRun())
        kept.append(flush)
        flush.call()

    def check() -> None:
        sent, pending = flush.backend.accepted, flush.pending()
        assert ENTRY_VALUES in (sent + pending, sent[:-1] + pending)
        kept[:] = [flush]

    log(logging.CRITICAL)
    free_no_buffer_by_surprise()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.setswitchinterval(1e-6)
    places = interrupt_at_any_time(call, INTERRUPTED_BY[by], check)
    assert places["accept_slowly"] > 10


@needs_posix_signals
@pytest.mark.parametrize("by", INTERRUPTED_BY)
@in_new_interpreter
def test_interrupts_while_other_threads_add_lose_nothing(by: str) -> None:
    backend = AcceptsInOneStep()
    buffer = ByProperty(backend, flush_interval=math.inf)
    buffer.backend = backend
    adding = threading.Event()
    adding.set()
    added = Counter[int]()

    def add(thread: int) -> None:
        while adding.is_set():
            buffer.incr_counter(f"name {added[thread] % 10}", 1)
            buffer.incr_timing(f"name {added[thread] % 10}", 1)
            added[thread] += 1

    def flush() -> Counter[str]:
        try:
            return interrupt_at_any_time(buffer.flush, INTERRUPTED_BY[by], check=lambda: None)
        finally:
            adding.clear()

    log(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.setswitchinterval(1e-6)
    adders = [threading.Thread(target=add, args=(i,), daemon=True) for i in range(2)]
    for adder in adders:
        adder.start()
    places = flush()
    for adder in adders:
        adder.join(DEADLINE)
    buffer.flush()
    assert backend.total() == 2 * added.total()
    # In the middle of flushes; before the lookup or in it is up to the scheduler.
    assert places["metrics"] + places["__getattr__"] > 0
