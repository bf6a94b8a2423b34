"""C14: applications that have a remedy of their own for the race, before or after the import."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import logging
import os
import subprocess
import sys
import threading
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from arroyo.processing import processor as arroyo_processor

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer, TargetStatus
from arroyo_metrics_buffer._patching import tables
from support.arroyo_releases import release_folder
from support.backends import Flaky, Outage, Recorder

SUPPORT = Path(__file__).parents[1] / "support"
STAND_INS = SUPPORT / "stand_ins"
FORMS = [
    "reads and resets",
    "snapshots, resets, sends",
    "copies and clears under a lock",
    "swaps under a lock",
    "swaps under the buffer's lock",
    "reads total by total",
    "writes them too",
]

processor: Any = arroyo_processor


def status() -> TargetStatus:
    return arroyo_metrics_buffer.status().targets[0]


@pytest.fixture(autouse=True)
def nothing_is_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_told", set())


def run(order: str, form: str, interval: float = 0.002) -> dict[str, Any]:
    """What a processor and threads add under a remedy, and what becomes of that."""
    path = [str(STAND_INS), *filter(None, [os.environ.get("PYTHONPATH")])]
    program = SUPPORT / "remedied_processor.py"
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", program, order, form, str(interval)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        text=True,
        timeout=120,  # seconds; a remedy that waits for its own lock waits for ever
    )
    assert ran.returncode == 0, ran.stderr
    outcome: dict[str, Any] = json.loads(ran.stdout)
    return outcome


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_processor_with_a_remedy_runs_on_and_loses_nothing_and_the_remedy_is_named(
    order: str, form: str
) -> None:
    outcome = run(order, form)
    assert outcome["arrived"] == outcome["added"]
    assert outcome["added"][3] > 0, "the backend has called the buffer"
    (warning,) = outcome["warnings"]
    for told in warning, outcome["reason"]:
        assert " its method flush() " in told
        assert " myapp.remedies." in told
        assert f"({STAND_INS / 'myapp' / 'remedies.py'}:" in told
        assert told.endswith(": remove that patch")
        assert "newer release" not in told
        assert "by hand" not in told
        assert told.count("incr_counter()") == (form == "writes them too")
    assert outcome["state"] == "patched"
    assert outcome["protected"] == (order == "before")


@pytest.mark.parametrize("form", ["copies and clears under a lock", "writes them too"])
def test_a_remedy_that_flushes_at_every_call_neither_hangs_nor_loses_anything(form: str) -> None:
    outcome = run("after", form, interval=0.0)
    assert outcome["arrived"] == outcome["added"]


@pytest.mark.parametrize("remedy", ["before", "after"])
def test_doctor_names_a_remedy(remedy: str) -> None:
    imports = {
        "before": "import arroyo.processing.processor as p",
        "after": "import arroyo_metrics_buffer; import arroyo.processing.processor as p",
    }
    first = f"""
{imports[remedy]}
from myapp import remedies
remedies.apply("swaps under a lock", p.MetricsBuffer)
from arroyo_metrics_buffer._commands import cli
raise SystemExit(cli.main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", first, "doctor"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(STAND_INS)},
        text=True,
        timeout=120,
    )
    assert "myapp.remedies.swaps_under_a_lock (" in ran.stdout
    assert ": remove that patch" in ran.stdout
    assert ran.returncode == {"before": 0, "after": 1}[remedy], ran.stdout


OLDER = """
if {after}: import arroyo_metrics_buffer
from arroyo.processing import processor
from arroyo.utils.metrics import configure_metrics

def flush(self):
    table = "data" if hasattr(processor.MetricsBuffer, "increment") else "timers"
    totals = dict(getattr(self, f"_MetricsBuffer__{{table}}"))
    metrics = getattr(self, "metrics", None) or self._MetricsBuffer__metrics
    for metric, total in totals.items():
        metrics.timing(getattr(metric, "value", metric), total)
    self._MetricsBuffer__reset()

class Backend:
    def timing(self, name, value, tags=None): print(value)
    increment = gauge = timing

configure_metrics(Backend())
processor.MetricsBuffer.flush = flush
import arroyo_metrics_buffer
buffer = processor.MetricsBuffer()
timings = getattr(processor.ConsumerTiming, "__args__", processor.ConsumerTiming)
add = getattr(buffer, "increment", None) or buffer.incr_timing
add(list(timings)[0], 1.5)
buffer.flush()
buffer.flush()
target = arroyo_metrics_buffer.status().targets[0]
print(target.state, target.protected, " __main__.flush (" in target.reason)
"""


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("version", ["1.1.0", "2.10.3", "2.14.24", "2.27.0"])
def test_a_remedy_for_an_older_release_does_no_harm(version: str, order: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OLDER.format(after=order == "after")],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(release_folder(version))},
        text=True,
        timeout=60,
    )
    # Those of 2.10.3 and of 2.14.24 differ in flush() alone: which it was can't be told.
    is_left_alone = order == "before" and version in ("2.10.3", "2.14.24")
    state = "unknown" if is_left_alone else "patched"
    is_protected = order == "before" and not is_left_alone
    assert ran.stdout.split() == ["1.5", state, str(is_protected), "True"]
    assert ran.stderr.count("remove that patch") == 1


# After the import


@pytest.fixture
def backend() -> Recorder:
    return Recorder()


@pytest.fixture
def buffer(backend: Recorder) -> Any:
    return MetricsBuffer(backend, flush_interval=1e9)


LOOKS: dict[str, Callable[[Any], Any]] = {
    "dict()": dict,
    "list()": list,
    "len()": len,
    "if": bool,
    "**": lambda table: {**table},
    "items()": lambda table: list(table.items()),
    "values()": lambda table: sum(table.values()),
    "defaultdict()": lambda table: defaultdict(int, table),
    "copy()": lambda table: list(table.copy().items()),
    "copy.copy()": lambda table: dict(copy.copy(table)),
    "copy.deepcopy()": lambda table: dict(copy.deepcopy(table)),
    "pop()": lambda table: table.pop("x"),
    "clear()": lambda table: table.clear(),
}


@pytest.mark.parametrize("look", LOOKS)
def test_whoever_looks_into_a_table_has_the_buffer_flushed_and_finds_it_empty(
    look: str, buffer: Any, backend: Recorder
) -> None:
    buffer.incr_counter("x", 1)
    buffer.incr_timing("y", 0.5)
    assert not LOOKS[look](buffer._MetricsBuffer__counters)
    assert backend.calls == [("timing", "y", 0.5), ("increment", "x", 1)]
    assert buffer.snapshot() == ({}, {})


def test_what_is_added_to_a_table_is_added_to_the_buffer(buffer: Any, backend: Recorder) -> None:
    buffer._MetricsBuffer__counters["a"] += 2
    buffer._MetricsBuffer__counters["a"] = buffer._MetricsBuffer__counters.get("a", 0) + 3
    buffer._MetricsBuffer__timers["b"] += 0.5
    buffer._MetricsBuffer__timers.update({"b": 1.0})
    buffer._MetricsBuffer__counters = {"a": 4}  # what a remedy puts back that it could not send
    assert "a" not in buffer._MetricsBuffer__counters
    assert buffer.snapshot() == ({"b": 1.5}, {"a": 9})
    assert backend.calls == []


def test_whoever_only_looks_at_a_buffer_flushes_nothing(buffer: Any, backend: Recorder) -> None:
    buffer.incr_counter("x", 1)
    inspect.getmembers(buffer)
    repr(buffer._MetricsBuffer__counters)
    mock.create_autospec(buffer)
    mock.create_autospec(MetricsBuffer, instance=True)
    with mock.patch.object(buffer, "_MetricsBuffer__counters", {}):
        pass
    assert backend.calls == []
    assert vars(buffer) == {}
    assert buffer.snapshot() == ({}, {"x": 1})


def test_swaps_change_nothing(buffer: Any, backend: Recorder) -> None:
    buffer.incr_counter("x", 1)
    old, buffer._MetricsBuffer__counters = buffer._MetricsBuffer__counters, defaultdict(int)
    buffer._MetricsBuffer__counters = old
    del buffer._MetricsBuffer__counters
    assert buffer.snapshot() == ({}, {"x": 1})
    assert dict(old) == {}
    assert backend.calls == [("increment", "x", 1)]


def test_an_error_of_the_backend_is_raised_where_the_remedy_looks_and_nothing_is_lost() -> None:
    backend = Flaky()
    buffer: Any = MetricsBuffer(backend, flush_interval=1e9)
    buffer.incr_counter("x", 1)
    backend.refused = {"x"}
    with pytest.raises(Outage):
        dict(buffer._MetricsBuffer__counters)
    assert buffer.snapshot() == ({}, {"x": 1})
    backend.refused = set()
    buffer._MetricsBuffer__reset()
    assert backend.calls == [("increment", "x", 1)]


def test_while_a_remedy_holds_its_lock_and_sends_no_thread_waits_for_that_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = threading.Lock()
    entered, go_on = threading.Event(), threading.Event()
    calls: list[int] = []

    def locks_and_sends(self: Any) -> None:
        with lock:
            dict(self._MetricsBuffer__counters)

    def locks_and_adds(self: Any, metric: str, delta: int) -> None:
        with lock:
            self._MetricsBuffer__counters[metric] += delta

    class Backend:
        def increment(self, name: str, value: int) -> None:
            calls.append(value)
            if len(calls) == 1:
                made.incr_counter(name, 1)  # with the lock, this thread would wait for itself
                entered.set()
                assert go_on.wait(30)

    monkeypatch.setattr(MetricsBuffer, "flush", locks_and_sends)
    monkeypatch.setattr(MetricsBuffer, "incr_counter", locks_and_adds)
    made: Any = MetricsBuffer(Backend(), flush_interval=1e9)
    made.incr_counter("x", 1)
    flushing = threading.Thread(target=made.flush, daemon=True)
    flushing.start()
    assert entered.wait(30)
    made.incr_counter("x", 1)
    made.flush()
    assert calls == [1, 2]
    go_on.set()
    flushing.join(30)
    assert not flushing.is_alive()


def test_a_remedy_with_tables_of_its_own_is_flushed_by_arroyos_throttle(
    monkeypatch: pytest.MonkeyPatch, buffer: Any
) -> None:
    flushed = []
    monkeypatch.setattr(MetricsBuffer, "flush", lambda self: flushed.append([self]))
    monkeypatch.setattr(processor, "METRICS_FREQUENCY_SEC", 1e9)
    buffer._MetricsBuffer__throttled_record()
    assert flushed == []
    monkeypatch.setattr(processor, "METRICS_FREQUENCY_SEC", -1)
    buffer._MetricsBuffer__throttled_record()
    assert flushed == [[buffer]]
    buffer._MetricsBuffer__reset()
    monkeypatch.setattr(processor, "METRICS_FREQUENCY_SEC", 60)
    buffer._MetricsBuffer__throttled_record()
    assert flushed == [[buffer]]


def test_a_remedys_constructor_makes_a_buffer(
    monkeypatch: pytest.MonkeyPatch, backend: Recorder
) -> None:
    def init(self: Any) -> None:
        self.metrics = backend
        self._MetricsBuffer__timers = defaultdict(float)
        self._MetricsBuffer__counters = defaultdict(int)
        self._MetricsBuffer__reset()

    monkeypatch.setattr(MetricsBuffer, "__init__", init)
    buffer: Any = MetricsBuffer()
    buffer.incr_counter("x", 1)
    buffer.flush()
    assert backend.calls == [("increment", "x", 1)]


def test_a_remedy_that_is_taken_back_is_not_called_any_more(buffer: Any, backend: Recorder) -> None:
    def remedy(self: Any) -> None:
        dict(self._MetricsBuffer__counters)
        called.append(self)

    called: list[Any] = []
    with mock.patch.object(MetricsBuffer, "flush", remedy):
        buffer.flush()
        buffer.flush()
        assert not status().protected
    buffer.incr_counter("x", 1)
    buffer.flush()
    assert called == [buffer, buffer]
    assert backend.calls == [("increment", "x", 1)]
    assert status().protected
    assert "remove" not in status().reason


@pytest.mark.usefixtures("buffer")
def test_a_remedy_is_told_by_one_record_for_all_buffers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def remedy(self: Any) -> None:
        self._MetricsBuffer__reset()

    monkeypatch.setattr(MetricsBuffer, "flush", remedy)
    for _ in range(3):
        made = MetricsBuffer(Recorder())
        made.flush()
        made.flush()
    arroyo_metrics_buffer.install()
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    line = remedy.__code__.co_firstlineno
    assert record.getMessage() == (
        "arroyo.processing.processor.MetricsBuffer: its method flush() is"
        f" {__name__}.{remedy.__qualname__} ({__file__}:{line}): remove that patch"
    )


def test_a_buffer_whose_private_names_were_used_is_freed_without_the_collector() -> None:
    import weakref  # noqa: PLC0415

    buffer: Any = MetricsBuffer(Recorder())
    dict(buffer._MetricsBuffer__counters)
    freed = weakref.ref(buffer)
    del buffer
    assert freed() is None


# Before the import


@pytest.fixture
def original(upstream: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """arroyo's class, in place, the package being uninstalled."""
    arroyo_metrics_buffer.uninstall()
    with monkeypatch.context() as patching:
        for name in "__init__", "flush", "incr_counter", "incr_timing":
            patching.setattr(upstream, name, vars(upstream)[name])  # so that it is put back
        yield upstream
        arroyo_metrics_buffer.uninstall()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(self: Any, *arguments: Any) -> Any:
        assert "_MetricsBuffer__counters" in vars(self)
        return function(self, *arguments)

    return wrapper


def in_a_closure(function: Any) -> Any:
    def wrapper(self: Any) -> Any:
        if self._MetricsBuffer__counters or self._MetricsBuffer__timers:
            function(self)

    return wrapper


def in_a_default(function: Any) -> Any:
    def wrapper(self: Any, function: Any = function) -> Any:
        if self._MetricsBuffer__counters:
            function(self)

    return wrapper


def in_a_dict(function: Any) -> Any:
    originals = {"flush": function}

    def wrapper(self: Any) -> Any:
        if self._MetricsBuffer__counters:
            originals["flush"](self)

    return wrapper


def of_names_unknown(_: Any) -> Any:
    def flush(self: Any) -> None:
        self.send_all()

    return flush


def of_any_arguments(_: Any) -> Any:
    def flush(self: Any, *_: object) -> None:
        self._MetricsBuffer__reset()

    return flush


def a_mock(_: Any) -> Any:
    return mock.Mock()


@pytest.mark.parametrize(
    "make",
    [
        wrapped,
        in_a_closure,
        in_a_default,
        in_a_dict,
        of_names_unknown,
        of_any_arguments,
        a_mock,
    ],
)
def test_a_class_with_a_method_that_cannot_be_judged_is_left_alone_and_the_method_named(
    original: Any, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    original.flush = make(original.flush)
    before = dict(vars(original))
    arroyo_metrics_buffer.install()
    arroyo_metrics_buffer.install()
    assert processor.MetricsBuffer is original
    assert dict(vars(original)) == before
    assert (status().state, status().protected) == ("unknown", False)
    reason = status().reason
    if make is a_mock:
        assert reason == "its method flush() is an object of unittest.mock.Mock: remove that patch"
    else:
        code = original.flush.__code__
        assert reason == (
            f"its method flush() is {__name__}.{code.co_qualname}"
            f" ({__file__}:{code.co_firstlineno}): remove that patch"
        )
    (warning,) = warnings(caplog)
    assert warning.endswith(reason)


def test_a_constructor_that_chooses_another_backend_is_left_alone(original: Any) -> None:
    def init(self: Any) -> None:
        self.metrics = Recorder()
        self._MetricsBuffer__timers = defaultdict(float)
        self._MetricsBuffer__counters = defaultdict(int)
        self._MetricsBuffer__reset()

    original.__init__ = init
    arroyo_metrics_buffer.install()
    assert processor.MetricsBuffer is original
    assert "its method __init__() is " in status().reason


def test_a_subclass_of_arroyos_own_that_an_application_put_in_place_is_left_alone_and_named(
    original: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Safe(original):  # type: ignore[misc]
        pass

    monkeypatch.setattr(processor, "MetricsBuffer", Safe)
    arroyo_metrics_buffer.install()
    assert processor.MetricsBuffer is Safe
    reason = status().reason
    assert f"it is {__name__}.{Safe.__qualname__}: remove that patch" in reason
    assert "newer release" not in reason


def test_a_remedy_in_a_class_that_is_not_known_is_told_with_it(original: Any) -> None:
    def flush(self: Any) -> None:
        self._MetricsBuffer__reset()

    vars_of_newer = dict(vars(original)) | {
        "flush": flush,
        "gauge": types.FunctionType((lambda self: self).__code__, vars(processor), "gauge"),
    }
    processor.MetricsBuffer = type("MetricsBuffer", (), vars_of_newer)
    try:
        arroyo_metrics_buffer.install()
        reason = status().reason
        assert status().state == "unknown"
        assert ": remove that patch; and it is none that this release knows: " in reason
        assert "its method gauge() is not known; look for a newer release" in reason
    finally:
        processor.MetricsBuffer = original


def test_uninstall_gives_an_application_its_remedy_back(
    original: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def flush(self: Any) -> None:
        self._MetricsBuffer__reset()

    original.flush = flush
    arroyo_metrics_buffer.install()
    assert processor.MetricsBuffer is MetricsBuffer
    assert status().protected
    assert len(warnings(caplog)) == 1
    arroyo_metrics_buffer.uninstall()
    assert processor.MetricsBuffer is original
    assert original.flush is flush
