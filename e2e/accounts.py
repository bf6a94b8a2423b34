"""The accounts of a run: what the consumers made, beside what the StatsD server got."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ledger import CALLBACK_LATENCY, FAILED, METRICS, SUCCEEDED
from scenario import Member
from servers import Series, StatsD

SETTLE_TIMEOUT = 20  # seconds until the server has taken in what it was sent
# Of a sum of floats, which the server adds up in another order. No count here is so big that one
# more or less would pass for it.
ROUNDING = 1e-9


class Account(NamedTuple):
    """What became of a metric's increments in one consumer: counts, or seconds."""

    consumer: int
    metric: str
    made: float
    delivered: float
    killed: bool
    """The consumer was, so it may have lost some."""

    @property
    def lost(self) -> float:
        """Negative if more was delivered than made."""
        lost = self.made - self.delivered
        return lost if abs(lost) > self.made * ROUNDING else 0


def balance(members: Mapping[int, Member], scraped: Mapping[Series, float]) -> list[Account]:
    """An account for each metric of each consumer."""
    made = {number: member.record.totals() for number, member in members.items()}
    # arroyo sends metrics past the buffers as well, but none that has the tags of a delivery.
    metrics = [
        metric
        for metric in METRICS
        if metric in (SUCCEEDED, FAILED) or any(totals[metric] for totals in made.values())
    ]
    return [
        Account(
            number,
            metric,
            totals[metric],
            delivered(scraped, number, metric),
            members[number].killed_at is not None,
        )
        for metric in metrics
        for number, totals in made.items()
    ]


def delivered(scraped: Mapping[Series, float], number: int, metric: str) -> float:
    """What the server has of a consumer's metric."""
    name, _, status = metric.replace(".", "_").partition(" ")
    labels = {"consumer": str(number)}
    if status or metric == CALLBACK_LATENCY:
        # With the tags of its producer: arroyo's Produce counts by status under that name too.
        labels["producer_name"] = f"consumer-{number}"
    if status:
        labels["status"] = status
    # A counter, or else a timer: of latencies, which are sent one by one, the number, of others the
    # sum. What arroyo sends is seconds, what a StatsD server takes it for is milliseconds.
    suffix, unit = ("_count", 1) if metric == CALLBACK_LATENCY else ("_sum", 1_000)
    key = frozenset(labels.items())
    return scraped.get((f"{name}_total", key), unit * scraped.get((name + suffix, key), 0))


def settled(server: StatsD, packets: int) -> dict[Series, float]:
    """What the server has when it has taken in so many packets, or does not get on any more."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while packets_received(server.scrape()) < packets and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)  # a fifth of it is how long it may keep what it has read
    return server.scrape()


def packets_received(scraped: Mapping[Series, float]) -> int:
    return round(scraped["statsd_exporter_unixgram_packets_total", frozenset()])


def age_of_loss(killed: Member, killed_at: float, accounts: Sequence[Account]) -> float:
    """How many seconds before the kill the first was made of what it lost, at most."""
    own = [account for account in accounts if account.consumer == killed.number]
    arrived = {account.metric: account.made - account.lost for account in own}
    for sample in killed.record.samples():
        if all(sample[metric] <= arrived[metric] for metric in arrived):
            return killed_at - sample["time"]
    return math.inf


def table(accounts: Sequence[Account]) -> str:
    """By metric: of all consumers that ended, and of the one that was killed, if one was."""
    any_killed = any(account.killed for account in accounts)
    rows = [["metric", "made", "delivered", "lost"] + ["by the killed", "lost"] * any_killed]
    for metric in dict.fromkeys(account.metric for account in accounts):
        ended = [a for a in accounts if a.metric == metric and not a.killed]
        killed = [a for a in accounts if a.metric == metric and a.killed]
        sums = [sum(a.made for a in ended), sum(a.delivered for a in ended)]
        sums += [sum(a.lost for a in ended)]
        if any_killed:
            sums += [sum(a.made for a in killed), sum(a.lost for a in killed)]
        rows.append([metric, *map(amount, sums)])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first of them flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row[1:], widths[1:], strict=True) for row in rows)
    cells = ("".join(f"  {cell:>{width}}" for cell, width in line) for line in lines)
    pairs = zip(rows, cells, strict=True)
    return "\n".join(f"{row[0]:{widths[0]}}{rest}".rstrip() for row, rest in pairs)


def amount(value: float) -> str:
    """A count, or seconds."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.6f}"
