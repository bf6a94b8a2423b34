"""Waits for modules to be imported."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from wrapt import register_post_import_hook


def when_imported(name: str, call: Callable[[bool], None]) -> None:
    """Have ``call`` called when a module is imported, before anyone else can use the module.

    Args:
        name: The module's. If the module is loaded already, ``call`` is called at once.
        call: Gets whether the module was loaded already, so that others may have used it.
    """
    is_registering = True

    def imported(_module: ModuleType) -> None:
        call(is_registering)

    register_post_import_hook(imported, name)
    is_registering = False
