"""Everything at once, for minutes: is an increment lost, or counted twice, or a thread stuck?

Threads write, flush, look, replace backends, fork, make and drop buffers and keep the garbage
collector busy. A timer's signal handler calls in, and so do objects that die and the backends,
which also refuse, sleep and fork. Each increment is entered in a ledger when it is made, and taken
off when a backend accepts it, so that every account is at zero in the end. Children check that they
start empty and work. Whatever hangs is ended, with the tracebacks of all threads.

    python scripts/soak.py --seconds 600

Linux only, for what it says about memory. The exit status is 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import math
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from arroyo_metrics_buffer import MetricsBuffer, stats

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.backends import Outage
from support.buffers import DeliveryAdapter
from support.children import assert_empty_and_working, exit_after, fork_child, wait_for_child
from support.memory import resident_bytes
from support.times import UNIT

HANG_SECONDS = 120  # seconds in which even a busy machine gets somewhere
PROGRESS_SECONDS = 10.0  # seconds between lines about the progress
LEDGER_BACKLOG = 10_000  # entries that may wait for the ledger; what waits is memory
MEMORY_GROWTH = 32_000_000  # bytes that fragmentation may take, however long the run is
CALLS_PER_ENTRY = 20  # calls for one entry, so that the ledger is not what is tested

# More than a buffer looks for by identity.
INTERNED_NAMES = [sys.intern(f"metric{i}") for i in range(12)]


class Ledger:
    """Sums by key that threads, signal handlers and finalisers add to at any point.

    Adding to a sum can be interrupted half way by a handler that adds as well; an append can't. So
    entries are appended, and one thread alone sums them up.
    """

    def __init__(self) -> None:
        self._entries: deque[tuple[str, int]] = deque()
        self.sums: Counter[str] = Counter()

    def enter(self, key: str, amount: int) -> None:
        self._entries.append((key, amount))

    def wait(self) -> None:
        """Let the thread that settles catch up."""
        while len(self._entries) > LEDGER_BACKLOG:
            time.sleep(0.001)

    def settle(self) -> None:
        for _ in range(len(self._entries)):  # not what comes meanwhile: that might never end
            key, amount = self._entries.popleft()
            self.sums[key] += amount


ledger = Ledger()  # of the process, since what dies calls in from anywhere


def start_a_ledger() -> None:
    global ledger
    ledger = Ledger()


# Without the GIL, a child may find its parent's deque locked by a thread that it lacks.
os.register_at_fork(after_in_child=start_a_ledger)


class ThreadState(threading.local):
    """What a thread has for itself."""

    def __init__(self) -> None:
        self.random = random.Random()
        self.may_fork = False  # in the backend that it is about to call
        self.is_called_back = False
        self.children: list[int] = []


mine = ThreadState()


def one_in(chances: int) -> bool:
    return mine.random.randrange(chances) == 0


class GraveOutage(BaseException):
    """An error of a backend that is no ``Exception``."""


ERRORS_OF_A_BACKEND = (Outage, GraveOutage)


def counter(name: str) -> str:
    """The account of a counter. Names that come only once share the first word, and the account."""
    return f"counter {str(name).partition(' ')[0]}"


def timer(name: str) -> str:
    return f"timer {str(name).partition(' ')[0]}"


def add(buffer: Buffer, name: str, amount: int, calls: int = 1) -> None:
    """Add to a counter and a timer, and enter it: errors are those of the flushes that were due."""
    is_timed = not isinstance(buffer, DeliveryAdapter)
    for _ in range(calls):
        with suppress(*ERRORS_OF_A_BACKEND):
            buffer.incr_counter(name, amount)
        with suppress(*ERRORS_OF_A_BACKEND):
            buffer.incr_timing(name if is_timed else "time", amount * UNIT)
    ledger.enter("operations", 2 * calls)
    ledger.enter(counter(name), amount * calls)
    ledger.enter(timer(name if is_timed else "time"), amount * calls)


class Metrics(MetricsBuffer):
    """Counts its flushes, those that are due in a call included."""

    def flush(self) -> None:
        ledger.enter("flushes", 1)
        super().flush()


class Producer(DeliveryAdapter):
    """The same for a producer's."""

    def flush(self) -> None:
        ledger.enter("flushes", 1)
        super().flush()


Buffer = Metrics | Producer


class Backend:
    """Accepts what it is sent, unless ``trouble`` raises."""

    def __init__(self, trouble: Callable[[], object] = lambda: None) -> None:
        self._trouble = trouble

    def timing(self, name: str, value: float) -> None:
        self._trouble()
        units = value / UNIT
        assert units.is_integer()
        ledger.enter(timer(name), -int(units))

    def increment(self, name: str, value: int) -> None:
        self._trouble()
        ledger.enter(counter(name), -value)


class CallsInWhenItDies:
    """Calls in when it dies. In a child it belongs to the parent."""

    def __init__(self, buffer: Metrics) -> None:
        self._buffer, self._pid = buffer, os.getpid()

    def __del__(self) -> None:  # noqa: D105 - the class says it
        if os.getpid() == self._pid:
            ledger.enter(counter("deaths"), 1)
            with suppress(*ERRORS_OF_A_BACKEND):
                self._buffer.incr_counter("deaths", 1)


class Name(str):
    """A metric name that calls in when it dies."""

    __slots__ = ("dies_with_it",)
    dies_with_it: CallsInWhenItDies


class Soak:
    """The buffers, and the jobs that run on them."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.over = threading.Event()
        self.errors: list[str] = []
        self.reliable = Backend()
        troubles = (self.refuse, self.sleep, self.call_in, self.fork_inside)
        self.backends = [self.reliable, *(Backend(trouble) for trouble in troubles)]
        self.metrics = [Metrics(self.reliable, flush_interval=i) for i in (0, 0.01, math.inf)]
        self.producers = [Producer(self.reliable, flush_interval=i) for i in (0.01, math.inf)]
        self.buffers: list[Buffer] = [*self.metrics, *self.producers]

    # What backends do beside accepting.

    def refuse(self) -> None:
        if one_in(10):
            ledger.enter("faults injected", 1)
            raise mine.random.choice(ERRORS_OF_A_BACKEND)

    def sleep(self) -> None:
        if one_in(10):
            ledger.enter("faults injected", 1)
            time.sleep(mine.random.random() / 1000)

    def call_in(self) -> None:
        if mine.is_called_back or not one_in(10):
            return
        mine.is_called_back = True  # else a flush in a flush might never come to an end
        try:
            ledger.enter("faults injected", 1)
            add(mine.random.choice(self.metrics), "callback", 1)
            mine.random.choice(self.buffers).flush()
        finally:
            mine.is_called_back = False

    def fork_inside(self) -> None:
        # Not where a caller of the flush has more to add: the child would have it pending.
        if mine.may_fork and not mine.is_called_back and one_in(3):
            mine.may_fork = False
            ledger.enter("faults injected", 1)
            mine.children.append(os.fork())

    # Jobs, which threads repeat.

    def write(self) -> None:
        amount = mine.random.randrange(1, 10)
        if one_in(3):
            add(mine.random.choice(self.producers), mine.random.choice(("count", "errors")), amount)
            return
        buffer, number = mine.random.choice(self.metrics), mine.random.randrange(1_000_000)
        match number % 8:
            case 0:  # a new object of an old name
                add(buffer, f"again{number % 50}", amount, CALLS_PER_ENTRY)
            case 1:
                for i in range(CALLS_PER_ENTRY):
                    add(buffer, f"once {number + i}", amount)
            case 2:
                name = Name("mortal")
                name.dies_with_it = CallsInWhenItDies(buffer)
                add(buffer, name, amount)
            case 3:
                self.err(buffer)
            case _:
                add(buffer, INTERNED_NAMES[number % len(INTERNED_NAMES)], amount, CALLS_PER_ENTRY)

    def err(self, buffer: Any) -> None:
        """Call with what is refused and changes nothing."""
        method, arguments, error = mine.random.choice(
            (
                ("incr_counter", (None, 1), TypeError),
                ("incr_counter", ("bad", "1"), TypeError),
                ("incr_counter", ("bad", 2**63), OverflowError),
                ("incr_timing", ("bad", object()), TypeError),
            )
        )
        try:
            getattr(buffer, method)(*arguments)
        except error:
            ledger.enter("operations", 1)
        else:
            raise AssertionError(f"{method}{arguments} was accepted")

    def flush(self) -> None:
        with suppress(*ERRORS_OF_A_BACKEND):
            mine.random.choice(self.buffers).flush()

    def look(self) -> None:
        buffer = mine.random.choice(self.buffers)
        for totals in buffer.snapshot():
            assert all(total >= 0 for total in totals.values()), totals
        repr(buffer)
        ledger.enter("operations", 2)

    def replace_backend(self) -> None:
        mine.random.choice(self.buffers).metrics = mine.random.choice(self.backends)
        ledger.enter("operations", 1)
        time.sleep(0.001)  # longer than a flush, so that each backend gets some

    def make_and_drop(self) -> None:
        make: type[Buffer] = mine.random.choice((Metrics, Producer))
        interval = mine.random.choice((0, math.inf))
        buffer = make(mine.random.choice(self.backends), flush_interval=interval)
        if one_in(2):
            buffer.itself = buffer  # type: ignore[union-attr]
        add(buffer, "count", 1, CALLS_PER_ENTRY)
        buffer.metrics = self.reliable
        buffer.flush()
        ledger.enter("buffers made", 1)

    def make_garbage(self) -> None:
        for _ in range(10):
            mortal: Any = CallsInWhenItDies(mine.random.choice(self.metrics))
            mortal.itself = mortal
        if one_in(10):
            gc.collect()

    def fork(self) -> None:
        if one_in(2):
            mine.children.append(fork_child(self.child))
        else:
            buffer = mine.random.choice(self.buffers)
            buffer.metrics = self.backends[-1]
            add(buffer, "count", 1)
            mine.may_fork = True
            with suppress(*ERRORS_OF_A_BACKEND):
                buffer.flush()
            mine.may_fork = False
            if os.getpid() != self.pid:  # the backend has forked, and the flush come to its end
                exit_after(self.child)
        while mine.children:
            wait_for_child(mine.children.pop(), kill=show_and_kill)
            ledger.enter("forks survived", 1)

    def child(self) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # whose alarm is now to end the process
        assert_empty_and_working(*self.buffers)
        if one_in(4):
            wait_for_child(fork_child(partial(assert_empty_and_working, *self.buffers)))

    # Signals, which the main thread handles wherever it is.

    def handle(self, *_: object) -> None:
        ledger.enter("signals handled", 1)
        add(mine.random.choice(self.metrics), "handled", 1)
        self.flush()
        if not self.over.is_set():
            self.set_timer()

    def set_timer(self) -> None:
        # Anew each time, so that handlers that take long are not interrupted by themselves.
        signal.setitimer(signal.ITIMER_REAL, 0.002)

    # The run.

    def repeat(self, job: Callable[[], None], seed: str) -> None:
        mine.random.seed(seed)
        try:
            while not self.over.is_set():
                job()
                ledger.wait()
        except BaseException:  # noqa: BLE001 - shown at the end, or in the child that it is
            if os.getpid() != self.pid:
                os.write(2, traceback.format_exc().encode())
                os._exit(1)
            self.errors.append(traceback.format_exc())
            self.over.set()

    def run(self, seconds: float, threads: int, seed: int) -> tuple[int, int]:
        """Soak, and return how much memory was resident when all was warm, and at the end."""
        mine.random.seed(seed)
        jobs = [self.write] * threads + [self.flush] * 2 + [self.fork] * 2
        jobs += [self.look, self.replace_backend, self.make_and_drop, self.make_garbage]
        workers = [
            threading.Thread(target=self.repeat, args=(job, f"{seed} {number}"), daemon=True)
            for number, job in enumerate(jobs)
        ]
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        signal.signal(signal.SIGALRM, self.handle)
        self.set_timer()
        for worker in workers:
            worker.start()
        warm, start, tick = 0, time.monotonic(), PROGRESS_SECONDS
        while (elapsed := time.monotonic() - start) < seconds and not self.over.is_set():
            self.write()
            ledger.settle()
            if not warm and elapsed > min(seconds / 4, 3 * PROGRESS_SECONDS):
                warm = resident_bytes()
            if elapsed > tick:
                tick = elapsed + PROGRESS_SECONDS
                faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
                show_progress(elapsed)
        self.over.set()
        for worker in workers:
            while worker.is_alive():
                ledger.settle()  # it may be waiting for this
                worker.join(0.01)
        self.drain()
        faulthandler.cancel_dump_traceback_later()
        return warm, resident_bytes()

    def drain(self) -> None:
        """Deliver what is pending, and what comes of that."""
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        gc.collect()
        for buffer in self.buffers:
            buffer.metrics = self.reliable
        while any(any(buffer.snapshot()) for buffer in self.buffers):
            for buffer in self.buffers:
                buffer.flush()
        ledger.settle()


def show_and_kill(pid: int, _signal: int) -> None:
    """End a child that hangs, so that it shows where."""
    os.kill(pid, signal.SIGABRT)


TALLIES = (
    "operations",
    "flushes",
    "faults injected",
    "entries put back",
    "forks survived",
    "signals handled",
    "buffers made",
)
"""What the ledger has beside accounts. Where one is 0, the run has not shown what it is to show."""


def show_progress(elapsed: float) -> None:
    sums = ledger.sums
    print(
        f"{elapsed:6.0f} s {sums['operations']:14,} operations {sums['flushes']:11,} flushes"
        f" {sums['forks survived']:8,} forks {resident_bytes() / 1e6:6.0f} MB",
        flush=True,
    )


def show_result(seconds: float, accounts: dict[str, int], warm: int, end: int) -> None:
    rows = {
        "seconds": round(seconds),
        **{name: ledger.sums[name] for name in TALLIES},
        "lost": sum(amount for amount in accounts.values() if amount > 0),
        "counted twice": -sum(amount for amount in accounts.values() if amount < 0),
        "MB resident when warm": round(warm / 1e6),
        "MB resident at the end": round(end / 1e6),
    }
    for label, number in rows.items():
        print(f"{label:24}{number:14,}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (%(default)s)")
    parser.add_argument("--threads", type=int, default=4, help="how many write (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of random choices (%(default)s)")
    arguments = parser.parse_args()

    faulthandler.enable()  # what a child that hangs shows, when it is ended
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    logging.getLogger("arroyo_metrics_buffer").addFilter(lambda _: False)  # of every fault
    sys.setswitchinterval(1e-6)
    gc.set_threshold(100)

    soak, start = Soak(), time.monotonic()
    warm, end = soak.run(arguments.seconds, arguments.threads, arguments.seed)
    done = stats()
    ledger.sums["entries put back"] = (
        done.consumer.entries_put_back + done.producer.entries_put_back
    )
    accounts = {key: amount for key, amount in ledger.sums.items() if key not in TALLIES}
    show_result(time.monotonic() - start, accounts, warm, end)

    wrong = [f"{key} is off by {amount}" for key, amount in accounts.items() if amount]
    wrong += [f"no {key}" for key in TALLIES if not ledger.sums[key]]
    wrong += ["memory grows"] if end - warm > MEMORY_GROWTH else []
    wrong += soak.errors
    sys.stderr.writelines(f"{each}\n" for each in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
