"""What is said of this package in a process."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Literal

from arroyo_metrics_buffer._core import __version__

from .targets import State


@dataclass(frozen=True)
class TargetStatus:
    """Whether one class of arroyo or sentry-streams is replaced.

    Attributes:
        name: The class, as ``module.Class``.
        state: ``patched``; ``waiting`` for its module to be imported; ``missing``, if arroyo or the
            class is not there, or buffers nothing; ``unknown``, if the class is none that this
            package can replace; ``disabled``, if this package is not installed.
        reason: Why, in words, with whose functions are in the way and what to do about them.
        changes: What something else has put in the place of this package's class or methods since
            they were, each in words: another patch, a wrapper, a subclass.
        unpatched: How many buffers of the class that is replaced are alive. They were made before
            it was patched, and stay as they are. None if that can't be told, since ``gc.freeze()``
            was called and the class was not patched before anyone could use it.
        protected: Whether this class can lose nothing in this process: it is patched or has nothing
            to patch, what has changed since extends this package's, and there is no buffer of the
            replaced class. A class that is not imported yet is protected so far.
    """

    name: str
    state: State
    reason: str
    changes: tuple[str, ...]
    unpatched: int | None
    protected: bool


@dataclass(frozen=True)
class Environment:
    """What this process runs on.

    Attributes:
        arroyo_metrics_buffer: The version of this package.
        arroyo: The version of sentry-arroyo, or None if there is none.
        confluent_kafka: The version of confluent-kafka, or None if there is none.
        python: The implementation and its version.
        gil: Whether the interpreter has its global lock on.
        platform: The operating system and the processor.
    """

    arroyo_metrics_buffer: str
    arroyo: str | None
    confluent_kafka: str | None
    python: str
    gil: bool
    platform: str


@dataclass(frozen=True)
class Status:
    """Whether arroyo's buffers are replaced, at the moment of asking.

    Attributes:
        targets: One entry per class that this package replaces: two of arroyo's, and one of
            sentry-streams where that is installed.
        on_backend_error: What a flush does with an error of the metrics backend: the setting that
            is in force, see ``install()``.
        flush_at_exit: Whether what is pending is sent when the process ends.
        environment: What this process runs on.
    """

    targets: tuple[TargetStatus, ...]
    on_backend_error: Literal["raise", "log"] | Callable[[Exception], object]
    flush_at_exit: bool
    environment: Environment

    @property
    def protected(self) -> bool:
        """Whether all targets are protected: what an application may assert when it starts."""
        return all(target.protected for target in self.targets)


def environment() -> Environment:
    """Ask the interpreter, and once the system and the metadata of the distributions."""
    return Environment(
        arroyo_metrics_buffer=__version__,
        arroyo=version("sentry-arroyo"),
        confluent_kafka=version("confluent-kafka"),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        # New in Python 3.13. An import may turn it on.
        gil=getattr(sys, "_is_gil_enabled", lambda: True)(),
        platform=_platform(),
    )


@cache  # libc_ver() may read the whole interpreter: on musl a tenth of a second, with the GIL held
def _platform() -> str:
    # Not platform.platform(), which asks a command as well, in a process of its own.
    parts = platform.system(), platform.release(), platform.machine(), *platform.libc_ver()
    return "-".join(filter(None, parts))


@cache
def version(distribution: str) -> str | None:
    """The version of a distribution that is installed, or None."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return None
