"""What has become of the targets, at the moment of asking."""

from __future__ import annotations

import gc
from types import ModuleType
from typing import TYPE_CHECKING

from arroyo_metrics_buffer._core import on_backend_error

from .ending import ending
from .hook import is_half_imported, loaded
from .patch import Patch, changes, cure, with_subclasses
from .state import installation
from .targets import TARGETS, Finding, Target

if TYPE_CHECKING:
    from .status import Status, TargetStatus


def status() -> Status:
    """Tell which of arroyo's classes, and of sentry-streams' if there are any, are replaced now.

    May be called from any thread. If one was imported before it could be patched, this looks for
    buffers of the replaced class among all objects of the process: some 50 ms for a million, in
    which a thread that needs the GIL waits.
    """
    # Slow to import, and not with the lock held, under which changes() needs it.
    import inspect  # noqa: F401, PLC0415 # pyright: ignore[reportUnusedImport]

    from .status import Status, environment  # noqa: PLC0415

    installation.hook.catch_up()
    targets = tuple(_status(target) for target in TARGETS if _is_concerned(target))
    return Status(targets, on_backend_error(), ending.is_on, environment())


def find(target: Target, module: ModuleType | None) -> Finding:
    """Find out what a target's name stands for in its module; None is a module not imported yet."""
    with installation.lock:
        disabled = installation.disabled
        found = None if module is None else target.judge_in(module)
        patch = installation.patches.get(target)
        reverted = installation.reverted.get(target)
    if disabled is not None:
        return _find_disabled(disabled, found, reverted)
    if found is None:
        return _find_before_import(target)
    if found.state != "patched" or patch is None:
        return found
    return found.with_reasons(*patch.before)


def _find_disabled(reason: str, found: Finding | None, reverted: Patch | None) -> Finding:
    if found is not None and found.state == "patched":  # by others, who use this package's class
        return found._replace(reason=f"{reason}, but {found.reason}")
    others = reverted.kept_by_others() if reverted is not None else []
    return Finding("disabled", reason, is_protected=False).with_reasons(*others)


def _is_concerned(target: Target) -> bool:
    """Whether anything is to be said of a target in this environment."""
    return (
        not target.is_optional
        or loaded(target.module) is not None
        or installation.hook.can_be_imported(target.package)
    )


def _find_before_import(target: Target) -> Finding:
    if not installation.hook.can_be_imported(target.package):
        return Finding("missing", f"{target.package} is not installed", is_protected=False)
    return Finding("waiting", f"{target.module} is not imported yet", is_protected=True)


def _status(target: Target) -> TargetStatus:
    from .status import TargetStatus  # noqa: PLC0415 - slow to import

    module = loaded(target.module)
    # Asked before the class is: another thread may finish the import.
    may_not_be_there_yet = is_half_imported(module)
    found = find(target, module)
    if found.state in ("waiting", "missing") and may_not_be_there_yet:
        found = Finding("waiting", f"{target.module} is being imported", is_protected=True)
    with installation.lock:
        patch = installation.patches.get(target)
        changed = changes(patch.watched if patch else target.watched)
        unpatched_classes = target.unpatched_classes(patch)
    if found.state == "patched":
        found = found.with_reasons(cure(each.what for each in changed if not each.is_extension))
    unpatched = count_objects(unpatched_classes)
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


def count_objects(classes: list[type]) -> int | None:
    """How many objects there are of some classes and of their subclasses.

    It looks at every object that the garbage collector knows. None if ``gc.freeze()`` has hidden
    some from it, which nothing but ``gc.unfreeze()``, the application's, would bring back.
    """
    if not classes:
        return 0
    asked, classes = classes, with_subclasses(classes)
    # Unlike gc.get_objects(), this hands out no tuple that another thread is in the middle of
    # making, which it could then not finish (CPython issue 39117): only what refers to the classes.
    # The __mro__ of a class does, and is older than its objects: where the collector does not see
    # that, gc.freeze() was called. gc.get_freeze_count() does not tell: CPython 3.12 counts its
    # immortal objects too.
    found = gc.get_referrers(*classes)
    if not all(any(each is known.__mro__ for each in found) for known in asked):
        return None
    return sum(type(each) in classes for each in found)
