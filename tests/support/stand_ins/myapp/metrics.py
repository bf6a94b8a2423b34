"""Its metrics backend."""

from __future__ import annotations

from collections import Counter


class Backend:
    """Keeps the sums of what it is sent, which a reader's would send on."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()

    def increment(self, name: str, value: float = 1, tags: dict[str, str] | None = None) -> None:
        self.sums[name] += value  # type: ignore[assignment]

    def timing(self, name: str, value: float, tags: dict[str, str] | None = None) -> None:
        self.sums[name] += 1

    def gauge(self, name: str, value: float, tags: dict[str, str] | None = None) -> None: ...


backend = Backend()
