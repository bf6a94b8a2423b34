"""C13 and C6: what the variables of the environment say, install() does."""

from __future__ import annotations

import logging

import pytest

import arroyo_metrics_buffer
from support.programs import python
from support.targets import BUFFER, PRINT_STATE_OF_BUFFER, status_of


def state() -> str:
    return status_of(BUFFER).state


def test_the_environment_turns_it_off_whatever_the_code_says() -> None:
    code = (
        """
import arroyo.processing.processor, arroyo_metrics_buffer, os
arroyo_metrics_buffer.install(on_backend_error="log")
print(arroyo.processing.processor.MetricsBuffer)
"""
        + PRINT_STATE_OF_BUFFER
        + """
del os.environ["ARROYO_METRICS_BUFFER_DISABLE"]
print(arroyo_metrics_buffer.install().targets[0].state)
"""
    )
    result = python(code, ARROYO_METRICS_BUFFER_DISABLE="1")
    assert result.stdout.splitlines() == [
        "<class 'arroyo.processing.processor.MetricsBuffer'>",
        "disabled; ARROYO_METRICS_BUFFER_DISABLE=1 is in the environment",
        "patched",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, "disabled") for value in ("1", "true", "Yes", "ON", " 1\n")),
        *((value, "patched") for value in ("", "0", "false", "No", "OFF")),
    ],
)
def test_there_are_several_words_for_turning_it_off_and_for_not_turning_it_off(
    value: str, expected: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arroyo_metrics_buffer.uninstall()
    monkeypatch.setenv("ARROYO_METRICS_BUFFER_DISABLE", value)
    arroyo_metrics_buffer.install()
    assert state() == expected
    told = f"ARROYO_METRICS_BUFFER_DISABLE={value.strip()} is in the environment"
    assert (status_of(BUFFER).reason == told) == (expected == "disabled")
    assert caplog.records == []


def test_a_word_that_may_mean_either_turns_nothing_off_and_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arroyo_metrics_buffer.uninstall()
    monkeypatch.setenv("ARROYO_METRICS_BUFFER_DISABLE", "disabled")
    arroyo_metrics_buffer.install()
    assert state() == "patched"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "arroyo is patched all the same:"
        " ARROYO_METRICS_BUFFER_DISABLE must be '1' or '0', not 'disabled'"
    )


def test_where_it_is_installed_already_the_environment_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ARROYO_METRICS_BUFFER_DISABLE", "1")
    arroyo_metrics_buffer.install()
    assert state() == "patched"


@pytest.mark.parametrize(("value", "exit_status"), [("log", 0), ("raise", 1), ("ignore", 1)])
def test_the_environment_can_say_what_becomes_of_backend_errors(
    value: str, exit_status: int
) -> None:
    code = """
import arroyo_metrics_buffer
buffer = arroyo_metrics_buffer.MetricsBuffer(object())
buffer.incr_counter("x", 1)
buffer.flush()
"""
    result = python(code, ARROYO_METRICS_BUFFER_ON_BACKEND_ERROR=value)
    assert result.returncode == exit_status
    begins = "an outage of the metrics backend begins: " * (value == "log")
    told = f"{begins}flush ended by AttributeError: "
    assert result.stderr.startswith(told) == (value != "ignore")
    refused = (
        "errors of the metrics backend are raised:"
        " ARROYO_METRICS_BUFFER_ON_BACKEND_ERROR must be 'raise' or 'log', not 'ignore'\n"
    )
    assert result.stderr.startswith(refused) == (value == "ignore")


DEFINE_RAISES = """
def raises():
    buffer = arroyo_metrics_buffer.MetricsBuffer(object())
    buffer.incr_counter("x", 1)
    try:
        buffer.flush()
    except AttributeError:
        return True
    return False
"""


def test_what_install_is_not_told_it_takes_from_the_environment_each_time() -> None:
    code = """
import arroyo_metrics_buffer as package
print(raises())
package.install(clock=lambda: 0.0)
print(raises())
package.install(on_backend_error="raise")
print(raises())
package.install()
print(raises())
package.install(on_backend_error="raise")
package.uninstall()
print(raises())
"""
    for value, expected in ("log", "False False True False False"), ("", "True " * 5):
        ran = python(
            "import arroyo_metrics_buffer" + DEFINE_RAISES + code,
            ARROYO_METRICS_BUFFER_ON_BACKEND_ERROR=value,
        )
        assert ran.stdout.split() == expected.split(), ran.stderr
        assert "must be" not in ran.stderr


def test_that_it_is_turned_off_is_told_to_whoever_listens() -> None:
    code = "import logging; logging.basicConfig(level='INFO'); import arroyo_metrics_buffer"
    result = python(code, ARROYO_METRICS_BUFFER_DISABLE="1")
    (record,) = result.stderr.splitlines()
    assert record.startswith("INFO:arroyo_metrics_buffer:arroyo is left as it is: ARROYO_METRICS_")
