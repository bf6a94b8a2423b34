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
from arroyo_metrics_buffer._patching import private_names
from support.arroyo_releases import release_folder
from support.backends import Flaky, Outage, Recorder

SUPPORT = Path(__file__).parents[1] / "support"
STAND_INS = SUPPORT / "stand_ins"
# By form, the interval in seconds. A remedy without a lock is exact only if one thread flushes, as
# without this package: then nobody flushes before the end.
FORMS = {
    "reads and resets": 1e9,
    "snapshots, resets, sends": 1e9,
    "copies and clears under a lock": 0.002,
    "swaps under a lock": 0.002,
    "swaps under the buffer's lock": 0.002,
    "reads total by total": 1e9,
    "writes them too": 0.002,
}
# What does more than arroyo's own words say can't be judged: before the import it is left alone.
LEFT_ALONE = ("before", "reads total by total")

processor: Any = arroyo_processor


def status() -> TargetStatus:
    return arroyo_metrics_buffer.status().targets[0]


@pytest.fixture(autouse=True)
def nothing_is_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_names, "_told", set())


def run(order: str, form: str, interval: float) -> dict[str, Any]:
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
    outcome = run(order, form, FORMS[form])
    # arroyo's own class, which is left alone there, loses counts without the GIL.
    is_exact = (order, form) != LEFT_ALONE or getattr(sys, "_is_gil_enabled", lambda: True)()
    assert outcome["arrived"] == outcome["added"] or not is_exact
    assert outcome["added"][3] > 0, "the backend has called the buffer"
    (warning,) = outcome["warnings"]
    for told in warning, outcome["reason"]:
        assert "its method flush() " in told
        assert " myapp.remedies." in told
        assert f"({STAND_INS / 'myapp' / 'remedies.py'}:" in told
        assert told.endswith(": remove that patch")
        assert "newer release" not in told
        assert "by hand" not in told
        assert told.count("incr_counter()") == (form == "writes them too")
    is_left_alone = (order, form) == LEFT_ALONE
    assert outcome["state"] == ("unknown" if is_left_alone else "patched")
    assert outcome["protected"] == (order == "before" and not is_left_alone)


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
    # It does more than arroyo's own words say, and so is left alone.
    state = "unknown" if order == "before" else "patched"
    assert ran.stdout.split() == ["1.5", state, "False", "True"]
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
    "in": lambda table: "x" in table,
    "|": lambda table: table | {},
    "| to its left": lambda table: {} | table,
    "json": json.dumps,
}


@pytest.mark.parametrize("look", LOOKS)
def test_whoever_looks_into_a_table_finds_what_is_pending_and_nothing_is_sent(
    look: str, buffer: Any, backend: Recorder
) -> None:
    buffer.incr_counter("x", 1)
    buffer.incr_timing("y", 0.5)
    assert LOOKS[look](buffer._MetricsBuffer__counters)
    assert dict(buffer._MetricsBuffer__timers) == {"y": 0.5}
    assert backend.calls == []
    buffer.incr_counter("x", 2)
    assert buffer._MetricsBuffer__counters == {"x": 3}
    buffer.flush()
    assert backend.calls == [("timing", "y", 0.5), ("increment", "x", 3)]
    assert not buffer._MetricsBuffer__counters


def test_what_is_added_to_a_table_goes_out_with_the_next_flush(
    buffer: Any, backend: Recorder
) -> None:
    buffer._MetricsBuffer__counters["a"] += 2
    buffer.incr_counter("a", 3)
    buffer._MetricsBuffer__counters["a"] = buffer._MetricsBuffer__counters.get("a", 0) + 4
    buffer._MetricsBuffer__timers["b"] += 0.5
    buffer.flush()
    assert backend.calls == [("timing", "b", 0.5), ("increment", "a", 9)]


def test_what_a_buffer_refuses_stays_in_the_table_and_all_else_is_sent(
    buffer: Any, backend: Recorder
) -> None:
    for name in ("a", "b", "c", "d"):
        buffer.incr_counter(name, 1)
    counters = buffer._MetricsBuffer__counters
    assert len(counters) == 4  # which moves them there
    counters["a"] += 0.5
    counters["b"] += 2**63 - 1
    counters[3] = 1
    buffer.flush()
    buffer.flush()
    assert backend.calls == [("increment", "c", 1), ("increment", "d", 1)]
    assert counters == {"a": 1.5, "b": 2**63, 3: 1}


def test_what_nobody_has_looked_at_is_not_dropped_by_a_reset(
    buffer: Any, backend: Recorder
) -> None:
    buffer.incr_counter("x", 1)
    assert list(buffer._MetricsBuffer__counters.items()) == [("x", 1)]
    buffer.incr_counter("y", 2)  # as another thread does before the remedy resets
    buffer._MetricsBuffer__reset()
    buffer.flush()
    assert backend.calls == [("increment", "y", 2)]


def test_a_table_that_is_swapped_out_has_what_was_pending(buffer: Any, backend: Recorder) -> None:
    buffer.incr_counter("x", 1)
    old, buffer._MetricsBuffer__counters = buffer._MetricsBuffer__counters, defaultdict(int)
    assert dict(old) == {"x": 1}
    buffer._MetricsBuffer__counters = {"x": 4}  # what a remedy puts back that it could not send
    buffer.flush()
    assert backend.calls == [("increment", "x", 4)]


def test_a_table_that_is_taken_away_is_gone_until_another_is_put_there(
    buffer: Any, backend: Recorder
) -> None:
    buffer._MetricsBuffer__counters["x"] = 1
    table = buffer._MetricsBuffer__counters
    del buffer._MetricsBuffer__counters
    assert not hasattr(buffer, "_MetricsBuffer__counters")
    buffer.flush()
    assert backend.calls == []
    buffer._MetricsBuffer__counters = table
    buffer.flush()
    assert backend.calls == [("increment", "x", 1)]


def test_a_table_that_is_put_where_it_is_stays_what_it_is(buffer: Any, backend: Recorder) -> None:
    buffer._MetricsBuffer__counters["x"] = 1
    table = buffer._MetricsBuffer__counters
    buffer._MetricsBuffer__counters = table
    assert buffer._MetricsBuffer__counters is table
    buffer.flush()
    assert backend.calls == [("increment", "x", 1)]


def test_whoever_only_looks_at_a_buffer_loses_nothing(buffer: Any, backend: Recorder) -> None:
    buffer.incr_counter("x", 1)
    inspect.getmembers(buffer)
    mock.create_autospec(buffer)
    mock.create_autospec(MetricsBuffer, instance=True)
    with mock.patch.object(buffer, "_MetricsBuffer__counters", {}):
        pass
    assert backend.calls == []
    buffer.flush()
    assert backend.calls == [("increment", "x", 1)]


@pytest.fixture
def lock_in_remedy(monkeypatch: pytest.MonkeyPatch) -> threading.Lock:
    """The lock of a remedy that is in place: it sends outside the lock, and survives outages."""
    lock = threading.Lock()

    def flush(self: Any) -> None:
        with lock:
            counters = dict(self._MetricsBuffer__counters)
            self._MetricsBuffer__reset()
        try:
            for name, total in counters.items():
                self.metrics.increment(name, total)
        except Outage:
            for name, total in counters.items():
                self._MetricsBuffer__counters[name] += total

    def incr_counter(self: Any, metric: str, delta: int) -> None:
        with lock:
            self._MetricsBuffer__counters[metric] += delta
        self._MetricsBuffer__throttled_record()

    monkeypatch.setattr(MetricsBuffer, "flush", flush)
    monkeypatch.setattr(MetricsBuffer, "incr_counter", incr_counter)
    return lock


def test_the_backend_is_called_where_the_remedy_calls_it_and_not_under_its_lock(
    lock_in_remedy: threading.Lock,
) -> None:
    calls: list[int] = []

    class Backend:
        def increment(self, _name: str, value: int) -> None:
            assert lock_in_remedy.acquire(blocking=False)
            lock_in_remedy.release()
            calls.append(value)

    buffer: Any = MetricsBuffer(Backend(), flush_interval=0)
    buffer.incr_counter("x", 1)
    buffer.incr_timing("y", 0)  # this package's own, which finds the flush due
    buffer.flush()
    assert calls == [1]


@pytest.mark.usefixtures("lock_in_remedy")
def test_an_error_of_the_backend_is_the_remedys_to_handle() -> None:
    backend = Flaky()
    buffer: Any = MetricsBuffer(backend, flush_interval=1e9)
    buffer.incr_counter("x", 1)
    backend.refused = {"x"}
    buffer.flush()
    backend.refused = set()
    buffer.flush()
    assert backend.calls == [("increment", "x", 1)]


def test_a_remedy_that_writes_only_is_flushed_as_often_as_with_arroyo(
    monkeypatch: pytest.MonkeyPatch, buffer: Any, backend: Recorder
) -> None:
    def incr_counter(self: Any, metric: str, delta: int) -> None:
        self._MetricsBuffer__counters[metric] += delta
        self._MetricsBuffer__throttled_record()

    monkeypatch.setattr(MetricsBuffer, "incr_counter", incr_counter)
    monkeypatch.setattr(MetricsBuffer, "_MetricsBuffer__last_record_time", 0.0)
    for _ in range(100):
        buffer.incr_counter("x", 1)
    assert backend.calls == [("increment", "x", 1)]
    buffer.flush()
    assert backend.calls == [("increment", "x", 1), ("increment", "x", 99)]


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


def with_more_in_a_closure(original: Any) -> Any:
    """It does arroyo's work, and calls something whose name its own words do not have."""

    def flush(self: Any) -> None:
        for name, total in list(self._MetricsBuffer__timers.items()):
            self.metrics.timing(name, total)
        for name, total in list(self._MetricsBuffer__counters.items()):
            self.metrics.increment(name, total)
        original(self)
        self._MetricsBuffer__reset()

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
        with_more_in_a_closure,
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


def test_a_remedy_that_arroyos_own_class_lacks_after_uninstall_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def flush(self: Any) -> None:
        self._MetricsBuffer__reset()

    monkeypatch.setattr(MetricsBuffer, "flush", flush)
    arroyo_metrics_buffer.uninstall()
    try:
        place = f"{__name__}.{flush.__qualname__} ({__file__}:{flush.__code__.co_firstlineno})"
        assert status().reason == (
            "uninstall() was called; arroyo_metrics_buffer.MetricsBuffer.flush is"
            f" {place}, which arroyo's own class does not have"
        )
    finally:
        arroyo_metrics_buffer.install()


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
        assert ": remove that patch; and this release does not know the class: " in reason
        assert "its method gauge() is not known; look for a newer release" in reason
    finally:
        processor.MetricsBuffer = original


def test_uninstall_gives_an_application_its_remedy_back(
    original: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def flush(self: Any) -> None:
        for name, total in list(self._MetricsBuffer__timers.items()):
            self.metrics.timing(name, total)
        for name, total in list(self._MetricsBuffer__counters.items()):
            self.metrics.increment(name, total)
        self._MetricsBuffer__reset()

    original.flush = flush
    arroyo_metrics_buffer.install()
    assert processor.MetricsBuffer is MetricsBuffer
    assert status().protected
    assert len(warnings(caplog)) == 1
    arroyo_metrics_buffer.uninstall()
    assert processor.MetricsBuffer is original
    assert original.flush is flush
