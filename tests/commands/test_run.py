"""``arroyo-metrics-buffer run``: any program, patched, and otherwise as without it."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import arroyo_metrics_buffer
from support.programs import started

CONSOLE_SCRIPT = Path(sys.executable).with_name("arroyo-metrics-buffer")
RUN = [str(CONSOLE_SCRIPT), "run", "--"]
STARTUP_FOLDER = str(Path(arroyo_metrics_buffer.__file__).parent / "_commands" / "startup")
SITECUSTOMIZE = f"{STARTUP_FOLDER}/sitecustomize.py"
DEADLINE = 60  # seconds; far beyond what anything here takes

ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name != "PYTHONPATH" and not name.startswith("ARROYO_METRICS_BUFFER_")
}

DEFINE_TELL = """
def tell():
    from arroyo.processing import processor
    print(processor.MetricsBuffer.__module__, flush=True)
"""
PRINT_IS_IMPORTED = """
import importlib.util, sys
if importlib.util.find_spec("arroyo"):
    import arroyo
print("arroyo_metrics_buffer" in sys.modules)
"""


def ended(
    *command: str | Path, environment: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        env=ENVIRONMENT | (environment or {}),
        text=True,
        timeout=DEADLINE,
        **options,
    )


def script(path: Path, code: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)
    return path


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("how", ["a console script", "a script", "-m", "-c"])
@pytest.mark.parametrize(
    "entry_point", [[CONSOLE_SCRIPT], [sys.executable, "-m", "arroyo_metrics_buffer"]]
)
def test_a_program_is_patched_however_it_is_started(
    tmp_path: Path, entry_point: list[str | Path], how: str
) -> None:
    path = script(tmp_path / "program.py", DEFINE_TELL + "tell()")
    commands: dict[str, list[str]] = {
        "a console script": [path.name],
        "a script": [sys.executable, str(path)],
        "-m": [sys.executable, "-m", "program"],
        "-c": python(DEFINE_TELL + "tell()"),
    }
    path_with_it = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    result = ended(
        *entry_point, "run", "--", *commands[how], cwd=tmp_path, environment={"PATH": path_with_it}
    )
    assert (result.stdout, result.stderr) == ("arroyo_metrics_buffer\n", "")


@pytest.mark.parametrize(
    "child",
    [
        "os.fork() and os.wait() or (tell(), sys.stdout.flush(), os._exit(0))",
        "subprocess.run([sys.executable, __file__, 'child'])",
        "subprocess.run([sys.executable, __file__, 'child'], env=python_path())",
        "start('fork')",
        "start('spawn')",
        "start('forkserver')",
    ],
)
def test_children_are_patched_too(tmp_path: Path, child: str) -> None:
    code = f"""
import multiprocessing, os, subprocess, sys
{DEFINE_TELL}
def python_path():
    return {{"PYTHONPATH": os.pathsep.join(sys.path)}}

def start(method):
    process = multiprocessing.get_context(method).Process(target=tell)
    process.start()
    process.join()

if __name__ == "__main__":
    tell() if sys.argv[1:] else {child}
"""
    path = script(tmp_path / "program.py", code)
    assert ended(path).stdout == "arroyo.processing.processor\n"
    assert ended(*RUN, path).stdout == "arroyo_metrics_buffer\n"


def test_a_program_that_never_imports_arroyo_has_no_other_modules_than_without_it() -> None:
    code = python("import sys; print(sorted({*sys.modules} - {'__future__'}))")
    assert ended(*RUN, *code).stdout == ended(*code).stdout


@pytest.mark.parametrize("name", ["logging", "platform", "signal", "threading", "typing"])
def test_a_module_of_the_program_may_have_the_name_of_one_of_the_standard_librarys(
    tmp_path: Path, name: str
) -> None:
    script(tmp_path / f"{name}.py", "whose = 'mine'")
    program = script(tmp_path / "program.py", f"import {name}; print({name}.whose)")
    assert ended(*RUN, program).stdout == "mine\n"


def test_the_environment_still_turns_it_off() -> None:
    environment = {"ARROYO_METRICS_BUFFER_DISABLE": "1"}
    result = ended(*RUN, *python(DEFINE_TELL + "tell()"), environment=environment)
    assert result.stdout == "arroyo.processing.processor\n"


FAILING_BACKEND = """
from arroyo_metrics_buffer import MetricsBuffer
class Backend:
    def increment(self, name, value):
        raise OSError("no route")
buffer = MetricsBuffer(Backend())
buffer.incr_counter("count", 1)
buffer.flush()
print("goes on")
"""


@pytest.mark.parametrize(
    ("options", "environment", "goes_on"),
    [
        ([], {}, False),
        ([], {"ARROYO_METRICS_BUFFER_ON_BACKEND_ERROR": "log"}, True),
        ([], {"ARROYO_METRICS_BUFFER_ON_BACKEND_ERROR": "raise"}, False),
        ([], {"ARROYO_METRICS_BUFFER_ON_BACKEND_ERROR": "ignore"}, False),
        (["--on-backend-error", "log"], {}, True),
        (["--on-backend-error=raise"], {"ARROYO_METRICS_BUFFER_ON_BACKEND_ERROR": "log"}, False),
    ],
)
def test_a_backend_error_is_logged_if_the_option_or_the_environment_says_so(
    options: list[str], environment: dict[str, str], *, goes_on: bool
) -> None:
    command = ["run", *options, *python(FAILING_BACKEND)]
    result = ended(CONSOLE_SCRIPT, *command, environment=environment)
    assert "OSError: no route" in result.stderr
    assert (result.returncode, result.stdout) == ((0, "goes on\n") if goes_on else (1, ""))


# What was there before


def test_the_users_sitecustomize_runs_too_and_is_the_module(tmp_path: Path) -> None:
    own = script(tmp_path / "sitecustomize.py", "from arroyo.processing import processor")
    ask = "import sitecustomize; print(sitecustomize.__file__, sitecustomize.__spec__.origin)"
    result = ended(
        *RUN, *python(DEFINE_TELL + ask + "; tell()"), environment={"PYTHONPATH": str(tmp_path)}
    )
    assert (result.stdout, result.stderr) == (f"{own} {own}\narroyo_metrics_buffer\n", "")


def test_an_interpreter_that_can_not_load_the_hook_runs_the_next_sitecustomize(
    tmp_path: Path,
) -> None:
    """As a Python is that is older than the package: the hook is in words that it does not know."""
    package = tmp_path / "package"
    startup = package / "_commands" / "startup"
    startup.mkdir(parents=True)
    script(startup / "sitecustomize.py", Path(SITECUSTOMIZE).read_text())
    script(package / "_patching" / "hook.py", "these are no words")
    own = script(tmp_path / "own" / "sitecustomize.py", "print('own')")
    path = os.pathsep.join(map(str, (startup, own.parent)))
    result = ended(*python("print('goes on')"), environment={"PYTHONPATH": path})
    assert (result.stdout, result.stderr) == ("own\ngoes on\n", "")


def test_the_startup_file_is_in_the_words_of_every_python_3() -> None:
    ast.parse(Path(SITECUSTOMIZE).read_text(), feature_version=(3, 0))


# As New Relic's does: it loads the next one by its loader, if there is one.
LOADS_THE_NEXT = """
import os, sys
from importlib.machinery import PathFinder
path = [entry for entry in sys.path if entry != os.path.dirname(__file__)]
if spec := PathFinder.find_spec("sitecustomize", path):
    spec.loader.load_module("sitecustomize")
print("agent", flush=True)
"""


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="loaders have no load_module() any more")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("has_own", [False, True])
@pytest.mark.parametrize("comes_first", [False, True])
def test_an_agents_sitecustomize_that_loads_the_next_one_by_its_loader(
    tmp_path: Path, *, comes_first: bool, has_own: bool
) -> None:
    script(tmp_path / "agent" / "sitecustomize.py", LOADS_THE_NEXT)
    script(tmp_path / "own" / ("sitecustomize.py" if has_own else "other.py"), "print('own')")
    agent, own = str(tmp_path / "agent"), str(tmp_path / "own")
    path = [agent, STARTUP_FOLDER, own] if comes_first else [STARTUP_FOLDER, agent, own]
    environment = {"PYTHONPATH": os.pathsep.join(path)}
    result = ended(*python(DEFINE_TELL + "tell()"), environment=environment)
    said = ["own"] * has_own + ["agent", "arroyo_metrics_buffer"]
    assert (result.stdout.split(), result.stderr) == (said, "")


@pytest.mark.parametrize(
    "code",
    [
        "raise ValueError('mine')",
        "import no_such_module",
        "import sys; del sys.modules['sitecustomize']",
        "raise SystemExit(7)",
    ],
)
def test_a_users_sitecustomize_that_fails_does_so_as_it_does_alone(
    tmp_path: Path, code: str
) -> None:
    script(tmp_path / "own" / "sitecustomize.py", code)
    # Set for the program alone: the command line is a Python program too, and would fail as well.
    set_it = 'PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$0" exec "$@"'
    command = ["sh", "-c", set_it, str(tmp_path / "own"), *python("import sys; print('goes on')")]
    alone, result = ended(*command), ended(*RUN, *command)
    assert "own" not in alone.stdout
    assert (result.returncode, result.stdout) == (alone.returncode, alone.stdout)
    assert told_error(result.stderr) == told_error(alone.stderr)


def told_error(text: str) -> str:
    """What a traceback ends with.

    From CPython 3.15 on, the extension modules are listed after one that keeps Python from
    starting, this package's among them.
    """
    traceback, _, _ = text.partition("\n\nExtension modules: ")
    return traceback.rstrip().rpartition("\n")[2]


def test_without_a_sitecustomize_there_is_none_afterwards() -> None:
    code = python("import sys; print('sitecustomize' in sys.modules)")
    assert ended(*RUN, *code).stdout == ended(*code).stdout


@pytest.mark.parametrize("before", [None, "", "a", os.pathsep, f"a{os.pathsep}{os.pathsep}b"])
@pytest.mark.parametrize("times", [1, 2])
def test_the_python_path_is_kept_behind_one_folder(before: str | None, times: int) -> None:
    environment = {} if before is None else {"PYTHONPATH": before}
    result = ended(*RUN * times, "sh", "-c", 'printf %s "$PYTHONPATH"', environment=environment)
    assert result.stdout == STARTUP_FOLDER + (os.pathsep + before if before else "")


def test_a_run_in_a_run_in_another_environment_ends_and_patches(tmp_path: Path) -> None:
    """The same folder by another name is another folder."""
    other = tmp_path / "other"
    other.symlink_to(Path(STARTUP_FOLDER).parent, target_is_directory=True)
    environment = {"PYTHONPATH": str(other / "startup")}
    result = ended(*RUN, *python(DEFINE_TELL + "tell()"), environment=environment)
    assert (result.stdout, result.stderr) == ("arroyo_metrics_buffer\n", "")


@pytest.mark.parametrize(
    ("before", "register"), [([], "sys.modules[spec.name] = module"), ([], ""), (RUN, "")]
)
def test_the_file_executed_by_its_path_imports_the_package_and_no_more(
    before: list[str], register: str
) -> None:
    code = f"""
import importlib.util
import sys
spec = importlib.util.spec_from_file_location("sitecustomize", {SITECUSTOMIZE!r})
module = importlib.util.module_from_spec(spec)
{register}
spec.loader.exec_module(module)
"""
    result = ended(*before, *python(code + PRINT_IS_IMPORTED))
    assert (result.stdout, result.stderr) == ("True\n", "")


def test_a_program_is_patched_under_pythonsafepath_too() -> None:
    result = ended(*RUN, *python(PRINT_IS_IMPORTED), environment={"PYTHONSAFEPATH": "1"})
    assert result.stdout == "True\n"


# What passes through


@pytest.mark.parametrize("code", [0, 3, 255])
def test_the_exit_status_is_that_of_the_program(code: int) -> None:
    assert ended(*RUN, *python(f"raise SystemExit({code})")).returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGPIPE])
def test_run_ends_by_the_signal_that_its_program_died_of(number: signal.Signals) -> None:
    kill = ["sh", "-c", f"kill -{number.name.removeprefix('SIG')} $$"]
    assert ended(*RUN, *kill).returncode == -number
    shell = ["sh", "-c", '"$@"; echo $?', "sh", *RUN, *kill]
    assert ended(*shell).stdout == f"{128 + number}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_program_which_has_the_pid(number: signal.Signals) -> None:
    code = """
import os, signal, sys, time
def handler(number, frame):
    print(signal.Signals(number).name)
    sys.exit(5)
signal.signal(signal.SIGTERM, handler)
signal.signal(signal.SIGINT, handler)
print(os.getpid(), flush=True)
while True:
    time.sleep(0.01)
"""
    with started(*RUN, *python(code), env=ENVIRONMENT) as program:
        assert program.stdout
        assert int(program.stdout.readline()) == program.pid
        program.send_signal(number)
        output, _ = program.communicate(timeout=DEADLINE)
    assert (program.returncode, output) == (5, f"{number.name}\n")


@pytest.mark.parametrize(
    ("in_background", "disposition"), [(False, "default_int_handler"), (True, "SIG_IGN")]
)
def test_the_program_ignores_interrupts_if_it_would_without_the_command(
    disposition: str, *, in_background: bool
) -> None:
    code = "import signal; print(repr(signal.getsignal(signal.SIGINT)))"
    with started(*RUN, *python(code), env=ENVIRONMENT, in_background=in_background) as program:
        output, _ = program.communicate(timeout=DEADLINE)
    assert disposition in output


ARGUMENTS = ["", " ", "a b", "--", "-h", "--on-backend-error", "-", "--", "*", "-c", "\n", "é"]


@pytest.mark.parametrize("separator", [["--"], []])
@pytest.mark.parametrize(
    "arguments", [[], ARGUMENTS, ARGUMENTS[::-1], ["--"], ["--", "--"], ["-h"]]
)
def test_the_arguments_of_a_program_are_unchanged(
    tmp_path: Path, separator: Sequence[str], arguments: Sequence[str]
) -> None:
    path = script(tmp_path / "a program", "import sys; print(sys.argv[1:])")
    result = ended(CONSOLE_SCRIPT, "run", *separator, path, *arguments)
    assert result.stdout == f"{arguments}\n"


@pytest.mark.parametrize("by", ["path", "name"])
def test_a_script_that_names_no_interpreter_is_run_by_sh_as_without_it(
    tmp_path: Path, by: str
) -> None:
    """Also if a folder that is looked in later has a program of that name."""
    first, later = tmp_path / "first" / "a script", tmp_path / "later" / "a script"
    script(later, "print('another')")
    script(first, "").write_text("""echo "sh $0" "$@"; exit 3""")
    command = {"path": f"./first/{first.name}", "name": first.name}[by]
    path = os.pathsep.join([str(first.parent), str(later.parent), os.environ["PATH"]])
    arguments = [command, *ARGUMENTS]
    alone = ended("env", *arguments, cwd=tmp_path, environment={"PATH": path})
    result = ended(*RUN, *arguments, cwd=tmp_path, environment={"PATH": path})
    assert alone.stdout.startswith("sh ")
    assert (result.returncode, result.stdout) == (alone.returncode, alone.stdout)
    assert result.stderr == ""


def test_stdin_and_stdout_pass_through_byte_by_byte() -> None:
    everything = bytes(range(256)) * 1000
    command = [
        *RUN,
        *python("import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"),
    ]
    result = subprocess.run(
        command, check=True, capture_output=True, env=ENVIRONMENT, input=everything
    )
    assert (result.stdout == everything, result.stderr) == (True, b"")


# What can't work


@pytest.mark.parametrize("option", ["-I", "-E", "-S"])
def test_an_interpreter_that_ignores_the_environment_runs_unpatched(option: str) -> None:
    code = PRINT_IS_IMPORTED + "sys.exit(3)"
    result = ended(*RUN, sys.executable, option, "-c", code)
    assert (result.returncode, result.stdout, result.stderr) == (3, "False\n", "")


def test_an_interpreter_without_the_package_says_so_if_it_imports_arroyo(tmp_path: Path) -> None:
    venv.create(tmp_path, symlinks=True)
    other = [*RUN, str(tmp_path / "bin" / "python"), "-c", PRINT_IS_IMPORTED + "sys.exit(3)"]
    result = ended(*other)
    assert (result.returncode, result.stdout, result.stderr) == (3, "False\n", "")
    script(tmp_path / "arroyo.py", "")
    result = ended(*other, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (3, "False\n")
    missing = "arroyo_metrics_buffer"
    error = ModuleNotFoundError(f"No module named {missing!r}", name=missing)
    assert result.stderr == (
        f"arroyo-metrics-buffer: {tmp_path}/bin/python runs without it: {error!r}\n"
    )


SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
within = interpreters.create()
interpreters.run_string(within, "print('goes on', flush=True)")
interpreters.destroy(within)
"""


def test_an_interpreter_within_another_starts_without_a_word() -> None:
    result = ended(*RUN, *python(SUBINTERPRETER))
    assert (result.returncode, result.stdout, result.stderr) == (0, "goes on\n", "")


def test_an_interpreter_within_another_leaves_its_settings_alone() -> None:
    install = "import arroyo_metrics_buffer; arroyo_metrics_buffer.install(on_backend_error='log')"
    result = ended(*RUN, *python(install + SUBINTERPRETER + FAILING_BACKEND))
    assert (result.returncode, result.stdout) == (0, "goes on\n" * 2)


@pytest.mark.parametrize("redirect", ["", "2>&-"])
def test_an_interpreter_where_the_import_fails_runs_on(tmp_path: Path, redirect: str) -> None:
    """Also where stderr is closed."""
    script(tmp_path / "arroyo_metrics_buffer.py", r"raise RuntimeError('of two\nlines')")
    extend = f'PYTHONPATH="$PYTHONPATH:$0" exec "$@" {redirect}'
    result = ended(*RUN, "sh", "-c", extend, tmp_path, *python("import arroyo; print('goes on')"))
    assert (result.returncode, result.stdout) == (0, "goes on\n")
    says = (
        rf"arroyo-metrics-buffer: {sys.executable} runs without it: RuntimeError('of two\nlines')"
    )
    assert result.stderr == ("" if redirect else f"{says}\n")


def test_a_command_that_is_not_found_gives_127(tmp_path: Path) -> None:
    for command in ("no-such-command", str(tmp_path / "missing"), "--"):
        result = ended(*RUN, command)
        assert result.returncode == 127
        assert result.stderr == f"arroyo-metrics-buffer: {command}: No such file or directory\n"


def test_a_command_that_cannot_be_started_gives_126(tmp_path: Path) -> None:
    path = tmp_path / "a folder"
    path.mkdir()
    result = ended(*RUN, path)
    assert result.returncode == 126
    assert result.stderr == f"arroyo-metrics-buffer: {path}: Permission denied\n"
