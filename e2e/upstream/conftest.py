"""The fixtures, and this package's settings where the tests run with it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import arroyo.backends.kafka.consumer
import arroyo.processing.processor  # noqa: F401 - patched now, if at all
import pytest
from arroyo.utils.metrics import configure_metrics

from .metrics import TestingMetricsBackend

# Imported by `arroyo-metrics-buffer run`, or not at all.
package = sys.modules.get("arroyo_metrics_buffer")


def pytest_configure() -> None:
    if package:
        package.install(clock=lambda: time.time())  # noqa: PLW0108 - the tests replace it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.user_properties.append(("name", item.nodeid))


@pytest.fixture(scope="session", autouse=True)
def tell_what_is_patched(
    record_testsuite_property: Callable[[str, object], None],
) -> Iterator[None]:
    yield
    targets = package.status().targets if package else ()
    patched = [target.name for target in targets if target.state == "patched"]
    record_testsuite_property("patched", ", ".join(patched))


@pytest.fixture(autouse=True)
def recording_backend() -> None:
    TestingMetricsBackend.calls.clear()
    configure_metrics(TestingMetricsBackend, force=True)


@pytest.fixture
def benchmark() -> Callable[[Callable[[], None]], None]:
    """As pytest-benchmark's, but for the measuring."""
    return lambda function: function()
