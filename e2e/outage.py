"""The other scenario: the broker is killed in mid-stream, and comes back with all that it had."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ledger import FAILED
from scenario import ROLES, Member, Scenario

# Messages at once. The broker dies in the midst of the first ones, and the last ones give all of
# those that were started again something to copy.
BACKLOG = 10_000


class Outage(Scenario):
    """What happens to the broker, and to the group for it.

    A consumer that arroyo ends is started again, under a number of its own.
    """

    roles = {number: [*ROLES[number], "--outage"] for number in range(4)}  # noqa: RUF012

    def play(self) -> None:
        for number in self.roles:
            self._join(number)
        self.messages.start()
        self._copy_some()
        self._feed_backlog()
        self._copy_some()
        self._broker.kill()
        self._until("the broker is killed, all have deliveries fail", self._all_fail)
        with ThreadPoolExecutor(1) as executor:
            start = executor.submit(self._broker.start)
            self._until("the broker starts again", start.done)
            start.result()
        self._until("all take part again", self._all_take_part)
        self._feed_backlog()
        self._copy_some()
        self.messages.stop()
        self._until("all is copied", self._all_is_copied)
        for member in self.members.values():
            member.terminate()
        self._until("all have ended", lambda: not any(map(Member.lives, self.members.values())))

    def troubles(self) -> Iterator[str]:
        records = [member.record for member in self.members.values()]
        if not any(record.fact(FAILED) for record in records):
            yield "no delivery failed in the outage"
        if not any(record.fact("ended") for record in records):
            yield "no consumer ended in the outage"

    def _turn(self) -> None:
        """As ever, and start those again that the outage has ended."""
        for member in [*self.members.values()]:
            if member.expected is None and not member.lives() and member.record.fact("ended"):
                member.expected = 0
                self._start(len(self.members), member.role)
        super()._turn()

    def _feed_backlog(self) -> None:
        self.messages.feed(self.messages.fed + BACKLOG)

    def _all_fail(self) -> bool:
        return all(self.members[number].record.fact(FAILED) for number in self.roles)

    def _all_take_part(self) -> bool:
        alive = filter(Member.lives, self.members.values())
        return all(member.record.fact("assignments") for member in alive)

    def _all_is_copied(self) -> bool:
        return len(self.messages.copied) == self.messages.fed and self._all_take_part()
