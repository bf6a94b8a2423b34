"""C13 for sentry-streams: its buffer is replaced where there is one, and nothing is said elsewhere.

Each test runs a program that finds a release of sentry-streams on its path.
"""

from __future__ import annotations

import pytest

from support.programs import python
from support.streams import MODULE, NEWEST, with_streams
from support.targets import STREAMS

PRINT_STATE = f"""
import arroyo_metrics_buffer
for target in arroyo_metrics_buffer.status().targets:
    if target.name == "{STREAMS}":
        print(target.state, target.protected, target.unpatched, target.reason, sep="; ")
"""
PATCHED = "patched; True; 0; sentry_streams uses arroyo_metrics_buffer.BufferedMetricsBackend"
WAITING = f"waiting; True; 0; {MODULE} is not imported yet"
LOG = "import logging; logging.basicConfig(level=logging.INFO, format='%(levelname)s %(message)s');"


def printed(code: str, version: str = NEWEST) -> list[str]:
    """What a program prints that finds a release, with its records last."""
    ended = python(LOG + code, **with_streams(version))
    assert ended.returncode == 0, ended.stderr
    return (ended.stdout + ended.stderr).splitlines()


@pytest.mark.parametrize("version", ["0.0.42", NEWEST])
@pytest.mark.parametrize(
    "imports",
    [
        f"import arroyo_metrics_buffer, {MODULE}",
        f"import {MODULE}, arroyo_metrics_buffer",
        "import sentry_streams, arroyo_metrics_buffer; from sentry_streams import metrics",
    ],
)
def test_the_order_of_imports_does_not_matter(imports: str, version: str) -> None:
    lines = printed(imports + PRINT_STATE, version)
    assert lines[0] == PATCHED
    assert f"INFO {STREAMS} is patched: {PATCHED.rpartition('; ')[2]}" in lines


def test_the_buffer_that_an_application_configures_is_the_replacement() -> None:
    code = f"""
import arroyo_metrics_buffer
from sentry_streams.metrics import configure_metrics, get_metrics
from arroyo.utils.metrics import get_metrics as get_arroyos
configure_metrics({{"type": "log", "period_sec": 1.0, "tags": {{}}}})
for metrics in get_metrics(), get_arroyos():
    print([type(each) for each in vars(metrics).values()])
{PRINT_STATE}
"""
    ours = "[<class 'arroyo_metrics_buffer.BufferedMetricsBackend'>]"
    assert printed(code)[:3] == [ours, ours, PATCHED]


def test_nothing_is_imported_for_it_and_it_waits() -> None:
    code = "import arroyo_metrics_buffer, sys; print('sentry_streams' in sys.modules)"
    assert printed(code + PRINT_STATE) == ["False", WAITING]


def test_where_it_is_not_installed_nothing_is_said() -> None:
    ended = python(LOG + "import arroyo_metrics_buffer" + PRINT_STATE)
    assert (ended.stdout, ended.stderr) == ("", "")


def test_a_buffer_that_was_made_before_is_told() -> None:
    code = f"""
from {MODULE} import BufferedMetricsBackend
made = BufferedMetricsBackend(None, 1.0)
class Mine(BufferedMetricsBackend): pass
another = Mine(None, 1.0)
{PRINT_STATE}
print(type(made).__module__)
"""
    lines = printed(code)
    assert lines[0] == PATCHED.replace("True; 0", "False; 2")
    assert lines[1] == MODULE


def test_uninstall_gives_the_class_back_and_install_replaces_it_again() -> None:
    code = f"""
import arroyo_metrics_buffer
from sentry_streams.metrics import metrics
ours = metrics.BufferedMetricsBackend
arroyo_metrics_buffer.uninstall()
print(metrics.BufferedMetricsBackend.__module__)
arroyo_metrics_buffer.install()
print(metrics.BufferedMetricsBackend is ours)
{PRINT_STATE}
"""
    assert printed(code)[:3] == [MODULE, "True", PATCHED]


@pytest.mark.parametrize(
    ("version", "state"),
    [
        (
            "0.0.31",
            "missing; True; 0; this sentry-streams is older than 0.0.41 and buffers nothing",
        ),
        ("0.0.41", "unknown; False; 0; only that of 0.0.42 and newer can be replaced: update it"),
    ],
)
def test_a_release_without_the_class_as_known_is_left_alone_and_told_once(
    version: str, state: str
) -> None:
    lines = printed(f"import arroyo_metrics_buffer, {MODULE}{PRINT_STATE}", version)
    assert lines[0] == state
    told = [line for line in lines if STREAMS in line]
    reason = state.rpartition("; ")[2]
    verdict = (
        "INFO {} needs no patch: {}" if "missing" in state else "WARNING {} is not patched: {}"
    )
    assert told == [verdict.format(STREAMS, reason)]


def test_a_class_that_is_another_is_left_alone() -> None:
    code = f"""
import arroyo_metrics_buffer
arroyo_metrics_buffer.uninstall()
from {MODULE} import BufferedMetricsBackend
BufferedMetricsBackend.flush = lambda self: None
arroyo_metrics_buffer.install()
{PRINT_STATE}
"""
    assert printed(code)[0].startswith("unknown; False; 0; its method flush() is __main__.<lambda>")


def test_a_method_that_others_replace_later_is_told() -> None:
    code = f"""
import arroyo_metrics_buffer
from {MODULE} import BufferedMetricsBackend
BufferedMetricsBackend.increment = lambda *arguments: None
{PRINT_STATE}
"""
    state = printed(code)[0]
    assert state.startswith("patched; False; 0; ")
    assert "its method increment() is __main__.<lambda>" in state
