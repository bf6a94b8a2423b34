"""The command that tells whether an environment is protected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import arroyo_metrics_buffer
from arroyo_metrics_buffer._commands import doctor as module
from arroyo_metrics_buffer._commands.self_check import check_metrics_buffer, check_streams
from support.arroyo_releases import release_folder
from support.programs import run_to_end
from support.streams import NEWEST, with_streams
from support.targets import STREAMS

WELL = "All is well: every metrics buffer of this environment is protected."
NOT_WELL = "NOT every metrics buffer of this environment is protected. What to do:"


def doctor(
    *arguments: str, first: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run it in an interpreter that has run some code first."""
    code = f"{first}\nfrom arroyo_metrics_buffer._commands import cli; raise SystemExit(cli.main())"
    return run_to_end(sys.executable, "-c", code, "doctor", *arguments, **environment)


def test_where_all_is_well_it_says_so_and_exits_with_0() -> None:
    ran = doctor()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert lines[:2] == [WELL, ""]
    assert lines[2].startswith(f"arroyo-metrics-buffer {arroyo_metrics_buffer.__version__}, ")
    assert lines.count("  protected: yes") == 2
    assert lines.count("  changed by others since then: nothing") == 2
    (check,) = [line for line in lines if line.startswith("  self-check: 4 threads")]
    assert check.endswith("exact")
    assert "NOT" not in ran.stdout
    assert "streams" not in ran.stdout


def test_where_sentry_streams_is_installed_its_buffer_is_a_third() -> None:
    ran = doctor(**with_streams(NEWEST))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == WELL
    third = lines[lines.index(STREAMS) :]
    assert third[1].startswith("  patched: ")
    assert third[5].startswith("  self-check: 4 threads")
    assert third[5].endswith("exact")
    facts = json.loads(doctor("--json", **with_streams(NEWEST)).stdout)
    assert [target["name"] for target in facts["targets"]][2:] == [STREAMS]
    check = facts["streams_self_check"]
    assert check["made"] == check["delivered"] > 0
    assert facts["stats"]["streams"]["flushes"] == check["flushes"] > 0


def test_a_release_of_sentry_streams_that_is_not_replaced_is_told() -> None:
    ran = doctor(**with_streams("0.0.41"))
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[:3] == [
        NOT_WELL,
        f"  1. {STREAMS}: only that of 0.0.42 and newer can be replaced: update it",
        "     -> pip install --upgrade sentry-streams",
    ]


def test_json_has_the_same_facts() -> None:
    ran = doctor("--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    facts = json.loads(ran.stdout)
    assert facts["protected"] is True
    assert facts["environment"]["arroyo_metrics_buffer"] == arroyo_metrics_buffer.__version__
    assert [target["state"] for target in facts["targets"]] == ["patched", "patched"]
    check = facts["self_check"]
    assert check["made"] == check["delivered"] > 0
    assert check["errors"] == []
    assert facts["stats"]["consumer"]["flushes"] == check["flushes"] > 0
    assert facts["stats"]["producer"]["flushes"] == 0


@pytest.mark.parametrize(
    ("setting", "verb"), [("raise", "raised by the call that flushed"), ("log", "logged")]
)
def test_what_becomes_of_backend_errors_is_told(setting: str, verb: str) -> None:
    environment = {"ARROYO_METRICS_BUFFER_ON_BACKEND_ERROR": setting}
    assert f"\nAn error of the metrics backend is {verb}.\n" in doctor(**environment).stdout
    facts = json.loads(doctor("--json", **environment).stdout)
    assert facts["on_backend_error"] == setting


def test_a_callable_that_gets_backend_errors_is_told_by_its_name() -> None:
    install = "import arroyo_metrics_buffer, json; from threading import Lock\n"
    install += "class Reporter:\n lock = Lock()\n def report(self, error): pass\n"
    install += "arroyo_metrics_buffer.install(on_backend_error=%s)"
    first = install % "json.dumps"
    where = f"json.dumps ({json.__file__}:{json.dumps.__code__.co_firstlineno})"
    told = f"\nAn error of the metrics backend is logged, and given to {where}.\n"
    assert told in doctor(first=first).stdout
    assert json.loads(doctor("--json", first=first).stdout)["on_backend_error"] == where
    facts = json.loads(doctor("--json", first=install % "Reporter().report").stdout)
    assert facts["on_backend_error"] == "__main__.Reporter.report"


def test_where_the_package_is_disabled_it_exits_with_1() -> None:
    ran = doctor(ARROYO_METRICS_BUFFER_DISABLE="1")
    assert ran.returncode == 1
    assert ran.stdout.count("disabled: ARROYO_METRICS_BUFFER_DISABLE=1 is in the environment") == 2
    assert "self-check" not in ran.stdout
    assert ran.stdout.splitlines()[0] == NOT_WELL
    assert ran.stdout.count("-> take ARROYO_METRICS_BUFFER_DISABLE out of the environment") == 2


def test_uninstall_is_told_with_what_undoes_it() -> None:
    ran = doctor(first="import arroyo_metrics_buffer; arroyo_metrics_buffer.uninstall()")
    assert ran.returncode == 1
    assert ran.stdout.count("-> call arroyo_metrics_buffer.install()") == 2


def test_a_reader_that_has_enough_ends_it_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    command = (sys.executable, "-m", "arroyo_metrics_buffer", "doctor")
    ran = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False, text=True)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_where_there_is_no_arroyo_it_exits_with_2() -> None:
    ran = doctor(first="import sys; sys.modules['arroyo'] = None")
    assert ran.returncode == 2
    assert ran.stdout.count("missing: arroyo is not installed") == 2
    verdict, problem, cure, *_ = ran.stdout.splitlines()
    assert verdict == NOT_WELL
    assert problem == f"  1. there is no arroyo for {sys.executable}"
    assert cure.startswith("     -> run doctor with the Python of your application: ")
    facts = json.loads(doctor("--json", first="import sys; sys.modules['arroyo'] = None").stdout)
    assert facts["protected"] is False


def test_an_arroyo_that_cannot_be_imported_is_told_and_exits_with_1() -> None:
    first = "import sys; sys.modules['confluent_kafka'] = None"
    ran = doctor(first=first)
    assert ran.returncode == 1
    why = "can't be imported: ModuleNotFoundError: "
    assert f"MetricsBuffer: arroyo.processing.processor {why}" in ran.stdout
    assert f'-> see what fails by: {sys.executable} -c "import arroyo.processing.processor"' in (
        ran.stdout
    )
    problems = json.loads(doctor("--json", first=first).stdout)["problems"]
    assert [why in problem["what"] for problem in problems] == [True, True]


UNKNOWN = """
from arroyo.processing import processor
class MetricsBuffer:
    def incr_counter(self, metric, delta): ...
processor.MetricsBuffer = MetricsBuffer
"""
EARLY = """
from arroyo.processing.processor import MetricsBuffer
early = MetricsBuffer()
"""
UNBOUND = """
from arroyo.processing import processor
class Unbound:
    def __getattribute__(self, name):
        raise RuntimeError
processor.MetricsBuffer = Unbound()
"""
FROZEN = """
import arroyo.processing.processor, gc
gc.freeze()
"""
REPLACED = """
import arroyo_metrics_buffer
arroyo_metrics_buffer.MetricsBuffer.incr_counter = lambda self, metric, delta: None
"""
LOSSY = """
import arroyo_metrics_buffer, itertools
from arroyo.processing import processor
class Lossy(arroyo_metrics_buffer.MetricsBuffer):
    calls = itertools.count()
    def incr_counter(self, metric, delta):
        if next(self.calls) % 1000:
            super().incr_counter(metric, delta)
processor.MetricsBuffer = Lossy
"""
RENAMED = """
from arroyo.processing import processor
del processor.MetricsBuffer
"""
RAISING = """
import arroyo_metrics_buffer
from arroyo.processing import processor
class Raising(arroyo_metrics_buffer.MetricsBuffer):
    def flush(self):
        raise RuntimeError("dictionary changed size during iteration")
processor.MetricsBuffer = Raising
"""


@pytest.mark.parametrize(
    ("first", "told", "cure"),
    [
        (UNKNOWN, "this release does not know the class: ", "remove the patch that is named there"),
        (EARLY, "1 buffers of the original class are alive", "import arroyo_metrics_buffer before"),
        (REPLACED, "its method incr_counter() is __main__.<lambda>", "remove the patch"),
        (LOSSY, "NOT exact", "remove the subclass or patch"),
        (UNBOUND, "it raises RuntimeError where it is looked at", "mend what is named there"),
        (FROZEN, "gc.freeze() was called before", "import arroyo_metrics_buffer before that call"),
        (RAISING, "RuntimeError: dictionary changed size during iteration", "remove the subclass"),
        (RENAMED, "arroyo.processing.processor has no MetricsBuffer", "pip install --upgrade"),
    ],
)
def test_whatever_may_lose_a_metric_is_told_first_with_what_to_do(
    first: str, told: str, cure: str
) -> None:
    ran = doctor(first=first)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    verdict, problem, what_to_do, *_ = ran.stdout.splitlines()
    assert verdict == NOT_WELL
    assert problem.startswith("  1. ")
    assert told in problem
    assert what_to_do.startswith(f"     -> {cure}")


@pytest.mark.parametrize("agent_is_first", [True, False])
def test_a_sitecustomize_that_keeps_run_from_working_is_told(
    tmp_path: Path, *, agent_is_first: bool
) -> None:
    agents = tmp_path / "sitecustomize.py"
    agents.touch()  # it runs no other
    folders = [str(tmp_path), str(Path(module.__file__).with_name("startup"))]
    path = os.pathsep.join(folders if agent_is_first else reversed(folders))
    ran = doctor(PYTHONPATH=path)
    told = f"run: it does not reach this Python, as {agents} is found first and runs no other"
    assert (ran.returncode, told in ran.stdout) == (agent_is_first, agent_is_first), ran.stdout
    facts = json.loads(doctor("--json", PYTHONPATH=path).stdout)
    assert (facts["protected"], facts["run"] is None) == (not agent_is_first, not agent_is_first)


@pytest.mark.parametrize("version", ["1.1.0", "2.10.3", "2.25.0", "2.30.0"])
def test_older_releases_are_found_protected_too(version: str) -> None:
    ran = doctor(PYTHONPATH=str(release_folder(version)))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "missing: this arroyo uses confluent_kafka's own" in ran.stdout
    assert ran.stdout.splitlines()[0] == WELL


@pytest.mark.parametrize("version", ["2.10.3", "2.25.0"])
def test_a_method_of_an_older_releases_class_that_others_replaced_is_told(version: str) -> None:
    first = """
import arroyo_metrics_buffer
from arroyo.processing import processor
processor.MetricsBuffer.incr_counter = lambda self, metric, delta: None
"""
    ran = doctor(first=first, PYTHONPATH=str(release_folder(version)))
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert ".incr_counter is __main__.<lambda>" in ran.stdout


def test_a_release_that_is_older_than_the_buffers_has_nothing_to_lose() -> None:
    ran = doctor(PYTHONPATH=str(release_folder("1.0.7")))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "missing: this arroyo is older than 1.1.0 and buffers nothing" in ran.stdout
    assert "self-check" not in ran.stdout
    assert ran.stdout.splitlines()[0] == WELL


def test_the_self_check_goes_on_until_there_were_some_flushes() -> None:
    for check in (
        check_metrics_buffer(arroyo_metrics_buffer.MetricsBuffer, seconds=0.0),
        check_streams(arroyo_metrics_buffer.BufferedMetricsBackend, seconds=0.0),
    ):
        assert check.flushes >= 10
        assert check.is_exact()
        assert check.made == check.delivered > 0
