"""The command line, as far as it is not that of one command."""

from __future__ import annotations

import sys

import pytest

import arroyo_metrics_buffer
from arroyo_metrics_buffer._commands.cli import main
from support.programs import python, run_to_end


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["reproduce", "--threads", "0"], "'0' is no whole number of 1 or more"),
        (["reproduce", "--threads", "two"], "'two' is no whole number of 1 or more"),
        (["demo", "--messages", "-1"], "'-1' is no whole number of 0 or more"),
        (["reproduce", "--seconds", "0"], "'0' is no number of seconds above 0"),
        (["reproduce", "--seconds", "nan"], "'nan' is no number of seconds above 0"),
        (["reproduce", "--seconds", "inf"], "'inf' is no number of seconds above 0"),
        (["demo", "--seconds", "inf"], "'inf' is no number of seconds above 0"),
        (["run"], "a COMMAND is needed"),
        (["run", "--"], "a COMMAND is needed"),
        (["run", "--", ""], "a COMMAND is needed"),
        (["run", "--on-backend-error", "log"], "a COMMAND is needed"),
        (["run", "--no-such-option", "a"], "--no-such-option"),
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
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("usage: arroyo-metrics-buffer ")
    assert told in shown.err


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["--version"])
    assert exited.value.code == 0
    assert capsys.readouterr().out == f"arroyo-metrics-buffer {arroyo_metrics_buffer.__version__}\n"


@pytest.mark.parametrize("command", ["demo", "reproduce"])
@pytest.mark.parametrize("package", ["arroyo", "confluent_kafka"])
def test_without_its_packages_a_command_says_what_to_install(package: str, command: str) -> None:
    # None in sys.modules is how Python marks a package that can't be imported.
    code = (
        f"import sys; sys.modules[{package!r}] = None;"
        "from arroyo_metrics_buffer._commands.cli import main;"
        f"raise SystemExit(main([{command!r}]))"
    )
    told = python(code)
    assert told.returncode == 2
    assert told.stdout == ""
    assert "Traceback" not in told.stderr
    # The package itself may have logged, before, that there is no arroyo to patch.
    assert told.stderr.splitlines()[-1].endswith(
        "install --upgrade 'arroyo-metrics-buffer[arroyo]'"
    )


def test_help_is_shown_without_arroyo() -> None:
    code = (
        "import sys; sys.modules['arroyo'] = None;"
        "from arroyo_metrics_buffer._commands.cli import main; main(['--help'])"
    )
    shown = run_to_end(sys.executable, "-c", code)
    assert shown.returncode == 0
    assert "demo" in shown.stdout
