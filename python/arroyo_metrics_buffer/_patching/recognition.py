"""Which known shape a class has, and what others have changed in it."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from . import fixes, remedies
from .patch import NEWER, REMOVE, Before, class_module, cure, describe
from .shapes import Shape, difference

UNKNOWN = "this release does not know the class"
# Not by importlib.metadata: its import could wait for a thread that waits for the installation's
# lock, which is held here.
_METADATA = (".dist-info", ".egg-info")


def match(
    cls: object, known: Sequence[Shape], *, kept: Collection[str], may_be_fixed: Callable[[], bool]
) -> tuple[Shape, Before] | None:
    """Find the shape that a class has but for what others have changed; None if there is none.

    Methods that are kept have to be the class's own. Fixes that are made by hand are looked for
    only where they may be: a newer release may have such words in its own code.
    """
    if not isinstance(cls, type):
        return None
    found = [
        (shape, before)
        for shape in known
        if (before := _match(cls, shape, kept, may_be_fixed)) is not None
    ]
    # Two releases may differ in nothing but a method that is not arroyo's any more.
    return found[0] if len(found) == 1 else None


def _match(
    cls: type, shape: Shape, kept: Collection[str], may_be_fixed: Callable[[], bool]
) -> Before | None:
    theirs = remedies.others_methods(cls, shape)
    if not all(
        name not in kept and remedies.is_superfluous(cls, name, theirs[name], shape)
        for name in theirs
    ):
        return None
    fixed, found = fixes.with_fixes(cls, shape, ignored=theirs)
    if difference(cls, fixed, ignored=theirs) is not None:
        return None
    if found and not may_be_fixed():
        return None
    package = package_of(cls)
    by_hand = f"{package}'s file is fixed by hand ({', '.join(found)}), which can be removed"
    return Before(by_hand if found else "", _patches(theirs, "was"))


def why_not(cls: object, known: Sequence[Shape], package: str) -> str:
    """Why a class of a package has none of the known shapes, and what to do about it."""
    newest = difference(cls, known[0])
    if not isinstance(cls, type):
        return f"{UNKNOWN}: {newest}: {REMOVE}"
    if package_of(cls) != package:
        return f"{UNKNOWN}: {newest}; it is {describe(cls)}: {REMOVE}"
    theirs = remedies.others_methods(cls, known[0])
    if not theirs:
        return f"{UNKNOWN}: {newest}; {NEWER}"
    others = [difference(cls, shape, ignored=theirs) for shape in known]
    if None in others:
        return _patches(theirs, "is")
    return f"{_patches(theirs, 'is')}; and {UNKNOWN}: {others[0]}; {NEWER}"


def _patches(theirs: dict[str, object], verb: str) -> str:
    return cure(f"its method {name}() {verb} {describe(theirs[name])}" for name in sorted(theirs))


def package_of(cls: type) -> str:
    """The package that a class is from."""
    return str(class_module(cls)).partition(".")[0]


def release(distribution: str) -> tuple[int, ...] | None:
    """The numbers of a distribution's installed release; None if none can be told."""
    for folder in sys.path:
        with suppress(OSError):
            for name in os.listdir(folder or "."):  # noqa: PTH208 - pathlib is slow to import
                if name.startswith(f"{distribution}-") and name.endswith(_METADATA):
                    numbers = name.rpartition(".")[0].split("-")[1].split(".")
                    return tuple(map(int, itertools.takewhile(str.isdecimal, numbers))) or None
    return None
