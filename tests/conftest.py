"""Fixtures of the whole suite."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from arroyo.processing import processor
from arroyo.utils.metrics import configure_metrics, get_metrics

import arroyo_metrics_buffer
from support import producers
from support.backends import ProducerBackend
from support.leftover_threads import no_threads_left


@pytest.fixture
def tiny_switch_interval() -> Iterator[None]:
    """Make threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def leftover_threads() -> Iterator[None]:
    """Fail a test that leaves a thread behind, which would run into the tests after it."""
    with no_threads_left():
        yield


@pytest.fixture(autouse=True)
def closed_producers(leftover_threads: None) -> Iterator[None]:
    """Close the producers that a test has made."""
    yield
    producers.close_all()


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    """Leave the package installed with its defaults, whatever a test does."""
    arroyo_metrics_buffer.install()
    yield
    arroyo_metrics_buffer.install()


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """What is reported by ``sys.unraisablehook`` in the test."""
    reported: list[BaseException | None] = []
    hook = "sys.unraisablehook"
    monkeypatch.setattr(hook, lambda report: reported.append(report.exc_value))
    return reported


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


def pytest_unconfigure() -> None:
    """Have buffers that tests leave behind, with backends that fail, tell nothing at the end."""
    arroyo_metrics_buffer.install(flush_at_exit=False)
