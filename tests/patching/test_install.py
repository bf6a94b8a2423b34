"""C13 and the public API: what install(), uninstall() and status() do to arroyo, and what not."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import logging
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from arroyo.processing import processor as arroyo_processor

import arroyo_metrics_buffer
from arroyo_metrics_buffer import MetricsBuffer
from arroyo_metrics_buffer._patching import recognition
from support.programs import python
from support.targets import BUFFER, PRINT_STATE_OF_BUFFER, status_of
from support.threads import run_together

processor: Any = arroyo_processor  # its class is replaced here


def state() -> str:
    return status_of(BUFFER).state


def reason() -> str:
    return status_of(BUFFER).reason


@pytest.mark.parametrize(
    "imports",
    [
        "import arroyo_metrics_buffer, arroyo.processing.processor",
        "import arroyo.processing.processor, arroyo_metrics_buffer",
        "import arroyo, arroyo_metrics_buffer; from arroyo.processing import StreamProcessor",
    ],
)
def test_the_order_of_imports_does_not_matter(imports: str) -> None:
    result = python(imports + PRINT_STATE_OF_BUFFER)
    assert result.stdout == "patched; arroyo uses arroyo_metrics_buffer.MetricsBuffer\n"
    assert result.stderr == ""


def test_importing_the_package_imports_neither_arroyo_nor_confluent_kafka() -> None:
    result = python(
        "import arroyo_metrics_buffer, sys\n"
        "print([name for name in sys.modules if name.startswith(('arroyo.', 'confluent'))])"
        + PRINT_STATE_OF_BUFFER
    )
    assert result.stdout.splitlines() == [
        "[]",
        "waiting; arroyo.processing.processor is not imported yet",
    ]
    assert result.stderr == ""


def test_the_import_costs_little_more_than_that_of_logging_and_typing() -> None:
    """Which modules it brings tells more of that than a stopwatch; benches/imports.py has one."""
    mine = python("import arroyo_metrics_buffer, sys; print(*sys.modules)").stdout.split()
    # From CPython 3.15 on, the first NamedTuple imports annotationlib.
    code = "import gc, logging, typing, sys\nclass Any(typing.NamedTuple):\n  field: int\n"
    free = python(code + "print(*sys.modules)").stdout.split()
    others = {name for name in mine if name.partition(".")[0] != "arroyo_metrics_buffer"}
    assert others - set(free) <= {"__future__"}


def test_a_stream_processor_that_is_made_afterwards_uses_the_replacement() -> None:
    code = """
import arroyo_metrics_buffer
from unittest.mock import Mock
from arroyo.processing import StreamProcessor
from arroyo.types import Topic
made = StreamProcessor(Mock(), Topic("t"), Mock())
print(type(made._StreamProcessor__metrics_buffer))
"""
    result = python(code)
    assert result.stdout == "<class 'arroyo_metrics_buffer.MetricsBuffer'>\n", result.stderr


def test_without_arroyo_the_import_works_and_says_so_once() -> None:
    result = python(
        "import sys; sys.modules['arroyo'] = None; import arroyo_metrics_buffer"
        + PRINT_STATE_OF_BUFFER
    )
    assert result.returncode == 0
    assert result.stdout == "missing; arroyo is not installed\n"
    names = [target.name for target in arroyo_metrics_buffer.status().targets]
    assert result.stderr == "".join(
        f"{name} is not patched: arroyo is not installed\n" for name in names
    )


def test_without_confluent_kafka_arroyo_fails_as_it_does_alone_and_the_target_waits() -> None:
    code = """
import sys; sys.modules["confluent_kafka"] = None
import arroyo_metrics_buffer
try:
    import arroyo.processing.processor
except ImportError as error:
    print(error)
"""
    result = python(code + PRINT_STATE_OF_BUFFER)
    assert result.stdout.splitlines() == [
        "import of confluent_kafka halted; None in sys.modules",
        "waiting; arroyo.processing.processor is not imported yet",
    ]


@pytest.mark.parametrize("first", ["arroyo_metrics_buffer", "arroyo.processing.processor"])
def test_imports_from_two_threads_at_once_end_up_patched(first: str) -> None:
    second = {"arroyo_metrics_buffer", "arroyo.processing.processor"} - {first}
    code = f"""
import importlib, sys, threading
sys.setswitchinterval(1e-6)
start = threading.Barrier(2)
def load(name):
    start.wait()
    importlib.import_module(name)
threads = [threading.Thread(target=load, args=(n,)) for n in ({first!r}, {second.pop()!r})]
for thread in threads: thread.start()
for thread in threads: thread.join()
import arroyo_metrics_buffer
"""
    for _ in range(5):
        result = python(code + PRINT_STATE_OF_BUFFER)
        assert result.stdout.startswith("patched"), result


def test_install_waits_for_another_thread_that_is_importing_the_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The module is in sys.modules, and unfinished, while its import goes on.
    arroyo_metrics_buffer.uninstall()
    unfinished, finish = threading.Event(), threading.Event()

    class Loader(importlib.abc.Loader):
        def exec_module(self, module: types.ModuleType) -> None:
            unfinished.set()
            assert finish.wait(30)
            vars(module)["MetricsBuffer"] = processor.MetricsBuffer

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, _path: Any, _target: Any = None) -> Any:
            if name != processor.__name__:
                return None
            return importlib.machinery.ModuleSpec(name, Loader())

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    monkeypatch.setitem(sys.modules, processor.__name__, processor)
    del sys.modules[processor.__name__]
    importing = threading.Thread(target=importlib.import_module, args=(processor.__name__,))
    importing.start()
    assert unfinished.wait(30)
    assert state() == "disabled"
    installing = threading.Thread(target=arroyo_metrics_buffer.install)
    installing.start()
    installing.join(0.1)
    deadline = time.monotonic() + 30
    while state() == "disabled" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (state(), reason()) == ("waiting", "arroyo.processing.processor is being imported")
    assert status_of(BUFFER).protected
    finish.set()
    importing.join(30)
    installing.join(30)
    assert state() == "patched"
    assert vars(sys.modules[processor.__name__])["MetricsBuffer"] is MetricsBuffer


def test_install_and_uninstall_are_idempotent(upstream: type) -> None:
    for _ in range(3):
        arroyo_metrics_buffer.install()
        assert processor.MetricsBuffer is MetricsBuffer
        assert state() == "patched"
    for _ in range(3):
        arroyo_metrics_buffer.uninstall()
        assert processor.MetricsBuffer is upstream
        assert (state(), reason()) == ("disabled", "uninstall() was called")


@pytest.mark.usefixtures("tiny_switch_interval")
def test_threads_that_install_and_uninstall_leave_one_of_both_states(upstream: type) -> None:
    def toggle() -> None:
        for _ in range(50):
            arroyo_metrics_buffer.install()
            arroyo_metrics_buffer.uninstall()

    run_together(*[toggle] * 4)
    assert processor.MetricsBuffer is upstream
    assert state() == "disabled"
    run_together(*[arroyo_metrics_buffer.install] * 4)
    assert processor.MetricsBuffer is MetricsBuffer


def test_buffers_made_before_go_on_working_after_uninstall() -> None:
    calls = []
    buffer = MetricsBuffer(types.SimpleNamespace(increment=lambda *call: calls.append(call)))
    arroyo_metrics_buffer.uninstall()
    buffer.incr_counter("x", 1)
    buffer.flush()
    assert calls == [("x", 1)]


def test_the_version_is_the_distributions() -> None:
    version = importlib.metadata.version("arroyo-metrics-buffer")
    assert arroyo_metrics_buffer.__version__ == version


def test_status_is_frozen() -> None:
    status = arroyo_metrics_buffer.status()
    for frozen in (status, status.targets[0]):
        field = dataclasses.fields(frozen)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, field, "x")


WANTED = "^on_backend_error must be 'raise', 'log' or callable, not"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"clock": 1}, TypeError, "clock must be callable, not int"),
        ({"on_backend_error": "ignore"}, ValueError, f"{WANTED} 'ignore'$"),
        ({"on_backend_error": "\ud800"}, ValueError, WANTED + r" '\\ud800'$"),
        ({"on_backend_error": 1}, TypeError, f"{WANTED} int$"),
        ({"on_backend_error": b"log"}, TypeError, f"{WANTED} bytes$"),
    ],
)
def test_bad_settings_are_refused_and_change_nothing(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    arroyo_metrics_buffer.uninstall()
    arroyo_metrics_buffer._core.configure(clock=None, on_backend_error=print)
    with pytest.raises(error, match=message):
        arroyo_metrics_buffer.install(**arguments)
    assert state() == "disabled"
    assert arroyo_metrics_buffer.status().on_backend_error is print


# Shapes that are not arroyo's as known


def test_the_arroyo_that_is_installed_is_known() -> None:
    importlib.import_module("arroyo.backends.kafka.consumer")
    targets = arroyo_metrics_buffer.status().targets
    unknown = [target for target in targets if target.state != "patched"]
    assert not unknown, 'see CONTRIBUTING.md, "A new release of arroyo"'


@pytest.fixture
def original(upstream: type) -> Iterator[type]:
    """arroyo's class, in place, the package being uninstalled; put back afterwards."""
    arroyo_metrics_buffer.uninstall()
    yield upstream
    arroyo_metrics_buffer.uninstall()
    processor.MetricsBuffer = upstream


def changed(original: type, **methods: Callable[..., Any] | None) -> type:
    """A class that has arroyo's methods, and others."""
    return type("MetricsBuffer", (), dict(vars(original)) | methods)


def own(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as if it were written in arroyo's file."""
    return types.FunctionType(function.__code__, vars(processor), function.__name__)


def with_a_lock(self: Any) -> None:
    with self.lock:
        self.metrics.timing("x", 1)


def with_tags(self: Any, tags: Any) -> None:
    self.metrics = tags


def one_parameter_more(self: Any, metric: str, delta: int, tags: Any) -> None:
    self._MetricsBuffer__counters[metric] += delta
    self._MetricsBuffer__throttled_record()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda cls: changed(cls, gauge=own(lambda self: None)), "its method gauge() is not known"),
        (lambda cls: changed(cls, flush=own(with_a_lock)), "its method flush() is another"),
        (
            lambda cls: changed(cls, incr_counter=own(one_parameter_more)),
            "incr_counter() is another",
        ),
        (lambda cls: changed(cls, __init__=own(with_tags)), "its method __init__() is another"),
        (
            lambda cls: changed(cls, incr_timing=None, record_timing=vars(cls)["incr_timing"]),
            "it has no method incr_timing()",
        ),
        (lambda cls: changed(cls, flush=None), "it has no method flush()"),
        (lambda cls: type("MetricsBuffer", (cls,), {}), "its base is MetricsBuffer, not object"),
        (lambda _: lambda: None, "it is not a class but 'function'"),
    ],
)
def test_a_class_that_is_not_as_known_is_left_alone_with_a_reason_and_one_record(
    original: type,
    make: Callable[[type], Any],
    expected: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    processor.MetricsBuffer = other = make(original)
    arroyo_metrics_buffer.install()
    arroyo_metrics_buffer.install()
    assert processor.MetricsBuffer is other
    assert state() == "unknown"
    assert expected in reason()
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert expected in record.getMessage()


def test_a_module_without_the_class_is_left_alone(
    original: type, caplog: pytest.LogCaptureFixture
) -> None:
    assert original
    del processor.MetricsBuffer
    arroyo_metrics_buffer.install()
    assert state() == "missing"
    assert reason() == (
        "arroyo.processing.processor has no MetricsBuffer;"
        " look for a newer release of arroyo-metrics-buffer"
    )
    assert len(caplog.records) == 1


def test_a_subclass_that_an_application_put_in_place_stays_after_uninstall_and_is_told(
    upstream: type,
) -> None:
    class Subclass(MetricsBuffer):
        pass

    processor.MetricsBuffer = Subclass
    try:
        arroyo_metrics_buffer.uninstall()
        assert processor.MetricsBuffer is Subclass
        assert (state(), status_of(BUFFER).protected) == ("patched", True)
        assert reason() == (
            f"uninstall() was called, but arroyo uses {__name__}.{Subclass.__qualname__}"
        )
    finally:
        processor.MetricsBuffer = upstream


def test_a_module_that_was_loaded_again_is_seen_and_can_be_patched_again(original: type) -> None:
    arroyo_metrics_buffer.install()
    processor.MetricsBuffer = original
    assert state() == "waiting"
    assert "call install() to patch it" in reason()
    arroyo_metrics_buffer.install()
    assert state() == "patched"


def test_a_patch_by_somebody_else_is_not_undone_by_uninstall(upstream: type) -> None:
    class Theirs:
        pass

    processor.MetricsBuffer = Theirs
    try:
        assert state() == "unknown"
        arroyo_metrics_buffer.uninstall()
        assert processor.MetricsBuffer is Theirs
    finally:
        processor.MetricsBuffer = upstream


def test_a_record_has_the_place_in_the_code_that_tells_it(caplog: pytest.LogCaptureFixture) -> None:
    arroyo_metrics_buffer.uninstall()
    with caplog.at_level(logging.INFO, "arroyo_metrics_buffer"):
        arroyo_metrics_buffer.install()
    assert {record.module for record in caplog.records} == {"install"}


def test_a_module_that_raises_where_it_is_looked_at_is_left_alone_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Raising(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    monkeypatch.setitem(sys.modules, processor.__name__, Raising(processor.__name__))
    assert state() == "unknown"
    assert reason() == "arroyo.processing.processor raises RuntimeError where it is looked at"
    assert not status_of(BUFFER).protected


def test_a_module_that_has_no_class_until_it_is_asked_is_left_alone_and_a_record_tells_it(
    original: type, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module: Any = types.ModuleType(processor.__name__)
    module.__getattr__ = lambda _: original
    monkeypatch.setitem(sys.modules, processor.__name__, module)
    arroyo_metrics_buffer.install()
    assert module.MetricsBuffer is original
    told = {r.getMessage() for r in caplog.records if r.levelno == logging.WARNING}
    assert told == {
        "arroyo.processing.processor.MetricsBuffer is not patched: KeyError('MetricsBuffer')"
    }


@pytest.mark.parametrize(
    ("release", "is_protected"),
    [(None, False), ((2, 48), False), ((1, 1), False), ((1, 0), True), ((0, 9), True)],
)
def test_a_module_without_the_class_is_protected_in_releases_that_buffer_nothing(
    original: type,
    monkeypatch: pytest.MonkeyPatch,
    *,
    release: tuple[int, int] | None,
    is_protected: bool,
) -> None:
    assert original
    del processor.MetricsBuffer
    monkeypatch.setattr(recognition, "release", lambda _: release)
    arroyo_metrics_buffer.install()
    assert state() == "missing"
    assert status_of(BUFFER).protected is is_protected
    assert ("buffers nothing" in reason()) is is_protected
