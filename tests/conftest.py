"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from arroyo.processing import processor
from arroyo.utils.metrics import configure_metrics, get_metrics
from hypothesis import HealthCheck, settings

import arroyo_metrics_buffer
from alone import attempt, is_alone, run_alone
from backends import ProducerBackend

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


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Give the tests that are marked so an interpreter of their own."""
    if pyfuncitem.get_closest_marker("alone") is None:
        return None
    if is_alone():
        attempt(pyfuncitem.name)
        return None
    run_alone(pyfuncitem)
    return True


@pytest.fixture
def tiny_switch_interval() -> Iterator[None]:
    """Make threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    """Leave the package installed with its defaults, whatever a test does."""
    arroyo_metrics_buffer.install()
    yield
    arroyo_metrics_buffer.install()


@pytest.fixture
def upstream() -> type:
    """arroyo's own class."""
    arroyo_metrics_buffer.uninstall()
    original: type = processor.MetricsBuffer
    arroyo_metrics_buffer.install()
    return original


@pytest.fixture
def backend() -> Iterator[ProducerBackend]:
    """What the producers report to that are made in the test."""
    before = get_metrics()
    backend: Any = ProducerBackend()
    configure_metrics(backend, force=True)
    yield backend
    configure_metrics(before, force=True)
