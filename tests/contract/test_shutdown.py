"""C11: the interpreter ends as it should, whatever threads are doing with a buffer."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent

import pytest

DEADLINE = 60  # seconds for a run, which needs tenths of one

PRELUDE = """
import atexit, logging, math, os, sys, threading, time, types
from arroyo_metrics_buffer import MetricsBuffer
from arroyo_metrics_buffer._core import DeliveryBuffer

class Quick:
    def timing(self, name, value, tags=None): pass
    increment = timing

def made(backend):
    return MetricsBuffer(backend, flush_interval=math.inf)

inside = threading.Event()

def block(*_, sleep=time.sleep, **__):  # lets the interpreter go, wants it back as it shuts down
    inside.set()
    sleep(0.05)

def daemon(job, threads=1):
    for _ in range(threads):
        threading.Thread(target=job, daemon=True).start()

class Last:  # a module of its own, since what daemon threads use is not torn down
    def __init__(self, job):
        module = types.ModuleType("last")
        module.__dict__["job"] = job
        module.__dict__["last"] = self
        self.job = job
        sys.modules["last"] = module

    def __del__(self):
        self.job()

def shut_down_slowly(sleep=time.sleep):
    Last(lambda: sleep(0.15))
"""


def ends_well(script: str, *, before: str = "", output: str = "", runs: int = 8) -> None:
    """Run a script several times: it exits with 0, prints the output and nothing on stderr.

    What has to come before the package is imported does.
    """

    def run(_: int) -> tuple[int, str, str]:
        code = before + PRELUDE + dedent(script)
        command = [sys.executable, "-c", code]
        ended = subprocess.run(
            command, capture_output=True, check=False, text=True, timeout=DEADLINE
        )
        return ended.returncode, ended.stdout, ended.stderr

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(run, range(runs))) == {(0, output, "")}


ENDLESS_CALLS = {
    "a buffer": """
        buffer = made(Quick())

        def call():
            buffer.incr_timing("time", 1)
            buffer.incr_counter("count", 1)
            buffer.flush()
            buffer.snapshot()
            repr(buffer)
            made(Quick())
    """,
    "a buffer that is due": """
        class Backend:
            def timing(self, name, value, sleep=time.sleep):
                sleep(0)  # lets other threads find the next flush due
            increment = timing

        buffer = MetricsBuffer(Backend(), flush_interval=0, clock=time.perf_counter)

        def call():
            buffer.incr_timing("time", 1)
            buffer.incr_counter("count", 1)
    """,
    "a producer's buffer": """
        backend = Quick()
        deliveries = DeliveryBuffer(flush_interval=0, clock=time.perf_counter)

        def call():
            deliveries.add({"error": 1}, [0.5])
            if deliveries.record(None, 0.5):
                deliveries.flush(backend, "a producer")
            deliveries.snapshot()
            repr(deliveries)
            DeliveryBuffer(flush_interval=1)
    """,
}


@pytest.mark.parametrize("calls", ENDLESS_CALLS.values(), ids=ENDLESS_CALLS)
def test_threads_that_call_in_until_the_end_neither_crash_nor_hang_it(calls: str) -> None:
    ends_well(
        dedent(calls)
        + dedent("""
        def call_for_ever():
            inside.set()
            while True:
                call()

        sys.setswitchinterval(1e-6)
        daemon(call_for_ever, 4)
        assert inside.wait(30)
        shut_down_slowly()
        """),
        runs=12,
    )


BLOCKING_BUFFERS = {
    "the backend": """
        class Backend:
            timing = increment = block
        buffer = made(Backend())
    """,
    "the backend when due": """
        class Backend:
            timing = increment = block
        buffer = MetricsBuffer(Backend(), flush_interval=0, clock=iter(range(1_000_000)).__next__)
    """,
    "a producer's backend": """
        class Backend:
            timing = increment = block

        class buffer:  # as a producer uses its own
            deliveries = DeliveryBuffer(flush_interval=0)

            @classmethod
            def incr_counter(cls, *_):
                cls.deliveries.record(None, 0.5)

            @classmethod
            def flush(cls):
                cls.deliveries.flush(Backend(), "a producer")
    """,
    "a backend that looks its methods up": """
        class Backend:
            def __getattr__(self, name):
                block()
                return lambda name, value: None
        buffer = made(Backend())
    """,
    "an override of flush": """
        class Subclass(MetricsBuffer):
            flush = block
        buffer = Subclass(Quick(), flush_interval=0, clock=iter(range(1_000_000)).__next__)
    """,
    "the clock": """
        def clock():
            if threading.current_thread() is not threading.main_thread():
                block()
            return 0
        buffer = MetricsBuffer(Quick(), flush_interval=math.inf, clock=clock)
    """,
    "logging": """
        logger = logging.getLogger("arroyo_metrics_buffer")
        logger.setLevel(logging.DEBUG)
        logger.addFilter(block)  # and no handler, whose lock the interpreter would wait for
        buffer = made(Quick())
    """,
    "logging after a backend error": """
        class Backend:
            def increment(self, name, value):
                raise SystemExit
        logging.getLogger("arroyo_metrics_buffer").addFilter(block)
        buffer = made(Backend())
    """,
    "a name's end": """
        class Name(str):
            def __del__(self):
                block()
        buffer = made(Quick())
        buffer.incr_counter(Name("count"), 1)
    """,
}


@pytest.mark.parametrize("buffer", BLOCKING_BUFFERS.values(), ids=BLOCKING_BUFFERS)
def test_the_interpreter_ends_while_threads_are_inside_a_call(buffer: str) -> None:
    ends_well(
        dedent(buffer)
        + dedent("""
        def call():
            buffer.incr_counter("count", 1)
            buffer.flush()

        daemon(call, 4)
        assert inside.wait(30)
        shut_down_slowly()
        """)
    )


def test_what_is_pending_at_the_end_disturbs_nothing() -> None:
    ends_well("""
    class Name(str):
        def __del__(self):
            buffer.incr_counter("deaths", 1)

    buffer = made(Quick())
    buffer.itself = buffer
    for i in range(20):
        buffer.incr_counter(Name(i), 1)
        buffer.incr_timing(f"name {i}", 1)
    """)


def test_a_handler_at_exit_may_report_the_rest_while_threads_call_in() -> None:
    ends_well(
        """
        class Backend:
            def increment(self, name, value):
                print(name, value)

        def call():
            while True:
                other.incr_counter("count", 1)
                other.flush()

        buffer, other = made(Backend()), made(Quick())
        buffer.incr_counter("count", 3)
        daemon(call, 2)
        atexit.register(buffer.flush)
        atexit.register(buffer.incr_counter, "count", 4)
        """,
        output="count 7\n",
    )


@pytest.mark.parametrize(
    ("registered", "counts"), [("before", "count 1\ncount 2\n"), ("after", "count 3\n")]
)
def test_a_handler_at_exit_may_be_registered_before_the_package_is_imported_or_after(
    registered: str, counts: str
) -> None:
    # Handlers run in the reverse order, so the one from before runs after those of the imports,
    # among them the one that sends what is pending.
    register = "import atexit; atexit.register(lambda: report())\n"
    ends_well(
        (register if registered == "after" else "")
        + dedent("""
        class Backend:
            def increment(self, name, value, tags=None):
                print(name, value)

        def report():
            buffer.incr_counter("count", 2)
            buffer.flush()
            deliveries.flush(buffer.metrics, "a producer")

        buffer, deliveries = made(Backend()), DeliveryBuffer(flush_interval=1)
        buffer.incr_counter("count", 1)
        deliveries.record(None)
        """),
        before=register if registered == "before" else "",
        output=counts + "arroyo.producer.produce_status 1\n",
    )


def test_a_backend_whose_socket_is_closed_first_stops_no_thread_and_no_handler() -> None:
    ends_well(
        """
        import socket, arroyo_metrics_buffer

        class Backend:
            sent = 0

            def increment(self, name, value):
                ours.send(b"%s:%d|c" % (name.encode(), value))
                self.sent += value

        def call():
            while True:
                buffer.incr_counter("count", 1)
                buffer.flush()
                inside.set()

        def report():
            last.incr_counter("count", 3)
            last.flush()
            print(last.metrics.sent, last.snapshot())

        arroyo_metrics_buffer.install(on_backend_error="log")
        logging.getLogger("arroyo_metrics_buffer").addHandler(logging.NullHandler())
        ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)
        ours.setblocking(False)
        buffer, last = made(Backend()), made(Backend())
        atexit.register(report)
        atexit.register(ours.close)
        daemon(call, 2)
        assert inside.wait(30)
        """,
        output="0 ({}, {'count': 3})\n",
    )


def test_a_backend_whose_module_is_torn_down_first_loses_nothing() -> None:
    ends_well(
        """
        logging.getLogger("arroyo_metrics_buffer").addHandler(logging.NullHandler())
        backend = types.ModuleType("backend")
        exec("def increment(name, value): pass", backend.__dict__)
        sys.modules["backend"] = backend
        sys.backend = backend  # alive until its turn comes

        def job(buffer=made(backend), write=os.write):
            buffer.incr_counter("count", 1)
            try:
                buffer.flush()
            except TypeError:  # increment is None by now
                write(1, str(buffer.snapshot()[1]).encode())

        backend.last = Last(job)  # behind increment, so torn down after it
        """,
        output="{'count': 1}",
    )


def test_a_backend_that_can_start_no_thread_any_more_loses_nothing() -> None:
    ends_well(
        """
        import _thread
        logging.getLogger("arroyo_metrics_buffer").addHandler(logging.NullHandler())

        class Backend:
            sent = 0

            def increment(self, name, value, start=_thread.start_new_thread, job=Quick):
                start(job, ())  # from CPython 3.12 on, a RuntimeError
                self.sent += value

        def job(buffer=made(Backend()), write=os.write, refused=RuntimeError):
            buffer.incr_counter("count", 1)
            try:
                buffer.flush()
            except refused:
                pass
            write(1, b"%d" % (buffer.metrics.sent + buffer.snapshot()[1].get("count", 0)))

        Last(job)
        """,
        output="1",
    )


def test_threads_that_outlive_the_main_thread_lose_nothing() -> None:
    ends_well(
        """
        class Backend:
            total = 0
            def increment(self, name, value):
                self.total += value

        def call():
            time.sleep(0.05)
            for _ in range(1_000):
                buffer.incr_counter("count", 1)

        def report():
            buffer.flush()
            print(buffer.metrics.total)

        buffer = made(Backend())
        for _ in range(4):
            threading.Thread(target=call).start()
        atexit.register(report)
        """,
        output="4000\n",
    )


def test_a_buffer_may_be_used_when_modules_are_torn_down() -> None:
    ends_well(
        """
        class Backend:
            def __init__(self, write=os.write):
                self.write = write

            def increment(self, name, value):
                self.write(1, b"increment\\n")

        def job(buffer=made(Backend()), quick=made(Quick())):
            for each in buffer, quick:
                each.incr_counter("count", 1)
                each.flush()
                each.snapshot()
                repr(each)

        Last(job)
        """,
        output="increment\n",
    )


def test_a_buffer_may_outlive_its_backend() -> None:
    ends_well(
        """
        logging.getLogger("arroyo_metrics_buffer").addHandler(logging.NullHandler())

        def job(buffer=made(Quick()), write=os.write):
            del buffer.metrics
            buffer.incr_counter("count", 1)
            try:
                buffer.flush()
            except AttributeError:
                write(1, str(buffer.snapshot()[1]).encode())

        Last(job)
        """,
        output="{'count': 1}",
    )


def test_a_sub_interpreter_can_not_have_the_package_and_leaves_the_main_one_whole() -> None:
    ends_well(
        """
        try:
            import _interpreters
        except ImportError:
            import _xxsubinterpreters as _interpreters

        class Backend:
            def increment(self, name, value):
                print(name, value)

        attempt = "try: import arroyo_metrics_buffer"
        attempt += "\\nexcept ImportError as error: assert 'subinterpreters' in str(error)"
        attempt += "\\nelse: raise AssertionError"
        other = _interpreters.create()
        assert _interpreters.run_string(other, attempt) is None
        _interpreters.destroy(other)
        buffer = made(Backend())
        buffer.incr_counter("count", 1)
        atexit.register(buffer.flush)
        """,
        output="count 1\n",
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork()")
def test_a_child_of_a_fork_ends_like_any_other_process() -> None:
    ends_well(
        """
        import warnings
        warnings.simplefilter("ignore")

        class Backend:
            timing = increment = block

        def call():
            while True:
                buffer.incr_counter("count", 1)
                buffer.flush()

        buffer = made(Backend())
        daemon(call, 2)
        assert inside.wait(30)
        pid = os.fork()
        # The child lacks the threads that may have held the other one's lock.
        inside = threading.Event()
        daemon(call, 2)
        assert inside.wait(30)
        if pid:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        shut_down_slowly()
        """
    )
