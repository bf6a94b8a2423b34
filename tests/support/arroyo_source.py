"""Classes of arroyo as they are after a change of its file."""

from __future__ import annotations

import inspect
import sys
import types
from typing import Any

Changes = dict[str, str]
"""What is replaced in the file, by what."""


def changed(text: str, changes: Changes) -> str:
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def class_of(module: Any, name: str, changes: Changes) -> Any:
    """A class of arroyo's as it is after a change of its file."""
    source = inspect.getsource(getattr(module, name))
    other = types.ModuleType(module.__name__)
    vars(other).update(vars(module), threading=sys.modules["threading"])
    source = "from __future__ import annotations\n" + changed(source, changes)
    exec(source, vars(other))  # noqa: S102 - arroyo's own
    return getattr(other, name)
