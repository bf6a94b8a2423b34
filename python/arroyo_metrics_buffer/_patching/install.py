"""Puts this package's buffers in the place of arroyo's.

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
from types import ModuleType
from typing import Literal

from wrapt import register_post_import_hook

from arroyo_metrics_buffer._core import configure, on_backend_error

from .status import Status, TargetStatus, count_objects, environment
from .targets import TARGETS, Finding, Patch, Target, changes

DISABLE = "ARROYO_METRICS_BUFFER_DISABLE"
ON_BACKEND_ERROR = "ARROYO_METRICS_BUFFER_ON_BACKEND_ERROR"

_logger = logging.getLogger("arroyo_metrics_buffer")


# Guards the four below, and arroyo's classes while they change. Nothing is imported and nothing
# logged with it held: both may wait for a thread that is in the import hook and waits for the lock.
# Reentrant for signal handlers, which may ask for the status.
_lock = threading.RLock()
_disabled: str | None = "install() was not called"
_hooked = False
_patches: dict[Target, Patch] = {}
_reported: dict[Target, Finding] = {}


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if sys.platform != "win32":
    # A child forked while another thread patches would inherit a lock that nobody releases.
    os.register_at_fork(after_in_child=_renew_lock)


def install(
    *,
    clock: Callable[[], float] | None = None,
    on_backend_error: Literal["raise", "log"] | None = None,
) -> Status:
    """Replace arroyo's metrics buffers by thread-safe ones.

    Importing the package does this already; call it for other settings than the defaults. The last
    call's settings hold. Processors that exist already keep arroyo's buffer, producers get the new
    one. May be called from any thread, any number of times, before or after arroyo is imported.
    With ``ARROYO_METRICS_BUFFER_DISABLE=1`` in the environment it changes nothing but the settings,
    and does not end what is in place already.

    Args:
        clock: Returns seconds; what buffers made from now on throttle their flushes by, for tests.
            None stands for the system's monotonic coarse clock.
        on_backend_error: What a flush does with an error of the metrics backend, having put back
            what was not sent: ``"raise"`` it, as arroyo does, or ``"log"`` it, so that an outage of
            the metrics backend can't stop a consumer. What is no Exception, as KeyboardInterrupt is
            none, is always raised. None stands for what the environment has as
            ``ARROYO_METRICS_BUFFER_ON_BACKEND_ERROR``, and for ``"raise"`` where it has nothing.

    Returns:
        The status after it.

    Raises:
        TypeError: ``clock`` is not callable.
        ValueError: ``on_backend_error`` is neither ``"raise"`` nor ``"log"``.
    """
    if on_backend_error is None:
        on_backend_error = _environments_choice()
    configure(clock=clock, on_backend_error=on_backend_error)
    _install()
    return status()


def _install() -> None:
    global _disabled, _hooked
    if _disabled is not None and (veto := _veto()):
        _disabled = veto
        _log(logging.INFO, "arroyo is left as it is: %s", _disabled)
        return
    with _lock:
        _disabled = None
        hooked, _hooked = _hooked, True
    for target in TARGETS:
        if not hooked:
            _patch_on_import(target)
        if target.module in sys.modules:
            _patch(target, in_use=True)
        _report(target)


def uninstall() -> Status:
    """Restore arroyo's own classes, and the settings that the import had.

    Processors that exist already keep the buffer they have; producers go back to arroyo's, with
    what is pending. May be called from any thread, but deliveries in that very moment may get lost.

    Returns:
        The status after it.
    """
    global _disabled
    configure(clock=None, on_backend_error=_environments_choice())
    with _lock:
        _disabled = "uninstall() was called"
        reverted = list(_patches.values())
        for patch in reverted:
            patch.revert()
        _patches.clear()
        _reported.clear()
    for patch in reverted:
        patch.clean_up()
    return status()


def status() -> Status:
    """Tell which of arroyo's classes are replaced at this moment.

    May be called from any thread. If arroyo was imported before it could be patched, this looks for
    buffers of arroyo's own among all objects of the process: some 50 ms for a million, in which a
    thread that needs the GIL waits.
    """
    return Status(tuple(map(_status, TARGETS)), on_backend_error(), environment())


def install_on_import() -> None:
    """Install with the settings that the environment has, else the defaults."""
    configure(clock=None, on_backend_error=_environments_choice())
    _install()


def _environments_choice() -> Literal["raise", "log"]:
    value = os.environ.get(ON_BACKEND_ERROR) or "raise"
    if value == "log":
        return "log"
    if value != "raise":
        message = "errors of the metrics backend are raised: %s must be 'raise' or 'log', not %r"
        _log(logging.WARNING, message, ON_BACKEND_ERROR, value)
    return "raise"


def _veto() -> str | None:
    """What the environment has against it."""
    value = os.environ.get(DISABLE, "").strip()
    if value.lower() in ("1", "true", "yes", "on"):
        return f"{DISABLE}={value} is in the environment"
    if value.lower() not in ("", "0", "false", "no", "off"):
        message = "arroyo is patched all the same: %s must be '1' or '0', not %r"
        _log(logging.WARNING, message, DISABLE, value)
    return None


def _patch_on_import(target: Target) -> None:
    is_registering = True

    def imported(_module: ModuleType) -> None:
        # Called at once if the module is loaded already.
        _patch(target, in_use=is_registering)
        _report(target)

    register_post_import_hook(imported, target.module)
    is_registering = False


def _patch(target: Target, *, in_use: bool) -> None:
    """Patch a module that is loaded, or is being loaded and not in use yet."""
    # Waits if another thread is in the middle of importing it. Should that thread fail, so would
    # this import; then there is nothing to patch yet, and the hook is still in place.
    with suppress(ImportError):
        module = importlib.import_module(target.module)
        with _lock:
            found = target.judge(getattr(module, target.attribute, None))
            if _disabled is None and found.state == "waiting":
                _patches[target] = patch = target.patch(module, in_use=in_use)
                patch.apply()


def _status(target: Target) -> TargetStatus:
    module = sys.modules.get(target.module)
    # As importlib marks it. Asked first: a thread may finish it meanwhile.
    is_unfinished = getattr(getattr(module, "__spec__", None), "_initializing", False)
    found = _find(target, module)
    if found.state in ("waiting", "missing") and is_unfinished:
        reason = f"{target.module} is being imported"
        found = Finding("waiting", reason, is_protected=True)
    with _lock:
        patch = _patches.get(target)
        changed = changes(patch.watched if patch else target.watched)
        arroyos = target.arroyos_own(patch)
    unpatched = count_objects(arroyos)
    return TargetStatus(
        name=target.name,
        state=found.state,
        reason=found.reason,
        changes=tuple(change.text for change in changed),
        unpatched=unpatched,
        protected=found.is_protected
        and all(change.is_extension for change in changed)
        and unpatched == 0,
    )


def _find(target: Target, module: ModuleType | None) -> Finding:
    if (disabled := _disabled) is not None:
        return Finding("disabled", disabled, is_protected=False)
    if module is None:
        return _find_before_import(target)
    with _lock:
        return target.judge(getattr(module, target.attribute, None))


def _find_before_import(target: Target) -> Finding:
    package = target.module.partition(".")[0]
    if not _can_be_imported(package):
        return Finding("missing", f"{package} is not installed", is_protected=False)
    return Finding("waiting", f"{target.module} is not imported yet", is_protected=True)


def _report(target: Target) -> None:
    """Log what has become of a target, once."""
    found = _find(target, sys.modules.get(target.module))
    with _lock:
        if _reported.get(target) == found:
            return
        _reported[target] = found
    if found.state == "patched":
        _log(logging.INFO, "%s is patched: %s", target.name, found.reason)
    elif found.state == "missing" and found.is_protected:
        _log(logging.INFO, "%s needs no patch: %s", target.name, found.reason)
    elif found.state in ("missing", "unknown"):
        _log(logging.WARNING, "%s is not patched: %s", target.name, found.reason)


def _log(level: int, message: str, *arguments: object) -> None:
    # A logging filter may raise, which must fail neither this package's import nor arroyo's.
    with suppress(Exception):
        _logger.log(level, message, *arguments)


def _can_be_imported(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except Exception:  # noqa: BLE001 - a module without a spec, whatever an import hook raises
        return package in sys.modules
