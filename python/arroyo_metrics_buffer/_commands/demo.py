"""The demo: an arroyo consumer and producers on Kafka, with more threads at their metrics buffers.

It copies messages from one topic to another with arroyo's own consumer, processor and producer,
while other threads write to and flush the processor's buffer and flush the producers', and accounts
for every increment: what a buffer is given is tallied in front of it, what it delivers behind it.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, Self

from confluent_kafka import KafkaException

from arroyo_metrics_buffer import status, uninstall

from .accounts import (
    Account,
    Errors,
    Tally,
    balance,
    tallied_backend,
    tallied_buffers,
    tallied_producers,
)
from .cluster import kafka, topics
from .pipeline import Pipeline
from .progress import Progress

__all__ = ["demo"]

End = Literal["done", "out of time", "interrupted"]


def demo(
    *, messages: int, threads: int, seconds: float, unpatched: bool, bootstrap_servers: str | None
) -> int:
    """Run the demo and print its table. Only for the main thread, where Ctrl-C arrives.

    Args:
        messages: How many to copy.
        threads: How many threads write to and flush the buffers meanwhile.
        seconds: When to stop, whatever is left to copy.
        unpatched: Use arroyo's own buffers.
        bootstrap_servers: The Kafka cluster; None for librdkafka's mock cluster in this process.

    Returns:
        The exit status: 0 if there was no error and nothing was lost, 1 if not, 130 after Ctrl-C.
    """
    if unpatched:
        uninstall()
    made, delivered, errors = Tally(), Tally(), Errors()
    with ExitStack() as stack:
        stack.enter_context(quiet_arroyo())
        try:
            servers = stack.enter_context(kafka(bootstrap_servers))
            source, destination = stack.enter_context(topics(servers))
        except KafkaException as error:
            sys.stderr.write(f"The topics can't be made: {error}\n")
            return 1
        for tallied in tallied_backend(delivered), tallied_buffers(made), tallied_producers(made):
            stack.enter_context(tallied)
        ctrl_c = stack.enter_context(CtrlC())
        pipeline = Pipeline(servers, source, destination, errors)
        pipeline.start(messages, threads)
        try:
            with Progress() as progress:
                end = watch(pipeline, messages, seconds, ctrl_c, progress)
        finally:
            pipeline.stop()
    accounts = balance(made, delivered)
    sys.stdout.write(table(pipeline, accounts, errors))
    return verdict(end, messages, pipeline, accounts, errors)


class CtrlC:
    """Ctrl-C as a flag: a KeyboardInterrupt could strike in the midst of the shutdown it asks for.

    A second Ctrl-C is a KeyboardInterrupt, for those who can't wait. Where SIGINT is ignored, as a
    shell has it for what runs in its background, it stays ignored.
    """

    def __enter__(self) -> Self:
        self.pressed = False
        self._previous = signal.getsignal(signal.SIGINT)
        if self._previous is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _press(self, *_: object) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def quiet_arroyo() -> Generator[None]:
    """Keeps arroyo's log records and deprecation warnings from the terminal."""
    logger = logging.getLogger("arroyo")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        # It calls utcfromtimestamp(), deprecated from Python 3.12 on: with -W error the processor
        # would die of its first message.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"arroyo\.")
        try:
            yield
        finally:
            logger.setLevel(level)


def watch(
    pipeline: Pipeline, messages: int, seconds: float, ctrl_c: CtrlC, progress: Progress
) -> End:
    """Show progress, once a second, until the run ends; tell how it ended."""
    start = shown_at = time.monotonic()
    shown = 0
    while (end := ending(pipeline, start + seconds, ctrl_c)) is None:
        time.sleep(0.1)
        if (passed := time.monotonic() - shown_at) < 1:
            continue
        consumed, produced = pipeline.consumer.consumed, pipeline.forwarder.delivered
        progress.show(
            f"{time.monotonic() - start:4.0f} s {(consumed - shown) / passed:8,.0f} messages/s"
            f"   {consumed:,} consumed, {produced:,} of {messages:,} produced"
        )
        shown, shown_at = consumed, shown_at + passed
    return end


def ending(pipeline: Pipeline, deadline: float, ctrl_c: CtrlC) -> End | None:
    """How the run has ended; None if it goes on."""
    if ctrl_c.pressed:
        return "interrupted"
    if pipeline.is_done():
        return "done"
    return "out of time" if time.monotonic() >= deadline else None


def table(pipeline: Pipeline, accounts: Sequence[Account], errors: Errors) -> str:
    """The numbers of a run."""
    messages = (pipeline.feeder.delivered, pipeline.consumer.consumed, pipeline.forwarder.delivered)
    rows = [
        ("", "in", "consumed", "produced"),
        ("messages", *map(amount, messages)),
        ("",),
        ("metric", "made", "delivered", "lost"),
        *((a.metric, amount(a.made), amount(a.delivered), amount(a.lost)) for a in accounts),
        ("",),
        ("total", "counters", "timers"),
        ("lost", *(amount(total(accounts, unit, +1)) for unit in (int, float))),
        ("counted twice", *(amount(total(accounts, unit, -1)) for unit in (int, float))),
        ("errors", amount(errors.texts.total())),
    ]
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:{width}}" + "".join(f"{cell:>18}" for cell in row[1:]) for row in rows]
    texts = [f"{count:>8,} x {text}" for text, count in errors.texts.most_common()]
    targets = [f"{target.name}: {target.state}" for target in status().targets]
    return "\n".join([*targets, "", *(line.rstrip() for line in lines), *texts, ""])


def total(accounts: Sequence[Account], unit: type[float], sign: int) -> float:
    """What counters (int) or timers (float) lost (+1) or counted twice (-1)."""
    return unit(sum(max(sign * a.lost, 0) for a in accounts if isinstance(a.made, unit)))


def amount(value: float) -> str:
    """A count, or seconds."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6f} s"


def verdict(
    end: End, messages: int, pipeline: Pipeline, accounts: Sequence[Account], errors: Errors
) -> int:
    """The exit status, and a word about a run that was cut short."""
    produced = pipeline.forwarder.delivered
    if end != "done":
        sys.stdout.write(f"Stopped ({end}), {max(messages - produced, 0):,} messages not copied.\n")
    if end == "interrupted":
        return 130
    exact = not errors.texts and all(account.lost == 0 for account in accounts)
    copied = produced >= messages if end == "done" else produced > 0
    return 0 if exact and copied else 1
