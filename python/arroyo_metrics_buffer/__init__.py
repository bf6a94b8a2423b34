"""Thread-safe metrics buffers for sentry-arroyo.

Importing this package makes the metrics buffers of arroyo and of sentry-streams thread-safe,
whether they are imported before it or after.
"""

from typing import TYPE_CHECKING

from ._core import BufferedMetricsBackend, MetricsBuffer, __version__
from ._patching.install import install, install_on_import, uninstall
from ._patching.look import status

if TYPE_CHECKING:
    from ._patching.status import Environment, Status, TargetStatus
    from ._stats import BufferStats, Stats, stats

__all__ = [
    "BufferStats",
    "BufferedMetricsBackend",
    "Environment",
    "MetricsBuffer",
    "Stats",
    "Status",
    "TargetStatus",
    "__version__",
    "install",
    "stats",
    "status",
    "uninstall",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import what few programs need when it is first asked for: it takes time."""
        if name in __all__:
            from importlib import import_module  # noqa: PLC0415

            for module in "._stats", "._patching.status":
                if found := vars(import_module(module, __name__)).get(name):
                    globals()[name] = found
                    return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


install_on_import()
del install_on_import
