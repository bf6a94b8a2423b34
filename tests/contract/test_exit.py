"""C15: what is pending is sent when a process ends in order, which ends as it would without."""

from __future__ import annotations

import signal
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path
from textwrap import dedent

import pytest

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer, _core
from support.programs import python, run_to_end

Ended = subprocess.CompletedProcess[str]

PRELUDE = """
import atexit, gc, logging, math, os, sys, threading, time
from arroyo_metrics_buffer import MetricsBuffer, install, uninstall

class Backend:
    def increment(self, name, value=1, tags=None):
        os.write(1, f"{name} {value}\\n".encode())

    def timing(self, name, value, tags=None):
        os.write(1, f"{name} timed\\n".encode())

    gauge = timing

def made(cls=MetricsBuffer, backend=None):
    return cls(backend or Backend(), flush_interval=100)

def pending(name, cls=MetricsBuffer, backend=None):
    buffer = made(cls, backend)
    buffer.incr_counter(name, 1)
    return buffer
"""

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="no fork()")
needs_fork_at_exit = pytest.mark.skipif(
    sys.platform == "win32" or sys.version_info[:2] == (3, 12),
    reason="no fork(), or none at the end of the interpreter",
)
FORK = """
def fork():
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CPython 3.12's, where there are other threads
        return os.fork()

def wait_for(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def ended(script: str, **environment: str) -> Ended:
    return python(PRELUDE + FORK + dedent(script), **environment)


def sent(program: Ended) -> dict[str, int]:
    """What the backends of a program got, by name."""
    sums: Counter[str] = Counter()
    for line in program.stdout.splitlines():
        name, _, value = line.partition(" ")
        sums[name] += int(value)
    return dict(sums)


ORDERLY_ENDS = {
    "the end of the program": ("", 0),
    "sys.exit()": ("sys.exit(3)", 3),
    "sys.exit() with a text": ("sys.exit('why')", 1),
    "an exception": ("1 / 0", 1),
    "an interrupt": ("raise KeyboardInterrupt", -signal.SIGINT),
    "a thread that goes on": (
        "threading.Thread(target=lambda: (time.sleep(0.1), buffer.incr_counter('b', 2))).start()",
        0,
    ),
}


@pytest.mark.parametrize(("end", "status"), ORDERLY_ENDS.values(), ids=ORDERLY_ENDS)
def test_what_is_pending_at_an_orderly_end_is_sent_and_the_exit_status_stays(
    end: str, status: int
) -> None:
    program = ended(f"buffer = pending('a')\nbuffer.incr_timing('c', 1)\n{end}\n")
    lines = ["c timed", "a 1", *(["b 2"] if "thread" in end else [])]
    assert program.stdout.splitlines() == lines
    assert program.returncode == status
    assert "arroyo_metrics_buffer" not in program.stderr


@pytest.mark.parametrize("end", ["os._exit(0)", "import signal; signal.raise_signal(9)"])
def test_what_ends_a_process_at_once_sends_nothing(end: str) -> None:
    assert ended(f"buffer = pending('a')\n{end}\n").stdout == ""


@pytest.mark.parametrize("is_before", [True, False])
def test_what_a_handler_at_exit_counts_is_sent_whether_it_was_there_before_the_package(
    *, is_before: bool
) -> None:
    register = """
import atexit
atexit.register(lambda: (buffer.incr_counter("a", 2), buffer.incr_counter("b", 4)))
atexit.register(lambda: (more.append(made()), more[0].incr_counter("a", 8)))
"""
    program = python(
        (register if is_before else "")
        + PRELUDE
        + ("" if is_before else register)
        + "buffer, more = pending('a'), []\n"
    )
    assert sent(program) == {"a": 11, "b": 4}
    assert program.stderr == ""


def test_buffers_are_flushed_once_each_in_the_order_they_were_made_and_by_their_own_flush() -> None:
    program = ended("""
    from unittest.mock import Mock

    class Mine(MetricsBuffer):
        def flush(self):
            os.write(1, b"flush 1\\n")
            super().flush()

    buffers = [pending("a"), pending("b", Mine), pending("c"), made(Mine), pending("d")]
    buffers[2].flush = Mock(side_effect=lambda: os.write(1, b"mock 1\\n"))
    """)
    assert program.stdout.splitlines() == ["a 1", "flush 1", "b 1", "mock 1", "flush 1", "d 1"]
    assert program.stderr == ""


def test_any_buffer_is_found_that_is_alive() -> None:
    program = ended("""
    class Equal(MetricsBuffer):
        def __eq__(self, other): return True
        def __hash__(self): return 1

    class Hostile(MetricsBuffer):
        __hash__ = None
        def __eq__(self, other): raise ValueError
        def __bool__(self): raise ValueError
        def __repr__(self): raise ValueError

    buffers = [pending("equal", Equal), pending("equal", Equal), pending("hostile", Hostile)]
    thread = threading.Thread(target=lambda: buffers.append(pending("thread")))
    thread.start()
    thread.join()
    gc.collect()
    gc.freeze()
    buffers.append(pending("frozen"))
    gc.freeze()
    """)
    assert sent(program) == {"equal": 2, "hostile": 1, "thread": 1, "frozen": 1}
    assert program.stderr == ""


def test_buffers_are_known_without_being_kept_alive() -> None:
    def mine() -> list[object]:
        return [each for each in _core.buffers() if each in made]

    made = [MetricsBuffer(arroyo_metrics_buffer) for _ in range(100)]
    assert mine() == made
    gone = [weakref.ref(made.pop(place)) for place in (99, 50, 50, 0)]
    assert mine() == made
    assert [each() for each in gone] == [None] * 4
    made += [MetricsBuffer(arroyo_metrics_buffer) for _ in range(100)]
    assert mine() == made


def test_threads_that_go_on_counting_do_not_keep_it_going_and_none_is_started() -> None:
    program = ended("""
    class Slow(Backend):
        def increment(self, name, value):
            if name == "last":
                super().increment("threads", threading.active_count())
                time.sleep(0.2)
                super().increment(name, value)
            elif threading.current_thread() is threading.main_thread():
                super().increment("flushes", 1)

    def count():
        while True:
            buffer.incr_counter("a", 1)
            time.sleep(0)

    buffer, last = made(backend=Slow()), pending("last", backend=Slow())
    for _ in range(3):
        threading.Thread(target=count, daemon=True).start()
    while not buffer.snapshot()[1]:
        pass
    """)
    assert sent(program) == {"flushes": 1, "threads": 4, "last": 1}
    assert (program.returncode, program.stderr) == (0, "")


ERRORS = {
    "an Exception": "OSError('no network')",
    "an exit": "SystemExit(9)",
    "an interrupt": "KeyboardInterrupt()",
    "another BaseException": "BaseException('no')",
}


@pytest.mark.parametrize("setting", ["raise", "log", "call"])
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_an_error_at_the_end_is_told_once_and_keeps_nothing_else_from_being_sent(
    error: str, setting: str
) -> None:
    program = ended(f"""
    class Failing(Backend):
        def increment(self, name, value):
            raise {error}

    class Overridden(MetricsBuffer):
        def flush(self):
            raise {error}

    class Count(logging.StreamHandler):
        def emit(self, record):
            if "at the end" in record.getMessage():
                super().emit(record)

    logging.getLogger("arroyo_metrics_buffer").addHandler(Count())
    install(on_backend_error={{"call": lambda error: None}}.get("{setting}", "{setting}"))
    buffers = [pending("a"), pending("lost", backend=Failing())]
    buffers += [pending("lost", Overridden), pending("b")]
    buffers[1].incr_counter("lost too", 1)
    """)
    assert sent(program) == {"a": 1, "b": 1}
    assert program.returncode == 0
    first, *more = program.stderr.splitlines()
    assert first.startswith(
        "3 entries were not sent at the end of the process, as flushes of 2 buffers failed,"
        f" the first by {error.partition('(')[0]}"
    )
    assert "Exception ignored" not in program.stderr
    assert [line for line in more if "at the end" in line] == []


@pytest.mark.parametrize("error", ["SystemExit(9)", "ValueError()"])
def test_what_fails_in_logging_at_the_end_is_raised_by_nobody(error: str) -> None:
    program = ended(f"""
    class Failing(Backend):
        def increment(self, name, value):
            raise ValueError

    class Handler(logging.Handler):
        def emit(self, record):
            raise {error}

    logging.getLogger("arroyo_metrics_buffer").addHandler(Handler())
    buffers = [pending("lost", backend=Failing()), pending("a")]
    atexit.register(os.write, 1, b"handler 1\\n")
    """)
    assert sent(program) == {"handler": 1, "a": 1}
    assert program.returncode == 0
    assert "atexit" not in program.stderr


def test_an_error_after_the_last_flush_ends_no_handler_and_each_call_tries_once() -> None:
    program = python(
        """
import atexit

def handler():
    buffer.incr_counter("a", 1)
    os.write(1, b"handler 1\\n")
    buffer.incr_counter("a", 1)
    buffer.incr_counter("a", 1)

atexit.register(handler)
"""
        + PRELUDE
        + """
class Failing(Backend):
    def increment(self, name, value):
        os.write(1, b"call 1\\n")
        raise ValueError("no network")

buffer = made(backend=Failing())
logging.getLogger("arroyo_metrics_buffer").addHandler(logging.NullHandler())
"""
    )
    assert sent(program) == {"call": 1, "handler": 1}
    assert "ValueError: no network" in program.stderr  # by sys.unraisablehook
    assert program.returncode == 0


def test_a_backend_that_counts_its_calls_in_the_same_buffer_does_not_keep_it_going() -> None:
    program = python(
        "import atexit; atexit.register(lambda: buffer.incr_counter('a', 1))\n"
        + PRELUDE
        + """
class Counting(Backend):
    def increment(self, name, value):
        super().increment(name, value)
        buffer.incr_counter("calls", 1)

buffer = pending("a", backend=Counting())
"""
    )
    assert sent(program) == {"a": 2, "calls": 1}
    assert program.stderr == ""


@needs_fork
@pytest.mark.parametrize("end", ["sys.exit(3)", "raise SystemExit(3)"])
def test_a_child_of_a_fork_and_its_parent_send_what_is_theirs(end: str) -> None:
    program = ended(f"""
    buffer = pending("parent")
    if not (pid := fork()):
        buffer.incr_counter("child", 1)
        mine = pending("child")
        {end}
    assert wait_for(pid) == 3
    """)
    assert sent(program) == {"parent": 1, "child": 2}
    assert program.stderr == ""


@needs_fork_at_exit
def test_a_backend_that_forks_at_the_end_sends_nothing_twice() -> None:
    program = ended("""
    class Forking(Backend):
        def increment(self, name, value):
            if pid := fork():
                assert wait_for(pid) == 0
                super().increment(name, value)

    buffers = [pending("a"), pending("b", backend=Forking()), pending("c")]
    buffers[1].incr_counter("d", 1)
    """)
    assert sent(program) == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert (program.returncode, program.stderr) == (0, "")


@needs_fork_at_exit
def test_a_child_that_is_forked_at_the_end_sends_what_it_counts_then() -> None:
    program = python(
        """
import atexit

def handler():
    pid = fork()
    buffer.incr_counter("a", 1)
    if pid:
        assert wait_for(pid) == 0

atexit.register(handler)
"""
        + PRELUDE
        + FORK
        + "buffer = pending('a')\n"
    )
    assert sent(program) == {"a": 3}
    assert program.stderr == ""


CHILDREN = """
import multiprocessing

def child(end):
    counted = pending("child")
    kept.append(counted)
    thread = threading.Thread(target=lambda: (time.sleep(0.1), counted.incr_counter("late", 1)))
    thread.start()
    if end == "exit":
        sys.exit(3)
    if end == "raise":
        sys.stderr = open(os.devnull, "w")
        raise ValueError

kept = []

if __name__ == "__main__":
    parent = pending("parent")
    context = multiprocessing.get_context(sys.argv[1])
    children = [context.Process(target=child, args=(end,)) for end in ("return", "exit", "raise")]
    for each in children:
        each.start()
    for each in children:
        each.join()
    print("statuses", *(each.exitcode for each in children), sep="", flush=True)
"""
METHODS = ["spawn"] if sys.platform == "win32" else ["fork", "forkserver", "spawn"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("imported", ["first", "after multiprocessing", "in the child"])
def test_children_of_multiprocessing_send_what_they_count(
    method: str, imported: str, tmp_path: Path
) -> None:
    script = PRELUDE + CHILDREN
    if imported == "after multiprocessing":
        script = "import multiprocessing.util\n" + script
    if imported == "in the child":
        script = CHILDREN.replace(
            "    counted", f"    exec({PRELUDE!r}, globals())\n    counted"
        ).replace('pending("parent")', "None")
        script = "import os, sys, threading, time\n" + script
    path = tmp_path / "program.py"
    path.write_text(script)
    program = run_to_end(sys.executable, str(path), method)
    lines = program.stdout.splitlines()
    expected = ["child 1", "late 1"] * 3
    expected += ["statuses031"] + ([] if imported == "in the child" else ["parent 1"])
    assert sorted(lines) == sorted(expected)
    assert (program.returncode, program.stderr) == (0, "")


@needs_fork_at_exit
def test_a_child_of_multiprocessing_that_is_made_at_the_end_flushes_when_due() -> None:
    program = python(
        """
import atexit

def handler():
    import multiprocessing
    child = multiprocessing.get_context("fork").Process(target=count)
    child.start()
    child.join()

def count():
    for _ in range(3):
        buffer.incr_counter("child", 1)

atexit.register(handler)
"""
        + PRELUDE
        + "buffer = pending('parent')\n"
    )
    # The first call is due, as it would have been in the parent.
    assert program.stdout.splitlines() == ["parent 1", "child 1", "child 2"]
    assert program.stderr == ""


PRODUCER = """
from arroyo.utils.metrics import configure_metrics
configure_metrics(Backend())
from arroyo.backends.kafka import KafkaPayload, KafkaProducer
from arroyo.backends.kafka.consumer import ConfluentProducer
from arroyo.types import Topic

class Watched(ConfluentProducer):
    def flush(self, *_): os.write(1, b"flush 1\\n")
    poll = flush

def delivered(producer):
    producer._ConfluentProducer__metrics_delivery_callback(None, None, time.time())
"""
STATUS = "arroyo.producer.produce_status"


def counts(program: Ended) -> list[str]:
    return [line for line in program.stdout.splitlines() if not line.endswith(" timed")]


def test_deliveries_of_a_producer_that_nobody_closes_are_sent_and_librdkafka_is_left_alone() -> (
    None
):
    program = ended(
        PRODUCER
        + """
producer = Watched({"log_level": 0})
delivered(producer)
delivered(producer)
"""
    )
    assert program.stdout.splitlines() == [
        f"{STATUS} 2",
        *["arroyo.producer.callback_latency timed"] * 2,
    ]
    assert program.stderr == ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("closed", [True, False])
def test_a_producer_whose_messages_were_delivered_has_reported_them_all(*, closed: bool) -> None:
    # As Sentry does: closed in a handler that does not wait.
    program = ended(
        "import warnings; warnings.simplefilter('ignore')\n"
        + PRODUCER
        + f"""
from confluent_kafka import Producer
mock = Producer({{"bootstrap.servers": "", "test.mock.num.brokers": 1, "log_level": 0}})
broker, = mock.list_topics(timeout=30).brokers.values()
servers = f"{{broker.host}}:{{broker.port}}"
producer = KafkaProducer({{"bootstrap.servers": servers, "log_level": 0}})
if {closed}:
    atexit.register(producer.close)
futures = [producer.produce(Topic("t"), KafkaPayload(None, b"x", [])) for _ in range(500)]
for future in futures:
    future.result(30)
"""
    )
    assert sum(int(line.split()[1]) for line in counts(program)) == 500
    assert (program.returncode, program.stderr) == (0, "")


def test_a_producer_whose_method_others_have_replaced_sends_by_that_and_by_its_buffer() -> None:
    program = ended(
        PRODUCER
        + """
def theirs(self):
    os.write(1, b"theirs 1\\n")

producer = ConfluentProducer({"log_level": 0})
delivered(producer)
ConfluentProducer._ConfluentProducer__flush_metrics = theirs
"""
    )
    assert counts(program) == ["theirs 1", f"{STATUS} 1"]


def test_after_uninstall_buffers_that_live_on_are_sent_and_arroyos_own_counts_are_left() -> None:
    program = ended(
        PRODUCER
        + """
buffer = pending("a")
producer = ConfluentProducer({"log_level": 0})
delivered(producer)
uninstall()
"""
    )
    assert program.stdout.splitlines() == ["a 1"]


@pytest.mark.parametrize("end", ["", "raise ValueError"])
def test_what_a_processor_counts_after_its_last_flush_is_sent_however_it_ends(end: str) -> None:
    program = ended(
        """
from unittest.mock import Mock
from arroyo.utils.metrics import configure_metrics
configure_metrics(Backend())
from arroyo.processing import StreamProcessor
from arroyo.types import Topic

def poll(timeout):
    processor.signal_shutdown()
"""
        f"""
    {end}

def close():
    processor._StreamProcessor__metrics_buffer.incr_timing("arroyo.consumer.callback.time", 1)

consumer = Mock(poll=poll, close=close)
processor = StreamProcessor(consumer, Topic("topic"), Mock())
try:
    processor.run()
except ValueError:
    pass
os.write(1, b"run 1\\n")
"""
    )
    before, _, after = program.stdout.partition("run 1\n")
    assert "arroyo.consumer.callback.time timed" in after.splitlines()
    assert ("arroyo.consumer.run.count" in after) == bool(end)
    assert ("arroyo.consumer.run.count" in before) == (not end)


OFF = {
    "by install()": ("install(flush_at_exit=False)", {}, False),
    "by the last install()": ("install(flush_at_exit=False); install()", {}, True),
    "by the environment": ("", {"ARROYO_METRICS_BUFFER_FLUSH_AT_EXIT": "0"}, False),
    "by the environment, in words": ("", {"ARROYO_METRICS_BUFFER_FLUSH_AT_EXIT": " No "}, False),
    "by the environment, and not by install()": (
        "install(flush_at_exit=True)",
        {"ARROYO_METRICS_BUFFER_FLUSH_AT_EXIT": "0"},
        True,
    ),
    "by the environment, after uninstall()": (
        "install(flush_at_exit=True); uninstall()",
        {"ARROYO_METRICS_BUFFER_FLUSH_AT_EXIT": "0"},
        False,
    ),
    "not by disabling the patch": ("", {"ARROYO_METRICS_BUFFER_DISABLE": "1"}, True),
}


@pytest.mark.parametrize(("install", "environment", "is_on"), OFF.values(), ids=OFF)
def test_it_can_be_turned_off(install: str, environment: dict[str, str], *, is_on: bool) -> None:
    program = ended(
        f"""
    from arroyo_metrics_buffer import status
    buffer = pending("a")
    {install}
    os.write(1, b"on %d\\n" % status().flush_at_exit)
    """,
        **environment,
    )
    assert sent(program) == {"on": int(is_on)} | ({"a": 1} if is_on else {})
    assert program.stderr == ""


def test_a_word_that_may_mean_either_is_told_and_turns_nothing_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ARROYO_METRICS_BUFFER_FLUSH_AT_EXIT", "never")
    assert arroyo_metrics_buffer.install().flush_at_exit
    (record,) = caplog.records
    assert record.getMessage() == (
        "buffers are flushed at exit all the same:"
        " ARROYO_METRICS_BUFFER_FLUSH_AT_EXIT must be '1' or '0', not 'never'"
    )


def test_what_is_no_bool_is_refused_and_changes_nothing() -> None:
    before = arroyo_metrics_buffer.install(flush_at_exit=False)
    no_bool: object = 1
    with pytest.raises(TypeError, match="flush_at_exit must be True or False, not 1"):
        arroyo_metrics_buffer.install(flush_at_exit=no_bool)  # type: ignore[arg-type]
    assert arroyo_metrics_buffer.status().flush_at_exit is before.flush_at_exit is False


FAILING = """
class Failing(Backend):
    def increment(self, name, value):
        os.write(1, b"call 1\\n")
        raise OSError("no network")

logging.getLogger("arroyo_metrics_buffer").addHandler(logging.NullHandler())
buffer = pending("a", backend=Failing())
"""


@pytest.mark.parametrize("first", ["multiprocessing.util", "arroyo_metrics_buffer"])
def test_a_backend_that_fails_is_tried_once_whichever_module_is_imported_first(first: str) -> None:
    program = python(f"import {first}, multiprocessing.util\n" + PRELUDE + FAILING)
    assert sent(program) == {"call": 1}


NOTHING_LEFT = {
    "an override of flush": "def flush(self): super().flush(); raise OSError",
    "a backend that is gone": "metrics = property(lambda self: 1 / 0, lambda self, metrics: None)",
}


@pytest.mark.parametrize("attribute", NOTHING_LEFT.values(), ids=NOTHING_LEFT)
def test_a_flush_that_fails_with_nothing_pending_is_no_loss_and_not_told(attribute: str) -> None:
    program = ended(f"""
    class Mine(MetricsBuffer):
        {attribute}

    buffer = made(Mine)
    """)
    assert (program.returncode, program.stdout) == (0, "")
    assert "at the end" not in program.stderr


LATE = """
import atexit

def handler():
    for _ in range(5):
        buffer.incr_counter("a", 1)

atexit.register(handler)
"""


def test_an_override_that_counts_each_flush_once_all_is_sent_comes_to_an_end() -> None:
    program = python(
        LATE
        + PRELUDE
        + """
class Mine(MetricsBuffer):
    def flush(self):
        super().flush()
        self.incr_counter("flushes", 1)

buffer = pending("a", Mine)
"""
    )
    assert program.stderr == ""
    counts = sent(program)
    assert counts["a"] == 6
    assert counts["flushes"] <= 7  # those at the exit, and of each of the five calls


def test_an_override_that_fails_once_all_is_sent_fails_no_more_than_once_an_interval() -> None:
    program = python(
        LATE
        + PRELUDE
        + """
class Mine(MetricsBuffer):
    def flush(self):
        super().flush()
        raise ValueError("told")

buffer = pending("a", Mine)
"""
    )
    assert sent(program) == {"a": 2}
    assert program.stderr.count("ValueError: told") == 1  # by sys.unraisablehook


CONNECTION = """
import types

class Connection:
    def __init__(self, backend):
        self.buffer = pending("a", backend=backend)

    def __del__(self, write=os.write):
        self.buffer.incr_counter("closed", 1)
        write(1, b"deleted 1\\n")

client = types.ModuleType("client")  # torn down, as nothing else uses it
sys.modules["client"] = client
"""


def test_what_is_counted_when_the_backend_is_torn_down_is_told_by_nobody() -> None:
    program = ended(
        CONNECTION
        + """
exec("def increment(name, value): write(1, sent)", client.__dict__)
client.sent = b"a 1\\n"
client.write = os.write
client.connection = Connection(types.SimpleNamespace(increment=client.increment))
sys.client = client  # alive until its turn comes
"""
    )
    assert sent(program) == {"a": 1, "deleted": 1}
    assert program.stderr == ""


def test_what_is_counted_when_threads_are_frozen_waits_for_no_lock_of_the_backends() -> None:
    program = ended(
        CONNECTION
        + """
class Locked:
    lock = threading.Lock()

    def increment(self, name, value):
        with self.lock:
            sleep(0.02)

def count():
    while True:
        buffer.incr_counter("a", 1)

sleep = time.sleep
buffer = made(backend=Locked())
client.connection = Connection(Locked())
for _ in range(4):
    threading.Thread(target=count, daemon=True).start()
del client
"""
    )
    assert sent(program) == {"deleted": 1}
    assert (program.returncode, program.stderr) == (0, "")
