"""How everything here is measured: side by side, in turn, many times.

Every round runs each contender once, one after the other, so that a change of the machine's speed
meets all of them; a round gives one ratio each, and a ratio is reported as the median of them with
its quartiles. The timing itself is ``timeit``'s. pyperf, which is more careful about a single
figure, runs one benchmark after the other, each in processes of its own: on a machine whose speed
drifts, their ratio says when they ran.
"""

from __future__ import annotations

import gc
import statistics
import timeit
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

OURS = "this package"


class Figure(NamedTuple):
    """A contender's figure: in its unit, and as a multiple of ours."""

    median: float
    ratio: float
    """To ours, the median over the rounds. More is worse where the unit is a time."""
    low: float
    """Lower quartile of the ratio."""
    high: float
    """Upper quartile of the ratio."""


Figures = dict[str, Figure]
"""Figures by contender."""


def side_by_side(rounds: int, contenders: Mapping[str, Callable[[], float]]) -> Figures:
    """Run every contender once a round."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for job in contenders.values():
        job()  # imports, caches, specialised bytecode
    for _ in range(rounds):
        gc.collect()
        for name, job in contenders.items():
            samples[name].append(job())
    return {name: figure(values, samples[OURS]) for name, values in samples.items()}


def figure(values: list[float], ours: list[float]) -> Figure:
    ratios = [value / our for value, our in zip(values, ours, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Figure(statistics.median(values), median, low, high)


def nanoseconds(
    statement: str, names: dict[str, Any], calls: int, setup: str = "pass"
) -> Callable[[], float]:
    """A job that runs a statement so many times and returns nanoseconds per call."""
    # Unrolled: a loop costs a fifth of the cheapest call.
    timer = timeit.Timer("; ".join([statement] * 10), setup, globals=names)
    return lambda: timer.timeit(calls // 10) / calls * 1e9


class Case(NamedTuple):
    """Something to measure, of several contenders."""

    group: str
    title: str
    unit: str
    rounds: int
    contenders: Mapping[str, Callable[[], float]]
