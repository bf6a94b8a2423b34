"""C8: a fork at any moment leaves a child that starts empty and a parent that lost nothing."""

from __future__ import annotations

import ctypes
import functools
import gc
import itertools
import math
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from unittest import mock

import pytest

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer
from support.backends import Blocking, Call, Outage, Recorder
from support.buffers import AnyBuffer, BackendAdapter, DeliveryAdapter
from support.children import DEADLINE, assert_empty_and_working, fork_child, wait_for_child
from support.new_interpreter import in_new_interpreter
from support.threads import run_together
from support.times import UNIT

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork()"),
    pytest.mark.usefixtures("tiny_switch_interval"),
]

# By each of the twelve tests that fork again and again.
FORKS_PER_TEST = int(os.environ.get("FORKS", "0")) // 12
FORKING_TEST_DEADLINE = 2 * DEADLINE + FORKS_PER_TEST / 4  # seconds for such a test


KINDS: dict[str, type[AnyBuffer]] = {
    "MetricsBuffer": MetricsBuffer,
    "DeliveryBuffer": DeliveryAdapter,
    "BufferedMetricsBackend": BackendAdapter,
}


@pytest.mark.parametrize("attempt", range(8))
@pytest.mark.parametrize("kind", KINDS)
@in_new_interpreter
def test_a_child_forked_in_the_midst_of_a_first_flush_can_flush(kind: str, attempt: int) -> None:
    # What is made at the first use of something, and guarded meanwhile, the child finds half made.
    # By chance, and once in the life of an interpreter: so in several.
    flush_and_fork(KINDS[kind])


def flush_and_fork(kind: type[AnyBuffer]) -> None:
    """Fork in several threads while another makes the first flush of this process."""

    def filled() -> AnyBuffer:
        buffer = kind(Recorder(), flush_interval=math.inf)
        buffer.incr_counter("count", 1)
        buffer.incr_timing("time", UNIT)
        return buffer

    def fork_and_flush() -> None:
        start.wait()
        wait_for_child(fork_child(lambda: filled().flush()))

    sys.setswitchinterval(1e-4)
    flush, start = filled().flush, threading.Barrier(7)
    with ThreadPoolExecutor(start.parties) as threads:
        forks = [threads.submit(fork_and_flush) for _ in range(start.parties - 1)]
        start.wait()
        flush()
    for each in forks:
        each.result()


def in_own_process_group(test: Callable[[], None]) -> Callable[[], None]:
    """Run a test in a process of its own, killed with all its children should it hang.

    A fork that hangs stops every thread of Python, a watchdog's as well.
    """

    def job() -> None:
        signal.alarm(math.ceil(FORKING_TEST_DEADLINE))
        os.setpgid(0, 0)
        test()

    @functools.wraps(test)
    def run() -> None:
        wait_for_child(fork_child(job), FORKING_TEST_DEADLINE, os.killpg)

    return run


class Sums:
    """Sums what it is sent: a record of each call would soon make a heap that is slow to fork."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str], float] = {}

    def timing(self, name: str, value: float) -> None:
        key = threading.get_ident(), name  # so that two threads never add to one sum
        self._sums[key] = self._sums.get(key, 0) + value

    increment = timing

    def sums(self) -> Counter[str]:
        sums: Counter[str] = Counter()
        for (_, name), value in self._sums.items():
            sums[name] += value  # type: ignore[assignment]
        return sums


def forks_to_make(count: int = 150, seconds: float = 2.5) -> Iterator[int]:
    """So many, or as many as there is time for where forks are slow; or what FORKS says."""
    if FORKS_PER_TEST:
        return iter(range(FORKS_PER_TEST))
    end = time.monotonic() + seconds
    return itertools.takewhile(lambda i: i < 10 or time.monotonic() < end, range(count))


Buffers = Sequence[AnyBuffer]


def of_all_classes(flush_interval: float = math.inf) -> Buffers:
    classes = (MetricsBuffer, MetricsBuffer, DeliveryAdapter, BackendAdapter)
    return [each(Sums(), flush_interval=flush_interval) for each in classes]


def write(buffers: Buffers, calls: int) -> None:
    for _ in range(calls):
        for buffer in buffers:
            buffer.incr_counter("count", 1)
            buffer.incr_timing("time", UNIT)


def flush(buffers: Buffers) -> None:
    for buffer in buffers:
        buffer.flush()


@contextmanager
def written_and_flushed_meanwhile(*buffers: AnyBuffer) -> Iterator[None]:
    """Write to the buffers and flush them meanwhile, from several threads; then check accounts."""
    stop = threading.Event()
    made: list[int] = []

    def write_often() -> None:
        calls = 0
        while not stop.is_set():
            write(buffers, 100)
            calls += 100
            flush(buffers)  # else more latencies might come in than are sent, and than are kept
        made.append(calls)

    def flush_often() -> None:
        while not stop.is_set():
            flush(buffers)

    jobs = [write_often, write_often, write_often, flush_often, flush_often]
    threads = [threading.Thread(target=job, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(made) == jobs.count(write_often)
    flush(buffers)
    for buffer in buffers:
        assert buffer.metrics.sums() == {"count": sum(made), "time": UNIT * sum(made)}


def made_with_pending(backend: Recorder) -> MetricsBuffer:
    buffer = MetricsBuffer(backend, flush_interval=math.inf)
    buffer.incr_timing("s", 0.5)
    buffer.incr_timing("t", 1.5)
    buffer.incr_counter("a", 1)
    buffer.incr_counter("b", 2)
    return buffer


PENDING = [
    ("timing", "s", 0.5),
    ("timing", "t", 1.5),
    ("increment", "a", 1),
    ("increment", "b", 2),
]


def test_the_child_starts_empty_and_the_parent_reports_what_was_pending_once() -> None:
    buffer = made_with_pending(Recorder())
    wait_for_child(fork_child(lambda: assert_empty_and_working(buffer)))
    buffer.flush()
    buffer.flush()
    assert buffer.metrics.calls == PENDING


def test_every_buffer_of_the_process_is_empty_in_the_child() -> None:
    class Subclass(MetricsBuffer):
        pass

    buffers = [made_with_pending(Recorder()) for _ in range(100)]
    del buffers[::3]
    buffers.append(Subclass(Recorder(), flush_interval=math.inf))
    buffers[-1].incr_counter("a", 1)
    wait_for_child(fork_child(lambda: assert_empty_and_working(*buffers)))
    for buffer in buffers[:-1]:
        buffer.flush()
        assert buffer.metrics.calls == PENDING
    assert buffers[-1].snapshot() == ({}, {"a": 1})


def test_what_a_child_leaves_pending_is_not_the_business_of_its_own_child() -> None:
    buffer = made_with_pending(Recorder())

    def child() -> None:
        buffer.incr_counter("child's", 1)
        wait_for_child(fork_child(lambda: assert_empty_and_working(buffer)))
        buffer.flush()
        assert buffer.metrics.calls == [("increment", "child's", 1)]

    wait_for_child(fork_child(child))
    buffer.flush()
    assert buffer.metrics.calls == PENDING


def test_a_thread_may_fork() -> None:
    buffer = made_with_pending(Recorder())
    run_together(lambda: wait_for_child(fork_child(lambda: assert_empty_and_working(buffer))))
    buffer.flush()
    assert buffer.metrics.calls == PENDING


def test_pending_names_of_a_subclass_of_str_stay_good_in_both() -> None:
    class Name(str):
        __slots__ = ()

    names = [Name(f"name {i}") for i in range(20)]
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=math.inf)

    def add_and_flush() -> None:
        for name in names:
            buffer.incr_counter(name, 1)
        buffer.flush()
        assert all(call.name is name for call, name in zip(backend.calls, names, strict=True))

    def child() -> None:
        add_and_flush()
        backend.calls.clear()
        names.clear()
        gc.collect()
        assert_empty_and_working(buffer)

    for name in names:
        buffer.incr_counter(name, 1)
    wait_for_child(fork_child(child))
    add_and_flush()
    assert {call.value for call in backend.calls} == {2}


def test_pending_names_do_not_die_in_the_middle_of_a_fork() -> None:
    deaths = []

    class Name(str):
        __slots__ = ()

        def __del__(self) -> None:
            deaths.append(os.getpid())

    def child() -> None:
        assert deaths == []
        assert_empty_and_working(buffer)

    buffer = MetricsBuffer(mock.Mock(), flush_interval=math.inf)
    buffer.incr_counter(Name("count"), 1)
    wait_for_child(fork_child(child))
    assert deaths == []
    buffer.flush()
    buffer.metrics.reset_mock()
    assert deaths == [os.getpid()]


def test_a_child_flushes_when_it_is_due() -> None:
    now = 0.0
    backend = Recorder()
    buffer = MetricsBuffer(backend, flush_interval=1, clock=lambda: now)
    buffer.incr_counter("parent's", 1)

    def child() -> None:
        nonlocal now
        buffer.incr_counter("child's", 1)
        assert backend.calls == []
        now = 2.0
        buffer.incr_counter("child's", 1)
        assert backend.calls == [("increment", "child's", 2)]

    wait_for_child(fork_child(child))
    assert buffer.snapshot() == ({}, {"parent's": 1})


@in_own_process_group
def test_hooks_that_run_at_fork_may_call_in() -> None:
    buffer = made_with_pending(Recorder())

    def report(name: str) -> None:
        buffer.incr_counter(name, 1)
        buffer.flush()

    os.register_at_fork(
        before=lambda: report("before"),
        after_in_parent=lambda: report("parent"),
        after_in_child=lambda: report("child"),
    )

    def child() -> None:
        assert buffer.metrics.calls == [*PENDING, *counters_of_1("before", "child")]

    wait_for_child(fork_child(child))
    assert buffer.metrics.calls == [*PENDING, *counters_of_1("before", "parent")]


def counters_of_1(*names: str) -> list[Call]:
    return [Call("increment", name, 1) for name in names]


@pytest.mark.parametrize("error", [None, Outage("in the child"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("where", ["s", "t", "a", "b"])
def test_a_backend_may_fork_and_the_rest_is_its_parents_to_send(
    where: str, error: BaseException | None
) -> None:
    class Forks(Recorder):
        pid = -1

        def timing(self, name: str, value: float) -> None:
            self.fork_at(name)
            super().timing(name, value)

        def increment(self, name: str, value: int) -> None:
            self.fork_at(name)
            super().increment(name, value)

        def fork_at(self, name: str) -> None:
            if name == where:
                self.pid = os.fork()
                if self.pid == 0 and error:
                    raise error

    @in_own_process_group
    def scenario() -> None:
        backend = Forks()
        buffer = made_with_pending(backend)
        try:
            buffer.flush()
            raised = None
        except (Outage, KeyboardInterrupt) as outcome:
            raised = outcome
        assert raised is (error if backend.pid == 0 else None)
        sent = next(i for i, call in enumerate(PENDING) if call[1] == where)
        if backend.pid == 0:
            # The one entry that the backend was called with, if it went on.
            assert backend.calls == PENDING[: sent if error else sent + 1]
            assert_empty_and_working(buffer)
            return
        wait_for_child(backend.pid)
        buffer.flush()
        assert backend.calls == PENDING

    scenario()


def test_a_name_that_is_freed_after_it_was_accepted_may_fork() -> None:
    class Refuses:
        def increment(self, name: str, value: int) -> None:
            if name == "refused":
                raise Outage

    class Forks(str):
        __slots__ = ()

        def __del__(self) -> None:
            pids.append(os.fork())

    @in_own_process_group
    def scenario() -> None:
        buffer = MetricsBuffer(Refuses(), flush_interval=math.inf)
        buffer.incr_counter(Forks("accepted"), 1)
        buffer.incr_counter("refused", 2)
        with pytest.raises(Outage):
            buffer.flush()
        if pids == [0]:
            os._exit(buffer.snapshot() != ({}, {}))
        wait_for_child(pids[0])
        assert buffer.snapshot() == ({}, {"refused": 2})

    pids: list[int] = []
    scenario()


def test_what_another_thread_is_sending_is_the_parents() -> None:
    backend = Blocking()
    buffer = made_with_pending(backend)
    flusher = threading.Thread(target=buffer.flush, daemon=True)
    flusher.start()
    assert backend.entered.wait(DEADLINE)
    buffer.incr_counter("meanwhile", 1)
    child = fork_child(lambda: assert_empty_and_working(buffer))
    backend.released.set()
    wait_for_child(child)
    flusher.join(DEADLINE)
    buffer.flush()
    assert backend.calls == [*PENDING, *counters_of_1("meanwhile")]


@in_own_process_group
def test_forks_under_load_keep_every_account_exact() -> None:
    buffers = of_all_classes(flush_interval=0.001)

    def child() -> None:
        assert_empty_and_working(*buffers)
        wait_for_child(fork_child(lambda: assert_empty_and_working(*buffers)))

    with written_and_flushed_meanwhile(*buffers):
        for _ in forks_to_make():
            wait_for_child(fork_child(child))


@in_own_process_group
def test_several_threads_may_fork_at_once() -> None:
    buffers = of_all_classes()

    def fork_often() -> None:
        for _ in forks_to_make():
            wait_for_child(fork_child(lambda: assert_empty_and_working(*buffers)))

    with written_and_flushed_meanwhile(*buffers):
        run_together(fork_often, fork_often, fork_often)


@in_own_process_group
def test_buffers_may_be_made_and_dropped_during_forks() -> None:
    stop = threading.Event()

    def make_and_drop() -> None:
        while not stop.is_set():
            made_with_pending(Recorder())

    def fork_often() -> None:
        for _ in forks_to_make():
            wait_for_child(fork_child(lambda: assert_empty_and_working(made(), made())))
        stop.set()

    def made() -> MetricsBuffer:
        return MetricsBuffer(Recorder(), flush_interval=math.inf)

    run_together(fork_often, make_and_drop, make_and_drop)


@in_own_process_group
def test_a_child_may_install_while_its_parent_is_installing() -> None:
    stop = threading.Event()

    def install() -> None:
        while not stop.is_set():
            arroyo_metrics_buffer.install(on_backend_error="log")

    def child() -> None:
        arroyo_metrics_buffer.install()
        assert {target.state for target in arroyo_metrics_buffer.status().targets} == {"patched"}

    def fork_often() -> None:
        for _ in forks_to_make():
            wait_for_child(fork_child(child))
        stop.set()

    run_together(fork_often, install, install)


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="Python aborts if PyOS_BeforeFork() was not called"
)
@in_own_process_group
def test_a_server_may_fork_from_c_without_a_hook_of_python_before() -> None:
    buffers = of_all_classes()
    after_fork_in_child = ctypes.pythonapi.PyOS_AfterFork_Child
    after_fork_in_child.restype = None
    calls = ctypes.PyDLL(None).fork, after_fork_in_child

    def fork_as_uwsgi_does() -> int:
        # The child must not execute a bytecode between the two, it could be told to let a thread
        # run that it doesn't have. So iterators call; a pid ends this before the second call.
        return next(filter(None, map(operator.call, calls)), 0)

    with written_and_flushed_meanwhile(*buffers):
        for _ in forks_to_make():
            wait_for_child(
                fork_child(lambda: assert_empty_and_working(*buffers), fork_as_uwsgi_does)
            )


@in_own_process_group
def test_a_thread_that_let_the_interpreter_go_may_fork() -> None:
    # The locks' holders are other threads, which have the interpreter. The child lacks them, so it
    # can't run Python. Others call exec(); here it is killed.
    buffers = of_all_classes()
    fork_detached = ctypes.CDLL(None).fork
    with written_and_flushed_meanwhile(*buffers):
        for _ in forks_to_make():
            pid = fork_child(lambda: None, fork_detached)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@in_own_process_group
def test_subprocesses_may_be_started_under_load() -> None:
    buffers = of_all_classes()
    with written_and_flushed_meanwhile(*buffers):
        for preexec in (None, lambda: assert_empty_and_working(*buffers)):
            for _ in forks_to_make(20, 1):
                subprocess.run(["true"], check=True, timeout=DEADLINE, preexec_fn=preexec)  # noqa: S607


def report(connection: Connection, buffer: MetricsBuffer | None = None) -> None:
    """What a process of multiprocessing does, with a buffer that it inherits or its own."""
    buffer = buffer or MetricsBuffer(Recorder(), flush_interval=math.inf)
    assert_empty_and_working(buffer)
    connection.send(buffer.metrics.sums())


@pytest.mark.parametrize(
    ("method", "inherits"),
    [("fork", True), ("fork", False), ("forkserver", False), ("spawn", False)],
)
def test_processes_of_multiprocessing_keep_their_own_accounts(
    method: str, *, inherits: bool
) -> None:
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["arroyo_metrics_buffer"])  # so that its children inherit that
    buffer = made_with_pending(Recorder())
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(  # type: ignore[attr-defined]
        target=report, args=(sender, *([buffer] if inherits else []))
    )
    process.start()
    assert receiver.poll(DEADLINE)
    assert receiver.recv() == {"count": 30, "time": 30 * UNIT}
    process.join(DEADLINE)
    assert process.exitcode == 0
    process.close()
    buffer.flush()
    assert buffer.metrics.calls == PENDING
