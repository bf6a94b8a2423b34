"""The fixes of arroyo's races that are made by hand, in arroyo's own file.

A fixed method has the words of the known one, and a few more: those of a copy that is made before
the totals are sent, of tables that are swapped, of a lock. The fixed class can be replaced like the
known one. That a newer release of arroyo has such words says nothing about a fix by hand, so they
are only looked for in the releases that are known not to have them.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet

from .shapes import Method, Shape, methods_of

_COPY = frozenset({"list", "dict", "tuple", "copy"})
_NEW_TABLES = frozenset({"defaultdict", "float", "int"})
_LOCK = frozenset({"lock", "rlock"})
_OF_LOCKS = frozenset({"threading", "acquire", "release"})


def with_fixes(cls: type, known: Shape, *, ignored: Collection[str]) -> tuple[Shape, list[str]]:
    """The known shape with what is fixed in a class, and the fixes in words."""
    methods = dict(known.methods)
    found: set[str] = set()
    for name, actual in methods_of(cls).items():
        if name in ignored or name not in methods:
            continue
        if (fixes := of_method(actual, methods[name])) is not None:
            methods[name] = actual
            found |= fixes
    return known._replace(methods=methods), sorted(found)


def of_method(actual: Method, known: Method) -> set[str] | None:
    """The fixes that a method has and the known one has not; None if it differs otherwise."""
    added, gone = actual.words - known.words, known.words - actual.words
    fixes = {f"a copy by {word}()" for word in added & _COPY}
    # A copy is made of what is sent: a flush has a call of items() in every release.
    is_known = actual.parameters == known.parameters and (not fixes or "items" in known.words)
    added -= _COPY
    if locks := words_of_locks(added):
        fixes.add("a lock")
        added -= locks
    if gone:
        fixes.add("a swap of the tables")
        is_known &= _is_swap(added, gone)
        added -= added
    return fixes if is_known and not added else None


def _is_swap(added: AbstractSet[str], gone: AbstractSet[str]) -> bool:
    """Whether tables are replaced or cleared where the known method calls ``__reset()``."""
    clears = {word for word in gone if "__reset" in word or word == "clear"}
    times = {word for word in added if word == "time" or word.endswith("__last_record_time")}
    tables = added - times
    return (
        clears == gone
        and ("defaultdict" in tables or tables == {"clear"})
        and (tables <= _NEW_TABLES | {"clear"})
    )


def words_of_locks(words: AbstractSet[str]) -> AbstractSet[str]:
    """The words that make and use a lock, which is called one."""
    locks = {word for word in words if word.lower().rpartition("_")[2] in _LOCK}
    return locks | (words & _OF_LOCKS) if locks else frozenset()
