"""What environment variables say."""

from __future__ import annotations

import logging
import os
from typing import Literal

from .log import log

DISABLE = "ARROYO_METRICS_BUFFER_DISABLE"
ON_BACKEND_ERROR = "ARROYO_METRICS_BUFFER_ON_BACKEND_ERROR"
FLUSH_AT_EXIT = "ARROYO_METRICS_BUFFER_FLUSH_AT_EXIT"

_YES = "1", "true", "yes", "on"
_NO = "0", "false", "no", "off"


def on_backend_error() -> Literal["raise", "log"]:
    """What a flush does with an error of the metrics backend, unless ``install()`` is told."""
    value = os.environ.get(ON_BACKEND_ERROR) or "raise"
    if value == "log":
        return "log"
    if value != "raise":
        message = "errors of the metrics backend are raised: %s must be 'raise' or 'log', not %r"
        log(logging.WARNING, message, ON_BACKEND_ERROR, value)
    return "raise"


def flush_at_exit() -> bool:
    """Whether what is pending is sent when the process ends, unless ``install()`` is told."""
    value = os.environ.get(FLUSH_AT_EXIT, "").strip()
    if value.lower() not in ("", *_YES, *_NO):
        message = "buffers are flushed at exit all the same: %s must be '1' or '0', not %r"
        log(logging.WARNING, message, FLUSH_AT_EXIT, value)
    return value.lower() not in _NO


def reason_to_disable() -> str | None:
    """Why arroyo must not be patched, in words; None if it may be."""
    value = os.environ.get(DISABLE, "").strip()
    if value.lower() in _YES:
        return f"{DISABLE}={value} is in the environment"
    if value.lower() not in ("", *_NO):
        message = "arroyo is patched all the same: %s must be '1' or '0', not %r"
        log(logging.WARNING, message, DISABLE, value)
    return None
