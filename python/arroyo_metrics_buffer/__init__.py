"""Thread-safe metrics buffers for sentry-arroyo.

Importing this package makes arroyo's metrics buffers thread-safe, whether arroyo is imported before
it or after.
"""

from ._core import MetricsBuffer, __version__
from ._patching.install import install, install_on_import, uninstall
from ._patching.look import status
from ._patching.status import Environment, Status, TargetStatus
from ._stats import BufferStats, Stats, stats

__all__ = [
    "BufferStats",
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

install_on_import()
del install_on_import
