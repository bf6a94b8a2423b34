"""sentry-streams: its releases, each in a folder of its own, and its own class of a buffer."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

STREAMS = Path(__file__).resolve().parents[2] / "target" / "streams"
MODULE = "sentry_streams.metrics.metrics"
NEWEST = "0.0.69"


def streams_folder(version: str) -> Path:
    """Where a release is."""
    release = STREAMS / version
    assert release.is_dir(), f"{release} is missing: make releases"
    return release


def with_streams(version: str) -> dict[str, str]:
    """The environment of a program that is to import a release."""
    folders = [str(streams_folder(version)), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(folders)}


@cache
def streams_module() -> ModuleType:
    """The newest module with the class, which nothing in this process patches or imports."""
    file = streams_folder(NEWEST).joinpath(*MODULE.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"unpatched.{MODULE}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its classes look for it while they are made
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def streams_own() -> Any:
    """sentry-streams' class."""
    return streams_module().BufferedMetricsBackend


class StreamsCall(NamedTuple):
    """One call of a backend's method by a buffer of sentry-streams."""

    method: str
    name: str
    value: float
    tags: dict[str, str]


class StreamsBackend:
    """Records calls as a buffer of sentry-streams makes them, and refuses some names."""

    def __init__(self) -> None:
        self.calls: list[StreamsCall] = []
        self.error: BaseException | None = None
        self.refused: set[str] = set()

    def timing(self, name: str, value: float, *, tags: dict[str, str]) -> None:
        self._record("timing", name, value, tags)

    def increment(self, name: str, value: float, *, tags: dict[str, str]) -> None:
        self._record("increment", name, value, tags)

    def gauge(self, name: str, value: float, *, tags: dict[str, str]) -> None:
        self._record("gauge", name, value, tags)

    def _record(self, method: str, name: str, value: float, tags: dict[str, str]) -> None:
        if self.error is not None and name in self.refused:
            raise self.error
        self.calls.append(StreamsCall(method, name, value, tags))

    def take(self) -> list[StreamsCall]:
        """The calls since this was last called."""
        taken, self.calls = self.calls, []
        return taken
