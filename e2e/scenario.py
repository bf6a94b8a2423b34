"""The scenario: consumers join a group, leave it and are killed while messages keep coming."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from consumer import DESTINATION, LAST, SOURCE
from ending import Failed, process_group
from ledger import Record
from servers import Broker, StatsD

PARTITIONS = 12
MESSAGES_PER_SECOND = 1_000
MESSAGES_PER_STEP = 3_000  # copied between two steps of the scenario
STEP_TIMEOUT = 60  # seconds

ROLES = {
    0: ["--background"],
    1: ["--workers", "2"],
    2: ["--forking"],
    3: [],
    4: ["--forking"],
}
STAYING, STOPPED, KILLED, LATE = (0, 1), 2, 3, 4
REBALANCES = 4  # at least, which those see who are there from the start to the end


class Surroundings(NamedTuple):
    """What all consumers have in common."""

    servers: str
    statsd: StatsD
    folder: Path


class Member:
    """A consumer's process."""

    def __init__(
        self, number: int, role: Sequence[str], group: int, surroundings: Surroundings
    ) -> None:
        self.number = number
        self.role = role
        self.expected: int | None = None
        self.killed_at: float | None = None
        self.log = surroundings.folder / f"consumer-{number}.log"
        ledger = surroundings.folder / f"consumer-{number}.ledger"
        self.record = Record(ledger)
        script = Path(__file__).with_name("consumer.py")
        arguments = map(str, (number, surroundings.servers, surroundings.statsd.socket, ledger))
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(script), *arguments, *role],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=group,
            )

    def terminate(self) -> None:
        if self.lives():
            self.expected = 0
            self.process.terminate()

    def kill(self) -> None:
        if self.lives():
            self.expected = -signal.SIGKILL
            self.killed_at = time.monotonic()
            self.process.kill()

    def lives(self) -> bool:
        return self.process.poll() is None

    def last_word(self) -> str:
        return self.log.read_text(errors="replace").strip().rpartition("\n")[2]


class Messages:
    """Feeds the source topic, and reads what arrives in the destination."""

    def __init__(self, servers: str) -> None:
        topics = [NewTopic(topic.name, PARTITIONS) for topic in (SOURCE, DESTINATION, LAST)]
        silent: dict[str, str | int | float | bool] = {"bootstrap.servers": servers, "log_level": 0}
        admin = AdminClient(silent)
        for future in admin.create_topics(topics).values():
            future.result(STEP_TIMEOUT)
        # It commits nothing, for which its end would wait 45 s if the broker has ended before.
        settings = {"group.id": "end", "auto.offset.reset": "earliest", "enable.auto.commit": False}
        self._consumer = Consumer({**silent, **settings})
        for topic in topics:
            await_leaders(self._consumer, topic.topic)
        partitions = range(PARTITIONS)
        self._consumer.assign([TopicPartition(DESTINATION.name, index, 0) for index in partitions])
        self._producer = Producer(silent)
        self._start = math.inf
        self.fed = 0
        self.copies = 0
        self.copied: set[int] = set()
        self.processes: dict[int, set[int]] = defaultdict(set)

    def start(self) -> None:
        self._start = time.monotonic()

    def stop(self) -> None:
        self._start = math.inf
        self._producer.flush(STEP_TIMEOUT)

    def turn(self) -> None:
        """Feed what is due and read what is there."""
        self.feed((time.monotonic() - self._start) * MESSAGES_PER_SECOND)
        self._producer.poll(0)
        for message in self._consumer.consume(10_000, timeout=0.05):
            key, value = message.key(), message.value()
            if message.error() or key is None or value is None:
                raise Failed(f"the destination can't be read: {message.error()}")
            number, pid = map(int, value.split())
            self.copies += 1
            self.copied.add(int(key))
            self.processes[number].add(pid)

    def feed(self, due: float) -> None:
        """Feed until so many are."""
        while self.fed < due:
            self._producer.produce(SOURCE.name, key=b"%d" % self.fed, value=b"")
            self.fed += 1


def await_leaders(consumer: Consumer, topic: str) -> None:
    """Wait until every partition can tell its offsets: arroyo asks once, and dies if none can."""
    deadline = time.monotonic() + STEP_TIMEOUT
    for index in range(PARTITIONS):
        while True:
            try:
                consumer.get_watermark_offsets(TopicPartition(topic, index), timeout=STEP_TIMEOUT)
                break
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


class Scenario:
    """What happens to the group."""

    roles: Mapping[int, Sequence[str]] = ROLES

    def __init__(self, broker: Broker, server: StatsD, folder: Path) -> None:
        self._broker = broker
        self._surroundings = Surroundings(broker.address, server, folder)
        self._groups = ExitStack()
        self.messages = Messages(broker.address)
        self.members: dict[int, Member] = {}

    def play(self) -> None:
        for number in (*STAYING, STOPPED):
            self._join(number)
        self.messages.start()
        self._copy_some()
        self._join(KILLED)
        self._copy_some()
        self._leave(f"consumer {STOPPED} gets SIGTERM", self.members[STOPPED].terminate)
        self._copy_some()
        self._join(LATE)
        self._copy_some()
        self._leave(f"consumer {KILLED} gets SIGKILL", self.members[KILLED].kill)
        self._copy_some()
        self.messages.stop()
        self._until("all is copied", lambda: len(self.messages.copied) == self.messages.fed)
        for number in (*STAYING, LATE):
            self.members[number].terminate()
        self._until("all have ended", lambda: not any(map(Member.lives, self.members.values())))

    def troubles(self) -> Iterator[str]:
        """What happened and should not have, or did not and should."""
        for number, member in self.members.items():
            if member.record.fact("ended"):
                yield f"consumer {number} lost the broker: {member.last_word()}"
            rebalances = member.record.fact("assignments")
            if number in STAYING and rebalances <= REBALANCES:
                yield f"consumer {number} was in {rebalances} rebalances only"

    def end(self) -> None:
        """Stop what still runs, as a failure has left it."""
        try:
            for member in filter(Member.lives, self.members.values()):
                member.terminate()
            deadline = time.monotonic() + STEP_TIMEOUT
            for member in self.members.values():
                with suppress(subprocess.TimeoutExpired):
                    member.process.wait(max(deadline - time.monotonic(), 0))
        finally:
            self._groups.close()  # a member's group is its children too
            for member in self.members.values():
                member.process.wait()

    def _start(self, number: int, role: Sequence[str]) -> Member:
        group = self._groups.enter_context(process_group())
        self.members[number] = member = Member(number, role, group, self._surroundings)
        return member

    def _join(self, number: int) -> None:
        member = self._start(number, self.roles[number])
        self._until(f"consumer {number} starts", lambda: member.record.fact("assignments") > 0)

    def _leave(self, what: str, step: Callable[[], None]) -> None:
        before = self._assignments()
        step()
        self._until(what, lambda: self._assignments() > before)

    def _assignments(self) -> int:
        return sum(member.record.fact("assignments") for member in self.members.values())

    def _copy_some(self) -> None:
        enough = len(self.messages.copied) + MESSAGES_PER_STEP
        self._until("messages are copied", lambda: len(self.messages.copied) >= enough)

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        start = time.monotonic()
        print(f"{what} ... ", end="", flush=True)
        while not condition():
            self._turn()
            if time.monotonic() - start > STEP_TIMEOUT:
                raise Failed(f"not within {STEP_TIMEOUT} s: {what}")
        copied = len(self.messages.copied)
        print(f"{time.monotonic() - start:.1f} s, {copied:,} messages copied")

    def _turn(self) -> None:
        if not any(map(Member.lives, self.members.values())):
            raise Failed("no consumer lives any more")
        self.messages.turn()
