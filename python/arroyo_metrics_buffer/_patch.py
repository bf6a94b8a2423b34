"""Puts this package's buffer in the place of arroyo's.

A module that is loaded is patched at once, one that is not as soon as it is; nothing is imported
for it. What is not recognised is left alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from wrapt import register_post_import_hook

from . import _core, _shape

_logger = logging.getLogger("arroyo_metrics_buffer")

State = Literal["patched", "waiting", "missing", "unknown", "disabled"]


@dataclass(frozen=True)
class TargetStatus:
    """Whether one class of arroyo is replaced.

    Attributes:
        name: The class, as ``module.Class``.
        state: ``patched``; ``waiting`` for its module to be imported; ``missing``, if arroyo or the
            class is not there; ``unknown``, if the class is none that this package can replace;
            ``disabled``, if this package is not installed.
        reason: Why, in words.
    """

    name: str
    state: State
    reason: str


@dataclass(frozen=True)
class Status:
    """Whether arroyo's buffers are replaced, at the moment of asking.

    Attributes:
        targets: One entry per class of arroyo that this package replaces.
    """

    targets: tuple[TargetStatus, ...]


@dataclass(frozen=True, eq=False)
class _Target:
    """A class of arroyo, the shape it is recognised by, and what replaces it."""

    module: str
    attribute: str
    shape: _shape.Shape
    replacement: type

    @property
    def name(self) -> str:
        return f"{self.module}.{self.attribute}"


_TARGETS = (
    _Target(
        "arroyo.processing.processor",
        "MetricsBuffer",
        _shape.METRICS_BUFFER,
        _core.MetricsBuffer,
    ),
)

# Guards the four below. Nothing is imported and nothing logged with it held: both may wait for a
# thread that is in the import hook and waits for the lock.
_lock = threading.Lock()
_disabled: str | None = "install() was not called"
_hooked = False
_originals: dict[_Target, Any] = {}
_reported: dict[_Target, TargetStatus] = {}


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if sys.platform != "win32":
    # A child forked while another thread patches would inherit a lock that nobody releases.
    os.register_at_fork(after_in_child=_renew_lock)


def install(
    *,
    clock: Callable[[], float] | None = None,
    on_backend_error: Literal["raise", "log"] = "raise",
) -> Status:
    """Replace arroyo's metrics buffers by thread-safe ones.

    Importing the package does this already; call it for other settings than the defaults. The last
    call's settings hold. Buffers that exist already stay what they are. May be called from any
    thread, any number of times, before or after arroyo is imported.

    Args:
        clock: Returns seconds; what buffers made from now on throttle their flushes by, for tests.
            None stands for the system's monotonic coarse clock.
        on_backend_error: What a flush does with an error of the metrics backend, having put back
            what was not sent: ``"raise"`` it, as arroyo does, or ``"log"`` it, so that an outage of
            the metrics backend can't stop a consumer. KeyboardInterrupt, SystemExit and
            GeneratorExit are always raised.

    Returns:
        The status after it.

    Raises:
        TypeError: ``clock`` is not callable.
        ValueError: ``on_backend_error`` is neither ``"raise"`` nor ``"log"``.
    """
    global _disabled, _hooked
    _core.configure(clock=clock, on_backend_error=on_backend_error)
    with _lock:
        _disabled = None
        hooked, _hooked = _hooked, True
    for target in _TARGETS:
        if not hooked:
            register_post_import_hook(_hook(target), target.module)
        if target.module in sys.modules:
            _patch(target)
        _report(target)
    return status()


def uninstall() -> Status:
    """Restore arroyo's own classes, and the settings that ``install()`` may have changed.

    Buffers that exist already stay what they are. May be called from any thread.

    Returns:
        The status after it.
    """
    global _disabled
    _core.configure(clock=None, on_backend_error="raise")
    with _lock:
        _disabled = "uninstall() was called"
        for target, original in _originals.items():
            module = sys.modules.get(target.module)
            if getattr(module, target.attribute, None) is target.replacement:
                setattr(module, target.attribute, original)
        _originals.clear()
        _reported.clear()
    return status()


def status() -> Status:
    """Tell which of arroyo's classes are replaced at this moment. May be called from any thread."""
    return Status(tuple(map(_status, _TARGETS)))


def install_on_import() -> None:
    """Install, unless the environment says otherwise."""
    global _disabled
    if os.environ.get("ARROYO_METRICS_BUFFER_DISABLE") == "1":
        _disabled = "ARROYO_METRICS_BUFFER_DISABLE=1 was set when the package was imported"
    else:
        install()


def _hook(target: _Target) -> Callable[[ModuleType], None]:
    def imported(_module: ModuleType) -> None:
        _patch(target)
        _report(target)

    return imported


def _patch(target: _Target) -> None:
    """Patch a module that is loaded, or is being loaded."""
    # Waits if another thread is in the middle of importing it. Should that thread fail, so would
    # this import; then there is nothing to patch yet, and the hook is still in place.
    with suppress(ImportError):
        module = importlib.import_module(target.module)
        with _lock:
            original = getattr(module, target.attribute, None)
            if _disabled is None and _shape.difference(original, target.shape) is None:
                _originals[target] = original
                setattr(module, target.attribute, target.replacement)


def _status(target: _Target) -> TargetStatus:
    state, reason = _state(target)
    return TargetStatus(target.name, state, reason)


def _state(target: _Target) -> tuple[State, str]:
    if (disabled := _disabled) is not None:
        return "disabled", disabled
    module = sys.modules.get(target.module)
    if module is None:
        return _state_before_import(target)
    return _state_of(getattr(module, target.attribute, None), target)


def _state_before_import(target: _Target) -> tuple[State, str]:
    package = target.module.partition(".")[0]
    if not _can_be_imported(package):
        return "missing", f"{package} is not installed"
    return "waiting", f"{target.module} is not imported yet"


def _state_of(current: object, target: _Target) -> tuple[State, str]:
    if current is None:
        return "missing", f"{target.module} has no {target.attribute}"
    if isinstance(current, type) and issubclass(current, target.replacement):
        return "patched", f"arroyo uses {current.__module__}.{current.__qualname__}"
    difference = _shape.difference(current, target.shape)
    if difference is None:
        return "waiting", f"{target.module} was imported anew, call install() to patch it"
    return "unknown", f"{target.name} is left alone: {difference}"


def _report(target: _Target) -> None:
    """Log what has become of a target, once."""
    now = _status(target)
    with _lock:
        if _reported.get(target) == now:
            return
        _reported[target] = now
    # A logging filter may raise, which must fail neither this package's import nor arroyo's.
    with suppress(Exception):
        if now.state == "patched":
            _logger.info("%s is patched: %s", now.name, now.reason)
        elif now.state in ("missing", "unknown"):
            _logger.warning("%s is not patched: %s", now.name, now.reason)


def _can_be_imported(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except Exception:  # noqa: BLE001 - a module without a spec, whatever an import hook raises
        return package in sys.modules
