"""The demo, as a user runs it: in a process of its own."""

from __future__ import annotations

import re
import signal
import sys

from support.arroyo_releases import release_folder
from support.programs import run_to_end, started

DEMO = (sys.executable, "-W", "error", "-m", "arroyo_metrics_buffer", "demo")
TIMEOUT = 180  # seconds; more than the demo's own guard plus its shutdown
METRIC = r"(arroyo|demo)\.[\w.]+"
PROGRESS = re.compile(r" *\d+ s +[\d,]+ messages/s   [\d,]+ consumed, [\d,]+ of [\d,]+ produced")


def cells(table: str) -> dict[str, list[str]]:
    """The cells of each row by its label, without units."""
    rows = (re.split(r" {2,}", line) for line in table.splitlines())
    return {label: [cell.removesuffix(" s") for cell in row] for label, *row in rows}


def assert_nothing_lost(table: str) -> None:
    rows = cells(table)
    assert rows["lost"] == rows["counted twice"] == ["0", "0.000000"]
    assert rows["errors"] == ["0"]
    accounts = {label: row for label, row in rows.items() if re.fullmatch(METRIC, label)}
    assert {"arroyo.consumer.run.count", "arroyo.consumer.poll.time", "demo.bytes"} <= set(accounts)
    producer = {"arroyo.producer.produce_status", "arroyo.producer.callback_latency"}
    assert producer <= set(accounts)
    for made, delivered, lost in accounts.values():
        assert made == delivered
        assert float(lost) == 0


def assert_only_progress(stderr: str) -> None:
    for line in stderr.splitlines():
        assert PROGRESS.fullmatch(line)


def test_demo_copies_every_message_and_accounts_for_every_increment() -> None:
    demo = run_to_end(*DEMO, "--messages", "2000")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert cells(demo.stdout)["messages"] == ["2,000", "2,000", "2,000"]
    assert_nothing_lost(demo.stdout)
    assert_only_progress(demo.stderr)


def test_ctrl_c_ends_the_demo_with_the_table_so_far() -> None:
    with started(*DEMO, "--messages", "1000000") as demo:
        assert demo.stderr
        progress = next(line for line in demo.stderr if " 0 consumed" not in line)
        demo.send_signal(signal.SIGINT)
        stdout, stderr = demo.communicate(timeout=TIMEOUT)
    assert demo.returncode == 130, stdout + stderr
    assert "Stopped (interrupted)" in stdout
    assert_nothing_lost(stdout)
    assert_only_progress(progress + stderr)


def test_ctrl_c_does_not_reach_a_demo_in_the_background_of_a_shell_which_ends_out_of_time() -> None:
    command = (*DEMO, "--messages", "1000000", "--seconds", "5")
    with started(*command, in_background=True) as demo:
        assert demo.stderr
        progress = demo.stderr.readline()
        demo.send_signal(signal.SIGINT)
        stdout, stderr = demo.communicate(timeout=TIMEOUT)
    assert "Stopped (out of time)" in stdout, stdout + stderr
    assert_nothing_lost(stdout)
    assert_only_progress(progress + stderr)


def test_with_an_arroyo_that_is_too_old_it_says_so_in_one_line() -> None:
    old = str(release_folder("1.1.0"))
    demo = run_to_end(sys.executable, *DEMO[3:], PYTHONPATH=old)  # warnings are the old one's
    assert demo.returncode == 2
    (line,) = demo.stderr.splitlines()
    assert line.startswith("This needs a recent arroyo with confluent_kafka (cannot import name ")
