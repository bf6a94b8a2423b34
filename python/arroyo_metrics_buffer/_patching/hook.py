"""Sees the imports of some modules, for as long as the process lives.

A hook that fires once is not enough: a module may be dropped and imported anew, and other finders
may come first later. So the finder here stays in ``sys.meta_path``. It finds nothing itself: it
asks the other finders, and wraps the loader that they give.

``run`` executes this file when an interpreter starts, without the package. So it imports nothing:
an application's own modules may have the names of the standard library's.
"""

from __future__ import annotations

import sys
from _thread import _local  # pyright: ignore[reportPrivateUsage] - threading.local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType
    from typing import Any

    # Gets a module, and whether others may have used it before.
    Call = Callable[[ModuleType, bool], None]


def loaded(name: str) -> ModuleType | None:
    """A module that is loaded or being loaded; None if it is not, or will be when it is used."""
    module = sys.modules.get(name)
    # As importlib.util.LazyLoader leaves it. To look into it would load it.
    return None if type(module).__name__ == "_LazyModule" else module


def is_half_imported(module: ModuleType | None) -> bool:
    """Whether the module's code still runs, as importlib marks that."""
    try:
        return getattr(getattr(module, "__spec__", None), "_initializing", False) is True
    except Exception:  # noqa: BLE001 - of what is no module, though it stands in the place of one
        return False


class ImportHook:
    """A finder that calls back whenever one of some modules is imported.

    It goes back to the front of ``sys.meta_path`` when it finds itself behind another finder. A
    module that was loaded past it is called back about after the next import of anything. There is
    no lock, since forks, signal handlers and other threads come at any moment: a call back may come
    twice.
    """

    def __init__(self) -> None:
        self._calls: Mapping[str, Call] = {}
        self._seen: dict[str, ModuleType] = {}  # those that were called back about
        self._finding = _local()

    def start(self, calls: Mapping[str, Call]) -> None:
        """Wait for modules, by name."""
        self._calls = calls
        self._go_first()

    def stop(self) -> None:
        """Wait for nothing."""
        self._calls = {}
        self._leave()

    def catch_up(self) -> None:
        """Call back about modules that were loaded past this finder."""
        if self._calls:
            self._go_first()
        for name in self._missed():
            self._call(name, sys.modules[name], was_used=True)

    def can_be_imported(self, name: str) -> bool:
        """Whether there is a top-level module of that name."""
        try:
            if name in sys.modules:
                return bool(sys.modules[name])  # it may be None
            return self._ask_the_others(name, None, None) is not None
        except Exception:  # noqa: BLE001 - whatever a finder raises
            return False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """What importlib calls: how to load a module, or None for the other finders to tell."""
        self._go_first()
        # A finder behind this one may itself ask all finders.
        if getattr(self._finding, "name", None) == name:
            return None
        if name not in self._calls and not self._missed():
            return None
        self._finding.name = name
        try:
            spec = self._ask_the_others(name, path, target)
        finally:
            self._finding.name = None
        loader = getattr(spec, "loader", None)
        # A finder may give the same spec again.
        if type(loader) is not Loader and hasattr(loader, "exec_module"):
            spec.loader = Loader(loader, name, self._executed)
        return spec

    def _ask_the_others(self, name: str, path: Any, target: Any) -> Any:
        for finder in self._others():
            find_spec = getattr(finder, "find_spec", None)
            if find_spec is None:  # of the protocol before Python 3.12: importlib knows how to ask
                return None
            if (spec := find_spec(name, path, target)) is not None:
                return spec
        return None

    def _others(self) -> list[Any]:
        # By identity: what stands there may compare as it likes.
        return [finder for finder in sys.meta_path if finder is not self]

    def _executed(self, name: str, module: ModuleType) -> None:
        # Nothing is called in find_spec(): importlib has a lock then that other imports wait for.
        # A module that somebody loads as a copy, for another purpose, is not in sys.modules.
        if name in self._calls and sys.modules.get(name) is module:
            self._call(name, module, was_used=False)
        self.catch_up()

    def _missed(self) -> list[str]:
        return [
            name
            for name in self._calls
            if (module := loaded(name)) is not None
            if module is not self._seen.get(name) and not is_half_imported(module)
        ]

    def _call(self, name: str, module: ModuleType, *, was_used: bool) -> None:
        self._seen[name] = module
        if (call := self._calls.get(name)) is not None:
            call(module, was_used)

    def _go_first(self) -> None:
        if self._calls and not (sys.meta_path and sys.meta_path[0] is self):
            self._leave()
            try:
                sys.meta_path.insert(0, self)
            except Exception:  # noqa: BLE001 - of what somebody has put there, a tuple say
                return

    def _leave(self) -> None:
        try:
            for index in reversed(range(len(sys.meta_path))):
                if sys.meta_path[index] is self:
                    del sys.meta_path[index]
        except Exception:  # noqa: BLE001 - the same, or another thread changes it
            return


class Loader:
    """A module's loader, and what to call when it has executed the module.

    To all who look at it, it is the loader. The module and its spec get the loader itself before
    any code of the module runs.
    """

    def __init__(self, loader: Any, name: str, call: Callable[[str, ModuleType], None]) -> None:
        self._loader = loader
        self._name = name
        self._call = call

    def exec_module(self, module: ModuleType) -> None:
        """What importlib calls: run the module's code."""
        spec: Any = module.__spec__
        if getattr(spec, "loader", None) is self:
            spec.loader = self._loader
        if getattr(module, "__loader__", None) is self:
            module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._call(self._name, module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __repr__(self) -> str:
        return repr(self._loader)

    def __reduce__(self) -> Any:
        # The loader is what is pickled. It may be a class, which has no method for that.
        from copy import copy  # noqa: PLC0415

        return copy, (self._loader,)

    def _class(self) -> Any:
        return type(self._loader)  # pyright: ignore[reportUnknownVariableType]

    __class__: Any = property(_class)
