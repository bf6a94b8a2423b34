"""End to end: a consumer group on a real Kafka broker, whose metrics go to a real StatsD server.

Consumers join, are stopped and are killed while messages keep coming; or the broker is killed, and
started again. In the end each message was copied, and what the server has of each consumer is what
that consumer counted itself.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from accounts import (
    Account,
    age_of_loss,
    aligned,
    amount,
    balance,
    packets_received,
    settled,
    table,
)
from ending import Failed, fail_on_signals
from ledger import FACTS, FAILED, ROWS
from outage import Outage
from scenario import KILLED, Scenario
from servers import OF_KAFKA, OF_STATSD, kafka, missing, statsd

TIMEOUT = 300  # seconds, once the servers have started
# Seconds before the kill in which was made what got lost by it, at most: arroyo's flush interval,
# and as long again for the call that finds it over and for the flush that it begins.
LOSS = 2.0
PATCHED = 2  # classes of arroyo


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unpatched", action="store_true", help="with arroyo's own buffers")
    parser.add_argument("--kill-broker", action="store_true", help="and no consumer")
    options = parser.parse_args()
    if options.unpatched:
        os.environ["ARROYO_METRICS_BUFFER_DISABLE"] = "1"
    if lacking := missing(OF_KAFKA | OF_STATSD):
        print(f"Not run: this machine lacks {', '.join(lacking)}.", file=sys.stderr)
        return 2
    fail_on_signals()
    try:
        with tempfile.TemporaryDirectory(prefix="e2e-") as folder:
            return run(Path(folder), Outage if options.kill_broker else Scenario)
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run(folder: Path, play: type[Scenario]) -> int:
    start = time.monotonic()
    with kafka(folder) as broker, statsd(folder) as server:
        signal.alarm(TIMEOUT)
        scenario = play(broker, server, folder)
        troubles = []
        try:
            scenario.play()
        except Failed as failed:
            troubles.append(str(failed))
        finally:
            scenario.end()
        sent = sum(member.record.fact("packets") for member in scenario.members.values())
        scraped = settled(server, sent)
    received = packets_received(scraped)
    accounts = balance(scenario.members, scraped)
    messages = scenario.messages
    print(
        f"\n{facts(scenario)}\n\n{table(accounts)}\n\n"
        f"{messages.fed:,} messages, {len(messages.copied):,} copied, {messages.copies:,} copies\n"
        f"{sent:,} packets sent, {received:,} received"
    )
    troubles += [*of_messages(scenario), *of_members(scenario), *of_metrics(accounts)]
    troubles += scenario.troubles()
    killed = scenario.members.get(KILLED)
    if killed and killed.killed_at:
        age = age_of_loss(killed, killed.killed_at, accounts)
        print(f"what consumer {KILLED} lost was made in its last {age:.2f} s")
        if age > LOSS:
            troubles.append(f"consumer {KILLED} lost more than one flush interval holds")
    # A thread that was killed may have sent a packet and not entered it any more.
    if not sent <= received <= sent + ROWS * any(account.killed for account in accounts):
        troubles.append("packets were lost on the way to the server")
    print(f"{time.monotonic() - start:.0f} s", *(troubles or ["exact"]), sep="\n")
    return 1 if troubles else 0


def facts(scenario: Scenario) -> str:
    rows = [["consumer", *FACTS, "failed", "exit", ""]]
    for number, member in scenario.members.items():
        numbers = [f"{member.record.fact(fact):,}" for fact in [*FACTS, FAILED]]
        rows.append([str(number), *numbers, str(member.process.poll()), " ".join(member.role)])
    return aligned(rows)


def of_messages(scenario: Scenario) -> Iterator[str]:
    messages = scenario.messages
    if lost := messages.fed - len(messages.copied):
        yield f"{lost:,} messages were not copied"
    for number, member in scenario.members.items():
        processes, own = messages.processes[number], member.process.pid
        workers = "--workers" in member.role
        strangers = processes & {own} if workers else processes - {own}
        idle = len(processes) <= workers and not member.record.fact("ended")
        if strangers or idle:
            yield f"consumer {number}, of process {own}, had its messages go through {processes}"


def of_members(scenario: Scenario) -> Iterator[str]:
    for number, member in scenario.members.items():
        status, record = member.process.poll(), member.record
        if status != member.expected:
            by_itself = " by itself" if member.expected is None else ""
            yield f"consumer {number} ended{by_itself} with {status}"
        if record.fact("patched") != PATCHED:
            yield f"consumer {number} has {record.fact('patched')} of {PATCHED} classes patched"
        if errors := record.fact("errors"):
            yield f"consumer {number} had {errors:,} errors, the last: {member.last_word()}"
        if dropped := record.fact("dropped"):
            yield f"consumer {number}: the client dropped {dropped:,} packets"
        if "--forking" in member.role and not (record.fact("forks") or record.fact("ended")):
            yield f"consumer {number} has not forked"


def of_metrics(accounts: Sequence[Account]) -> Iterator[str]:
    wrong = [a for a in accounts if a.lost < 0 or (a.lost and not a.killed)]
    for number in sorted({account.consumer for account in wrong}):
        metrics = [account for account in wrong if account.consumer == number]
        worst = max(metrics, key=lambda account: abs(account.lost) / (account.made or 1))
        yield (
            f"consumer {number}: {len(metrics)} metrics are not exact, {worst.metric} the least: "
            f"{amount(worst.made)} made, {amount(worst.delivered)} delivered"
        )


if __name__ == "__main__":
    sys.exit(main())
