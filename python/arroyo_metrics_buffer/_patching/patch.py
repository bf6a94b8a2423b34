"""Attributes of arroyo's that are replaced and put back, and what others replace meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

# Of any class there is, whatever its metaclass says or does when it is asked.
class_name = type.__dict__["__name__"].__get__
class_module = type.__dict__["__module__"].__get__


class Attribute(NamedTuple):
    """What an attribute has to be for this package to do its work."""

    owner: object
    name: str
    value: object


class Change(NamedTuple):
    """Something else than this package's that is in its place now."""

    text: str
    is_extension: bool
    """Whether it is known to call what it replaced: a wrapper of it, or a subclass."""


class Patch:
    """Attributes of a module or a class, to be replaced and put back. Not thread-safe."""

    def __init__(
        self,
        owner: object,
        attributes: dict[str, Any],
        *,
        in_use: bool,
        watched: Iterable[Attribute] = (),
        clean_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._owner = owner
        self._attributes = attributes
        self.clean_up = clean_up
        """Has to be called after ``revert()``."""
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


def changes(watched: Iterable[Attribute]) -> list[Change]:
    """What somebody else has replaced."""
    from inspect import getattr_static  # noqa: PLC0415 - slow to import

    return [
        _change(f"{_name(owner)}.{name}", theirs, ours)
        for owner, name, ours in watched
        if (theirs := getattr_static(owner, name, None)) is not ours
    ]


def _change(place: str, theirs: object, ours: object) -> Change:
    is_extension = _extends(theirs, ours)
    name = _name(theirs)
    if is_extension and not issubclass(type(theirs), type):
        name = "a wrapper of this package's"  # which has the name of what it wraps
    elif name == place:
        name = "another of that name"
    if type(theirs) is FunctionType:
        name += f" ({theirs.__code__.co_filename}:{theirs.__code__.co_firstlineno})"
    return Change(f"{place} is {name}", is_extension)


def _extends(theirs: object, ours: object) -> bool:
    import inspect  # noqa: PLC0415 - slow to import

    with suppress(Exception):  # it wraps itself, or raises where it is looked at
        if isinstance(theirs, type) and isinstance(ours, type):
            return issubclass(theirs, ours)
        return inspect.unwrap(theirs) is ours  # type: ignore[arg-type]
    return False


def _name(thing: object) -> str:
    with suppress(Exception):  # of what raises where it is looked at
        if isinstance(thing, ModuleType):
            return thing.__name__
        module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
        if module and name:
            return f"{module}.{name}"
    cls = type(thing)
    return f"an object of {class_module(cls)}.{class_name(cls)}"
