"""Functions that others have put in the place of methods of arroyo's own class.

Some are an application's remedy for the race: they work on the private tables of arroyo's class and
do its work alone. With this package's class in place they are superfluous. Others wrap what they
have replaced, or do something that can't be told from here: a class that has one is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FunctionType
from typing import Any

from .fixes import of_method, words_of_locks
from .patch import class_module
from .shapes import Method, Shape, attributes_of, method_of

_VARIADIC = 0x04 | 0x08  # inspect.CO_VARARGS and CO_VARKEYWORDS


def others_methods(cls: type, known: Shape) -> dict[str, Any]:
    """What stands in a class for methods and is not the code of the class's own module."""
    return {
        name: value
        for name, value in attributes_of(cls).items()
        if (not _is_of(cls, value) if type(value) is FunctionType else _hides(value, name, known))
    }


def is_superfluous(cls: type, name: str, function: object, known: Shape) -> bool:
    """Whether a function does nothing but what this package's class does in its own way.

    That is known of the words of arroyo's own method, with those of a fix by hand. Any other word
    may be a handler of errors, a metric of the application's, or a call of what it has replaced.
    """
    if type(function) is not FunctionType or (method := known.methods.get(name)) is None:
        return False
    actual = method_of(function)
    if name == "__init__":
        return _only_adds_a_lock(actual, method, dict(_originals_called(cls, function)))
    takes_the_same = len(actual.parameters) == len(method.parameters) and (
        not function.__code__.co_flags & _VARIADIC
    )
    is_alone = not function.__closure__ and not _is_wrapper(function)
    same_parameters = actual._replace(parameters=method.parameters)
    return takes_the_same and is_alone and of_method(same_parameters, method) is not None


def _only_adds_a_lock(actual: Method, known: Method, called: Mapping[str, FunctionType]) -> bool:
    # To a constructor that is the known one, or that it calls: its backend may be another else.
    words = actual.words - words_of_locks(actual.words)
    if not called:
        return words == known.words
    return words <= called.keys() and all(method_of(each) == known for each in called.values())


def _is_of(cls: type, function: FunctionType) -> bool:
    return _module(function) == str(class_module(cls))


def _module(function: FunctionType) -> str:
    # Not by __module__, which functools.wraps() copies.
    return str(function.__globals__.get("__name__"))


def _is_wrapper(function: FunctionType) -> bool:
    return "__wrapped__" in vars(function)


def _hides(value: object, name: str, known: Shape) -> bool:
    """Whether an object that is no function, a Mock say, stands where there was a method."""
    return name in known.methods and value is not None


def _originals_called(cls: type, function: FunctionType) -> Iterator[tuple[str, FunctionType]]:
    """What a function can call of the class's own methods, wrapped or not, or of this package's."""
    own = (class_module(cls), f"{__package__}.producer")
    for name, value in _names(function).items():
        values: list[Any] = [value]
        if isinstance(value, dict):
            values += value.values()  # pyright: ignore[reportUnknownMemberType]
        for each in values:
            if type(each) is FunctionType and (_module(each) in own or _is_wrapper(each)):
                yield name, each


def _names(function: FunctionType) -> Mapping[str, Any]:
    """What a function refers to: globals, variables of the functions around it, defaults."""
    words = method_of(function).words
    names = {name: function.__globals__[name] for name in words & function.__globals__.keys()}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell
            names[name] = cell.cell_contents
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return names | {f"a default {number}": value for number, value in enumerate(defaults)}
