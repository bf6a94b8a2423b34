"""C13 and C14: the import hook sees arroyo however it is imported, and nobody sees the hook."""

from __future__ import annotations

import copy
import importlib
import importlib.resources
import importlib.util
import inspect
import io
import os
import pickle
import runpy
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from importlib.machinery import FrozenImporter, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from arroyo_metrics_buffer._patching.hook import ImportHook
from support.new_interpreter import in_new_interpreter

PROCESSOR = "arroyo.processing.processor"


@pytest.fixture
def hook() -> Iterator[ImportHook]:
    hook = ImportHook()
    yield hook
    hook.stop()
    sys.modules.pop("awaited", None)


@pytest.fixture
def calls(hook: ImportHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the hook calls back about a module ``awaited``: the module, and whether it was used."""
    (tmp_path / "awaited.py").write_text("loader, name = __loader__, __name__\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    called: list[Any] = []
    hook.start({"awaited": lambda *call: called.append(call)})
    return called


def awaited() -> ModuleType:
    return importlib.import_module("awaited")


def import_something_else() -> None:
    sys.modules.pop("this", None)
    with redirect_stdout(io.StringIO()):
        importlib.import_module("this")


class Everything:
    """A finder that finds without asking the others, as pytest's and typeguard's do."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, path, target)


def test_the_module_is_called_back_about_before_anyone_else_can_use_it(calls: list[Any]) -> None:
    module = awaited()
    assert calls == [(module, False)]
    assert awaited() is module
    assert len(calls) == 1


def test_a_module_that_is_imported_anew_or_reloaded_is_called_back_about(calls: list[Any]) -> None:
    first = awaited()
    del sys.modules["awaited"]
    second = awaited()
    importlib.reload(second)
    assert calls == [(first, False), (second, False), (second, False)]


def test_a_module_keeps_its_own_loader(calls: list[Any]) -> None:
    module: Any = awaited()
    for loader in module.__loader__, module.__spec__.loader, module.loader:
        assert type(loader) is SourceFileLoader
    assert "loader, name" in inspect.getsource(module)
    assert calls


def test_a_spec_that_is_only_asked_for_looks_and_pickles_like_any_other(calls: list[Any]) -> None:
    spec = importlib.util.find_spec("awaited")
    plain = PathFinder.find_spec("awaited")
    assert spec is not None
    assert plain is not None
    assert isinstance(spec.loader, SourceFileLoader)
    assert spec.loader.get_source("awaited") == plain.loader.get_source("awaited")  # type: ignore[union-attr]
    assert (
        repr(spec.loader).partition(" object at ")[0] == repr(plain.loader).partition(" object")[0]
    )
    for twin in pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec):  # noqa: S301
        assert type(twin.loader) is SourceFileLoader
        assert twin == plain
    assert calls == []


def test_a_copy_for_another_purpose_is_no_import(calls: list[Any]) -> None:
    spec = importlib.util.find_spec("awaited")
    assert spec is not None
    assert spec.loader is not None
    private = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(private)
    assert calls == []
    assert runpy.run_module("awaited")["name"] == "awaited"
    assert calls == []


def test_a_module_that_waits_to_be_used_is_called_back_about_when_it_is(calls: list[Any]) -> None:
    spec = importlib.util.find_spec("awaited")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["awaited"] = module
    spec.loader.exec_module(module)
    import_something_else()
    assert calls == []
    assert module.name == "awaited"
    assert calls == [(module, False)]


def test_behind_another_finder_it_goes_back_to_the_front(
    hook: ImportHook, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Another:
        def find_spec(self, *_: object) -> None:
            return None

    monkeypatch.setattr(sys, "meta_path", [another := Another(), *sys.meta_path])
    import_something_else()
    assert sys.meta_path.index(hook) < sys.meta_path.index(another)
    assert sys.meta_path.count(hook) == 1
    assert calls == []


def test_a_module_that_another_finder_found_is_called_back_about_at_the_next_import(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "meta_path", [everything := Everything(), *sys.meta_path])
    module = awaited()
    assert calls == []
    sys.meta_path.remove(everything)  # as it would hide the next import too
    import_something_else()
    assert calls == [(module, True)]
    import_something_else()
    assert len(calls) == 1


def test_a_finder_behind_that_asks_all_finders_gets_an_answer(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class AsksAll:
        """As import hooks do that wrap the loader of whatever is found, ddtrace's among them."""

        is_asking = False

        def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
            if name != "awaited" or self.is_asking:
                return None
            self.is_asking = True
            spec = importlib.util.find_spec(name)
            self.is_asking = False
            return spec

    first, *others = sys.meta_path
    monkeypatch.setattr(sys, "meta_path", [first, AsksAll(), *others])
    assert calls == [(awaited(), False)]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="importlib has no such protocol any more")
@pytest.mark.filterwarnings("ignore::ImportWarning")
def test_a_finder_of_the_old_protocol_is_asked_in_its_turn(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "theirs.py").write_text("whose = 'theirs'\n")

    class Old:
        def find_module(self, name: str, _path: object = None) -> Any:
            found = SourceFileLoader(name, str(tmp_path / "theirs.py"))
            return found if name == "awaited" else None

    first, *others = sys.meta_path
    monkeypatch.setattr(sys, "meta_path", [first, old := Old(), *others])
    module: Any = awaited()
    assert module.whose == "theirs"
    sys.meta_path.remove(old)  # type: ignore[arg-type]
    import_something_else()
    assert calls == [(module, True)]


def test_a_finder_that_gives_the_same_spec_again_has_it_wrapped_once(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = PathFinder.find_spec("awaited")

    class Remembers:
        def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
            return spec if name == "awaited" else None

    first, *others = sys.meta_path
    monkeypatch.setattr(sys, "meta_path", [first, Remembers(), *others])
    for _ in range(2000):
        assert importlib.util.find_spec("awaited") is spec
    assert calls == [(awaited(), False)]


def test_a_finder_that_can_not_be_compared_and_a_meta_path_that_can_not_be_changed_do_no_harm(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NotCompared:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

        def find_spec(self, *_: object) -> None:
            return None

    monkeypatch.setattr(sys, "meta_path", [NotCompared(), *sys.meta_path])
    import_something_else()
    monkeypatch.setattr(sys, "meta_path", (NotCompared(), *sys.meta_path))
    import_something_else()
    assert calls == [(awaited(), False)]


def test_what_a_finder_raises_is_raised(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Raises:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "awaited":
                raise RuntimeError("not today")

    first, *others = sys.meta_path
    monkeypatch.setattr(sys, "meta_path", [first, raises := Raises(), *others])
    with pytest.raises(RuntimeError, match="not today"):
        awaited()
    sys.meta_path.remove(raises)
    assert calls == [(awaited(), False)]


def test_a_module_that_fails_is_called_back_about_when_it_succeeds(
    calls: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "awaited.py").write_text("raise RuntimeError('not today')\n")
    importlib.invalidate_caches()
    with pytest.raises(RuntimeError, match="not today"):
        awaited()
    assert calls == []
    (tmp_path / "awaited.py").write_text("now = 'it works'\n")
    importlib.invalidate_caches()
    assert calls == [(awaited(), False)]


@pytest.mark.parametrize("stand_in", [None, 7, Everything()])
def test_whatever_stands_in_for_the_module_imports_go_on(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, stand_in: object
) -> None:
    class Hostile:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

    for each in stand_in, Hostile():
        monkeypatch.setitem(sys.modules, "awaited", each)
        import_something_else()


def test_a_module_is_called_back_about_whatever_its_class_is_called(
    hook: ImportHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "Facade", "_Lazy", "proxy":
        calls: list[Any] = []
        module = type(name, (ModuleType,), {})("awaited")
        monkeypatch.setitem(sys.modules, "awaited", module)
        hook.start({"awaited": lambda *call, calls=calls: calls.append(call)})
        hook.catch_up()
        assert calls == [(module, True)]


def test_a_module_can_be_imported_if_a_finder_finds_it(
    hook: ImportHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raising:
        def find_spec(self, *_: object) -> None:
            raise RuntimeError

    monkeypatch.delitem(sys.modules, "this", raising=False)
    assert hook.can_be_imported("sys")
    assert hook.can_be_imported("this")
    assert not hook.can_be_imported("no_such_module")
    monkeypatch.setattr(sys, "meta_path", [Raising(), *sys.meta_path])
    assert not hook.can_be_imported("this")


def test_a_frozen_module_whose_loader_is_a_class_is_called_back_about(hook: ImportHook) -> None:
    calls: list[Any] = []
    hook.start({"__hello__": lambda *call: calls.append(call)})
    sys.modules.pop("__hello__", None)
    spec = importlib.util.find_spec("__hello__")
    assert pickle.loads(pickle.dumps(spec)).loader is FrozenImporter  # noqa: S301
    with redirect_stdout(io.StringIO()):
        module: Any = importlib.import_module("__hello__")
    assert calls == [(module, False)]
    assert module.__spec__.loader is FrozenImporter


def test_stopped_it_leaves_nothing_behind(hook: ImportHook, calls: list[Any]) -> None:
    hook.stop()
    assert hook not in sys.meta_path
    awaited()
    assert calls == []


def test_threads_that_import_at_once_all_get_a_module_that_was_called_back_about(
    hook: ImportHook, calls: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "awaited.py").write_text("import time; time.sleep(0.05)\n")
    importlib.invalidate_caches()
    seen: list[bool] = []
    hook.start({"awaited": lambda module, _: setattr(module, "was_called_back_about", True)})

    def use() -> None:
        seen.append(hasattr(awaited(), "was_called_back_about"))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 8
    assert calls == []


# With arroyo


def ended(code: str, **environment: str) -> str:
    """What a program prints, in an interpreter that treats warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    ).stdout


PRINT_STATES = """
status = arroyo_metrics_buffer.status()
print(*(target.state for target in status.targets), status.protected)
"""


def test_arroyo_in_a_zip_file_is_patched(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("arroyo")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0])
    with zipfile.ZipFile(tmp_path / "arroyo.zip", "w") as archive:
        for file in source.rglob("*.py"):
            archive.write(file, Path("arroyo", file.relative_to(source)))
    code = """
import arroyo_metrics_buffer, arroyo.backends.kafka.consumer, arroyo.processing.processor as p
assert ".zip" in p.__file__
"""
    printed = ended(code + PRINT_STATES, PYTHONPATH=str(tmp_path / "arroyo.zip"))
    assert printed == "patched patched True\n"


def test_arroyos_resources_and_sources_are_found() -> None:
    code = f"""
import importlib.resources, inspect, arroyo_metrics_buffer
import arroyo.processing.processor as p
assert "class StreamProcessor" in inspect.getsource(p)
assert importlib.resources.files("arroyo.processing").joinpath("processor.py").is_file()
assert type(p.__spec__.loader).__name__ == "SourceFileLoader", {PROCESSOR!r}
"""
    assert ended(code) == ""


def test_arroyo_imported_lazily_is_waited_for_until_it_is_used() -> None:
    code = """
import importlib.util, sys
import arroyo_metrics_buffer, arroyo.processing
def lazily(name):
    spec = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
p, c = lazily("arroyo.processing.processor"), lazily("arroyo.backends.kafka.consumer")
"""
    use = "p.MetricsBuffer, c.ConfluentProducer"
    printed = ended(code + PRINT_STATES + use + PRINT_STATES)
    assert printed == "waiting waiting True\npatched patched True\n"


@in_new_interpreter
def test_arroyo_imported_anew_is_patched_again() -> None:
    import arroyo_metrics_buffer  # noqa: PLC0415

    for _ in range(3):
        module = importlib.import_module(PROCESSOR)
        assert issubclass(module.MetricsBuffer, arroyo_metrics_buffer.MetricsBuffer)
        del sys.modules[PROCESSOR]
        assert arroyo_metrics_buffer.status().targets[0].state == "waiting"


def test_arroyo_found_by_a_finder_in_front_is_patched_when_the_status_is_asked() -> None:
    code = """
import importlib.machinery, sys
import arroyo_metrics_buffer
class Front:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "arroyo":
            return importlib.machinery.PathFinder.find_spec(name, path, target)
sys.meta_path.insert(0, Front())
import arroyo.processing.processor
"""
    assert ended(code + PRINT_STATES) == "patched patched True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork()")
def test_a_child_forked_in_the_middle_of_installing_patches_too() -> None:
    """A thread is held up in install(): the child does not have it, and completes the work."""
    code = """
import os, sys, threading
from arroyo.processing import processor
from arroyo.backends.kafka import consumer
import arroyo_metrics_buffer
from arroyo_metrics_buffer._patching import install
arroyo_metrics_buffer.uninstall()
in_the_middle, go_on = threading.Event(), threading.Event()
def held_up(target):
    in_the_middle.set()
    go_on.wait()
report, install._report = install._report, held_up
thread = threading.Thread(target=arroyo_metrics_buffer.install)
thread.start()
in_the_middle.wait()
install._report = report
if pid := os.fork():
    go_on.set()
    thread.join()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
assert issubclass(processor.MetricsBuffer, arroyo_metrics_buffer.MetricsBuffer)
method = consumer.ConfluentProducer._ConfluentProducer__flush_metrics
assert method.__module__.startswith("arroyo_metrics_buffer.")
"""
    assert ended("import warnings; warnings.simplefilter('ignore')\n" + code) == ""
