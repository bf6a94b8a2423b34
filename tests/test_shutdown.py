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

class Quick:
    def timing(self, name, value): pass
    increment = timing

def made(backend):
    return MetricsBuffer(backend, flush_interval=math.inf)

inside = threading.Event()

def block(*_, sleep=time.sleep):  # lets the interpreter go and wants it back while it shuts down
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


def ends(script: str, *, output: str = "", runs: int = 4) -> None:
    """Run a script several times: it exits with 0, prints the output and nothing on stderr."""

    def run(_: int) -> tuple[int, str, str]:
        code = PRELUDE + dedent(script)
        command = [sys.executable, "-c", code]
        ended = subprocess.run(
            command, capture_output=True, check=False, text=True, timeout=DEADLINE
        )
        return ended.returncode, ended.stdout, ended.stderr

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(run, range(runs))) == {(0, output, "")}


def test_threads_may_call_in_until_the_end() -> None:
    ends(
        """
    buffer = made(Quick())

    def call():
        inside.set()
        while True:
            buffer.incr_timing("time", 1)
            buffer.incr_counter("count", 1)
            buffer.flush()
            buffer.snapshot()
            repr(buffer)
            made(Quick())

    sys.setswitchinterval(1e-6)
    daemon(call, 4)
    assert inside.wait(30)
    shut_down_slowly()
    """,
        runs=10,
    )


BLOCKS_IN = {
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


@pytest.mark.parametrize("buffer", BLOCKS_IN.values(), ids=BLOCKS_IN)
def test_a_thread_may_be_inside(buffer: str) -> None:
    ends(
        dedent(buffer)
        + dedent("""
        def call():
            buffer.incr_counter("count", 1)
            buffer.flush()

        daemon(call, 2)
        assert inside.wait(30)
        shut_down_slowly()
        """)
    )


def test_what_is_pending_at_the_end_disturbs_nothing() -> None:
    ends("""
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
    ends(
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


def test_threads_that_outlive_the_main_thread_lose_nothing() -> None:
    ends(
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
    ends(
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
    ends(
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork()")
def test_a_child_of_a_fork_ends_like_any_other_process() -> None:
    ends(
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
        inside.clear()
        daemon(call, 2)
        assert inside.wait(30)
        if pid:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        shut_down_slowly()
        """
    )
