"""What a value is before a block and after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def assert_changes(value: Callable[[], object], before: object, after: object) -> Iterator[None]:
    assert value() == before
    yield
    assert value() == after


@contextmanager
def assert_does_not_change(value: Callable[[], object], expected: object) -> Iterator[None]:
    with assert_changes(value, expected, expected):
        yield
