"""Records about the patching, for the logger of the package."""

from __future__ import annotations

import logging
from contextlib import suppress


def log(level: int, message: str, *arguments: object) -> None:
    """Log a record. What a filter or handler raises is dropped: an import must not fail for it."""
    with suppress(Exception):
        logging.getLogger("arroyo_metrics_buffer").log(level, message, *arguments, stacklevel=2)
