"""Seconds and clocks."""

from __future__ import annotations

UNIT = 2.0**-10  # seconds; multiples of it add up exactly in any order


class ManualClock:
    """Shows the time that it was set to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
