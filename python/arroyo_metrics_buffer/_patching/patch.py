"""Attributes of arroyo's that are replaced and put back, and what others replace meanwhile."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

# Of any class there is, whatever its metaclass says or does when it is asked.
class_name = type.__dict__["__name__"].__get__
class_module = type.__dict__["__module__"].__get__


# What a reader of a reason can do about it.
NEWER = "look for a newer release of arroyo-metrics-buffer"
REMOVE = "remove that patch"
UPDATE = "update it"


def with_subclasses(classes: Iterable[type]) -> list[type]:
    """Classes, and all that derive from them."""
    found = list(classes)
    for known in found:  # which grows meanwhile
        subclasses: list[type] = type.__subclasses__(known)
        found += (each for each in subclasses if each not in found)
    return found


class Attribute(NamedTuple):
    """What an attribute has to be for this package to do its work."""

    owner: object
    name: str
    value: object


class Change(NamedTuple):
    """Something else than this package's that is in its place now."""

    text: str
    what: str
    """The same to the reader of a reason, who knows which class it is about."""
    is_extension: bool
    """Whether it is known to call what it replaced: a wrapper of it, or a subclass."""


class Before(NamedTuple):
    """What others had changed in what a patch replaces, in words."""

    fixes: str = ""
    """In arroyo's file."""
    patches: str = ""
    """By other objects in the place of arroyo's."""


UNCHANGED = Before()


class Patch:
    """Attributes of a module or a class, to be replaced and put back. Not thread-safe."""

    def __init__(
        self,
        owner: object,
        attributes: dict[str, Any],
        *,
        in_use: bool,
        watched: Iterable[Attribute] = (),
        before: Before = UNCHANGED,
    ) -> None:
        self._owner = owner
        self._attributes = attributes
        self.before = before
        self.originals = {name: vars(owner)[name] for name in attributes}
        self.in_use = in_use
        """Whether anyone may have got hold of the originals before."""
        replaced = (Attribute(owner, name, value) for name, value in attributes.items())
        self.watched = (*replaced, *watched)

    def apply(self) -> None:
        """Replace them."""
        for name, value in self._attributes.items():
            setattr(self._owner, name, value)

    def revert(self) -> None:
        """Put back what nobody else has replaced meanwhile."""
        for name, value in self._attributes.items():
            if vars(self._owner).get(name) is value:
                setattr(self._owner, name, self.originals[name])

    def clean_up(self) -> None:
        """Has to be called after ``revert()``, and may run code of others."""

    def kept_by_others(self) -> list[str]:
        """What stands where ``revert()`` would have put back something, in words."""
        kept = (
            Attribute(self._owner, name, value)
            for name, value in self._attributes.items()
            if vars(self._owner).get(name) is not self.originals[name]
        )
        on_ours = (each for each in self.watched if each.owner is not self._owner)
        return [
            *(
                change.text + (", which has arroyo's own called" if change.is_extension else "")
                for change in changes(kept)
            ),
            *(
                change.text + ", which arroyo's own class does not have"
                for change in changes(on_ours)
            ),
        ]


def changes(watched: Iterable[Attribute]) -> list[Change]:
    """What somebody else has replaced."""
    from inspect import getattr_static  # noqa: PLC0415 - slow to import

    return [
        _change(owner, name, theirs, ours)
        for owner, name, ours in watched
        if (theirs := getattr_static(owner, name, None)) is not ours
    ]


def cure(patches: Iterable[str]) -> str:
    """Say what others have replaced, and what can be done about it; nothing if it is nothing."""
    text = ", ".join(patches)
    return f"{text}: {REMOVE}" if text else ""


def _change(owner: object, attribute: str, theirs: object, ours: object) -> Change:
    place = f"{_name(owner)}.{attribute}"
    is_extension = extends(theirs, ours)
    name = describe(theirs)
    if is_extension and not issubclass(type(theirs), type):
        # Most wrappers have the name of what they wrap.
        name = "a wrapper of this package's" + location(theirs)
    elif name == place:
        name = "another of that name"
    what = "it" if isinstance(owner, ModuleType) else f"its method {attribute}()"
    return Change(f"{place} is {name}", f"{what} is {name}", is_extension)


def extends(theirs: object, ours: object) -> bool:
    """Whether something is known to call what it replaced, or is just that."""
    if theirs is ours:
        return True
    import inspect  # noqa: PLC0415 - slow to import

    with suppress(Exception):  # it wraps itself, or raises where it is looked at
        if isinstance(theirs, type) and isinstance(ours, type):
            return issubclass(theirs, ours)
        return inspect.unwrap(theirs) is ours  # type: ignore[arg-type]
    return False


def describe(thing: object) -> str:
    """What an object is, and where a function is written."""
    if type(thing) is FunctionType:
        # Not by __module__ and __qualname__, which functools.wraps() copies.
        module = thing.__globals__.get("__name__", "?")
        return f"{module}.{thing.__code__.co_qualname}{location(thing)}"
    return _name(thing)


def location(thing: object) -> str:
    """Where a function is written, in brackets."""
    if type(thing) is not FunctionType:
        return ""
    return f" ({thing.__code__.co_filename}:{thing.__code__.co_firstlineno})"


def _name(thing: object) -> str:
    with suppress(Exception):  # of what raises where it is looked at
        if isinstance(thing, ModuleType):
            return thing.__name__
        module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
        if module and name:
            return f"{module}.{name}"
    cls = type(thing)
    return f"an object of {class_module(cls)}.{class_name(cls)}"
