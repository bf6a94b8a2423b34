"""Hypothesis, set up as the environment says."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

__all__ = ["settings"]

# What Hypothesis chooses stays: at a desk new examples every time; in CI, which it knows by the
# environment, always the same, so that what turns a change red is the change. `make fuzz` looks for
# new ones everywhere, and prints what makes a failure come again. Time decides nothing: machines
# are busy.
settings.register_profile(
    "test", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "fuzz",
    settings.get_profile("test"),
    derandomize=False,
    max_examples=100 * settings().max_examples,
    print_blob=True,
)
settings.load_profile(os.environ.get("ARROYO_METRICS_BUFFER_PROFILE", "test"))
