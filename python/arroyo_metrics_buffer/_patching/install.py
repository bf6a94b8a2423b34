"""Puts this package's buffers in the place of arroyo's and sentry-streams'.

A module that is loaded is patched at once, one that is not as soon as it is; nothing is imported
for it. What is not recognised is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from arroyo_metrics_buffer._core import configure

from . import variables
from .ending import ending
from .hook import loaded
from .log import log
from .look import find, status
from .state import installation
from .targets import TARGETS, Target

if TYPE_CHECKING:
    from .status import Status


def install_on_import() -> None:
    """Install with the settings that the environment has, else the defaults."""
    _configure_by_environment()
    _patch_all()


def install(
    *,
    clock: Callable[[], float] | None = None,
    on_backend_error: Literal["raise", "log"] | Callable[[Exception], object] | None = None,
    flush_at_exit: bool | None = None,
) -> Status:
    """Replace the metrics buffers of arroyo and of sentry-streams by thread-safe ones.

    Importing the package does this already; call it for other settings than the defaults. The last
    call's settings hold. Processors that exist already keep arroyo's buffer, producers get the new
    one. May be called from any thread, any number of times, before or after arroyo is imported.
    With ``ARROYO_METRICS_BUFFER_DISABLE=1`` in the environment it changes nothing but the settings,
    and does not end what is in place already.

    Args:
        clock: Returns seconds; what buffers made from now on throttle their flushes by, for tests.
            None stands for the system's monotonic coarse clock.
        on_backend_error: What a flush does with an error of the metrics backend, having put back
            what was not sent. ``"raise"``: raise it, as arroyo does. ``"log"``: log it, so that an
            outage of the metrics backend can't stop a consumer. The first error of an outage is an
            ERROR record with its traceback. While the outage lasts there is at most one WARNING a
            minute, and one when it ends. A callable: log as well, and call it with the exception of
            each flush that failed. What it raises is reported by ``sys.unraisablehook``. What is no
            Exception, as KeyboardInterrupt is none, is always raised. None stands for what the
            environment has as ``ARROYO_METRICS_BUFFER_ON_BACKEND_ERROR``, and for ``"raise"`` where
            it has nothing.
        flush_at_exit: Whether what is pending in this package's buffers is sent when the process
            ends, by the thread that ends it. None stands for what the environment has as
            ``ARROYO_METRICS_BUFFER_FLUSH_AT_EXIT``, and for True where it has nothing.

    Returns:
        The status after it.

    Raises:
        TypeError: ``clock`` is not callable, ``on_backend_error`` neither a str nor callable, or
            ``flush_at_exit`` no bool.
        ValueError: ``on_backend_error`` is a str, and neither ``"raise"`` nor ``"log"``.
    """
    if on_backend_error is None:
        on_backend_error = variables.on_backend_error()
    if flush_at_exit is None:
        flush_at_exit = variables.flush_at_exit()
    elif type(flush_at_exit) is not bool:
        raise TypeError(f"flush_at_exit must be True or False, not {flush_at_exit!r}")
    configure(clock=clock, on_backend_error=on_backend_error)
    ending.is_on = flush_at_exit
    _patch_all()
    return status()


def uninstall() -> Status:
    """Restore arroyo's own classes, and the settings that the import had.

    Processors that exist already keep the buffer they have; producers go back to arroyo's, with
    what is pending. A method of this package's that others have wrapped stays in its wrapper, and
    calls arroyo's own. May be called from any thread, but deliveries in that very moment may get
    lost.

    Returns:
        The status after it.
    """
    _configure_by_environment()
    with installation.lock:
        installation.disabled = "uninstall() was called"
        installation.hook.stop()
        reverted = installation.patches
        for patch in reverted.values():
            patch.revert()
        installation.reverted = installation.reverted | reverted
        installation.patches = {}
        installation.reported.clear()
    # Also what an earlier call has put back: it may have ended here for want of memory.
    for patch in list(installation.reverted.values()):
        patch.clean_up()
    return status()


def _configure_by_environment() -> None:
    configure(clock=None, on_backend_error=variables.on_backend_error())
    ending.is_on = variables.flush_at_exit()


def _patch_all() -> None:
    # The environment keeps from patching, but does not end what is in place already.
    if installation.disabled is not None and (reason := variables.reason_to_disable()):
        with installation.lock:
            installation.disabled = reason
        log(logging.INFO, "arroyo is left as it is: %s", reason)
        return
    with installation.lock:
        installation.disabled = None
        installation.hook.start({target.module: partial(_patch, target) for target in TARGETS})
    for target in TARGETS:
        if loaded(target.module) is not None:
            _patch_loaded(target)
        elif target.is_optional:
            continue
        _report(target)


def _patch_loaded(target: Target) -> None:
    from importlib import import_module  # noqa: PLC0415 - which few programs need

    # Waits for another thread that is in the middle of importing the module. Should its import
    # fail, so does this one: then there is nothing to patch yet, and the hook is in place.
    with suppress(ImportError):
        _patch(target, import_module(target.module), was_used=True)


def _patch(target: Target, module: ModuleType, was_used: bool) -> None:  # noqa: FBT001 - a callback
    try:
        with installation.lock:
            found = target.judge_in(module)
            if installation.disabled is None and found.state == "waiting":
                installation.patches[target] = patch = target.patch(module, in_use=was_used)
                patch.apply()
    except Exception as error:  # noqa: BLE001 - an import of arroyo must not fail for it
        log(logging.WARNING, "%s is not patched: %r", target.name, error)
    else:
        _report(target)


def _report(target: Target) -> None:
    """Log what has become of a target, once."""
    found = find(target, loaded(target.module))
    with installation.lock:
        if installation.reported.get(target) == found:
            return
        installation.reported[target] = found
        patch = installation.patches.get(target)
    if found.state == "patched":
        level = logging.WARNING if patch and patch.before.patches else logging.INFO
        log(level, "%s is patched: %s", target.name, found.reason)
    elif found.state == "missing" and found.is_protected:
        log(logging.INFO, "%s needs no patch: %s", target.name, found.reason)
    elif found.state in ("missing", "unknown"):
        log(logging.WARNING, "%s is not patched: %s", target.name, found.reason)
