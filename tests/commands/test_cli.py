"""The command line, as far as it is not that of one command."""

from __future__ import annotations

import pytest

import arroyo_metrics_buffer
from arroyo_metrics_buffer._commands.cli import main


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["reproduce", "--threads", "0"], "'0' is no whole number of 1 or more"),
        (["reproduce", "--threads", "two"], "'two' is no whole number of 1 or more"),
        (["demo", "--messages", "-1"], "'-1' is no whole number of 0 or more"),
        (["reproduce", "--seconds", "0"], "'0' is no number of seconds above 0"),
        (["reproduce", "--seconds", "nan"], "'nan' is no number of seconds above 0"),
        (["demo", "--seconds", "inf"], "'inf' is no number of seconds above 0"),
        (["run"], "a COMMAND is needed"),
        (["run", "--", ""], "a COMMAND is needed"),
        (["prescribe"], "invalid choice: 'prescribe'"),
        ([], "required: COMMAND"),
    ],
)
def test_what_can_not_be_done_is_told_with_exit_status_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    assert told in capsys.readouterr().err


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["--version"])
    assert exited.value.code == 0
    assert capsys.readouterr().out == f"arroyo-metrics-buffer {arroyo_metrics_buffer.__version__}\n"
