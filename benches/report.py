"""Makes docs/benchmarks.md and its plots of the JSON files that run.py wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from measuring import OURS

OURS_COLOUR, OTHER_COLOURS = "#c2410c", ("#475569", "#94a3b8", "#0e7490", "#a3a3a3")
EMPTY = "empty method in Rust"
GROUPS = {
    "call": "One call",
    "threads": "Calls from several threads",
    "scaling": "Scaling",
    "wait": "A call while another thread is stuck in the backend",
    "names": "Many names, and names that are not interned",
    "flush": "A flush",
    "producer": "The producer",
    "processor": "Messages through StreamProcessor",
    "streams": "The buffer of sentry-streams",
    "weight": "Weight",
}
NOTES = {
    "call": "Ratios are to this package: 6 means six times the cost of its call.",
    "threads": "All threads write to one counter, each with the method in a local variable. Ratios"
    " to this package, less is slower.",
    "scaling": "On two cores and one counter. The empty method is what the interpreter allows.",
    "wait": "Every call of the backend takes 100 ms. One run of 2,000,000 calls.",
    "names": "As far as they have names: prometheus_client and OpenTelemetry give each an object.",
    "flush": "To a backend in Python that does nothing. arroyo's loop stays in the interpreter,"
    " this package calls into it.",
    "producer": "With and without latencies to send, to a backend that does nothing.",
    "processor": "One thread, arroyo's run loop, a strategy that keeps busy for so long.",
    "streams": "Beside the library's own class of sentry-streams 0.0.69, to a backend that does"
    " nothing.",
    "weight": "",
}

Results = dict[str, Any]


def main() -> None:
    folder = Path(sys.argv[1])
    results = {
        path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))
    }
    mpl.rcParams |= {"svg.hashsalt": "arroyo", "svg.fonttype": "none", "font.family": "sans-serif"}
    mpl.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    overview(results, folder / "overview.svg")
    waits(results, folder / "waits.svg")
    page = "\n".join(lines(results))
    folder.with_suffix(".md").write_text(page + "\n", "utf-8")


def first(results: Results, *, free_threaded: bool) -> Results:
    """Of the oldest interpreter of a kind."""
    for each in results.values():
        if each["machine"]["free_threaded"] == free_threaded:
            found: Results = each
            return found
    sys.exit("Results of an interpreter with and of one without the GIL are needed: make bench")


def contenders(results: Results, group: str, title: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = results["figures"][group][title]["contenders"]
    return found


def overview(results: Results, path: Path) -> None:
    """The three figures that a reader wants."""
    with_gil, without = (first(results, free_threaded=kind) for kind in (False, True))
    figure, (calls, messages, scaling) = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")

    costs = contenders(with_gil, "call", "incr_counter")
    names = [name for name in costs if name not in ("OpenTelemetry", "datadog, aggregating")][::-1]
    colours = [OURS_COLOUR if name == OURS else OTHER_COLOURS[1] for name in names]
    bars = calls.barh(names, [costs[n]["median"] for n in names], color=colours)
    calls.bar_label(bars, [f"{costs[n]['median']:.0f} ns" for n in names], padding=3)
    calls.set_title("A call of incr_counter")
    calls.set_xlabel(f"ns, CPython {with_gil['machine']['python']}")
    calls.margins(x=0.2)

    strategies = list(with_gil["figures"]["processor"])
    times = [
        1 / contenders(with_gil, "processor", title)["arroyo"]["ratio"] for title in strategies
    ]
    bars = messages.bar(
        [t.removeprefix("strategy of ") for t in strategies], times, color=OURS_COLOUR
    )
    messages.bar_label(bars, [f"{each:.2f}x" for each in times], padding=3)
    messages.axhline(1, color=OTHER_COLOURS[1])
    messages.margins(y=0.1)
    messages.set_title("Messages through StreamProcessor")
    messages.set_ylabel("times those with arroyo's buffer")
    messages.set_xlabel("time that the strategy takes")

    threads = list(without["figures"]["threads"])
    for name, colour in (
        ("arroyo", OTHER_COLOURS[0]),
        (EMPTY, OTHER_COLOURS[1]),
        (OURS, OURS_COLOUR),
    ):
        rates = [contenders(without, "threads", t)[name]["median"] for t in threads]
        scaling.plot(threads, rates, "o-", color=colour, label=name)
    scaling.set_ylim(bottom=0)
    scaling.set_title(f"Calls without the GIL, {without['machine']['cores']} cores")
    scaling.set_ylabel("million per second")
    scaling.set_xlabel(f"threads, CPython {without['machine']['python']}t")
    scaling.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def waits(results: Results, path: Path) -> None:
    with_gil = first(results, free_threaded=False)
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    percentiles = list(with_gil["figures"]["wait"])
    names = list(contenders(with_gil, "wait", percentiles[0]))
    others = iter(OTHER_COLOURS)
    for name in names:
        colour = OURS_COLOUR if name == OURS else next(others)
        times = [contenders(with_gil, "wait", p)[name]["median"] for p in percentiles]
        axes.plot(percentiles, times, "o-", color=colour, label=name)
    axes.axhline(1_000, color="#cbd5e1", linestyle="--")
    axes.annotate("1 ms", (0, 1_000), textcoords="offset points", xytext=(0, 3), color="#64748b")
    axes.set_yscale("log")
    axes.set_title("A call while another thread is stuck in a backend of 100 ms per call")
    axes.set_ylabel("µs")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def lines(results: Results) -> Iterator[str]:
    """The page."""
    yield "# Benchmarks"
    yield ""
    yield "Made by `make bench`; do not edit. What is compared runs side by side in one process and"
    yield "in turn, round after round. A ratio is the median of the rounds' ratios, with quartiles"
    yield "in brackets; [benches/measuring.py](../benches/measuring.py) says why not pyperf."
    yield ""
    yield "![A call, messages per second, scaling](benchmarks/overview.svg)"
    yield ""
    for each in results.values():
        yield f"* {machine(each['machine'])}"
    if wheel := next((each["wheel"] for each in results.values() if each["wheel"]), None):
        yield f"* The wheel has {wheel / 1e3:,.0f} kB."
    for group, heading in GROUPS.items():
        yield from ("", f"## {heading}")
        if NOTES[group]:
            yield from ("", NOTES[group])
        if group == "wait":
            yield from ("", "![Waiting times](benchmarks/waits.svg)")
        for tag, each in results.items():
            yield ""
            yield from table(tag, each["figures"][group])


def machine(facts: Results) -> str:
    build = "free-threaded" if facts["free_threaded"] else "with the GIL"
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return (
        f"CPython {facts['python']} {build}, {facts['cores']} cores of {facts['processor']},"
        f" {facts['system']}; {packages}"
    )


def table(tag: str, cases: dict[str, Any]) -> Iterator[str]:
    """A row for each contender, a column for each case."""
    titles = [f"{title}, {case['unit']}" for title, case in cases.items()]
    yield f"| {tag} | " + " | ".join(titles) + " |"
    yield "|---|" + "---|" * len(titles)
    names = dict.fromkeys(name for case in cases.values() for name in case["contenders"])
    for name in names:
        cells = (cell(name, case["contenders"].get(name)) for case in cases.values())
        label = f"**{name}**" if name == OURS else name
        yield f"| {label} | " + " | ".join(cells) + " |"


def cell(name: str, figure: dict[str, float] | None) -> str:
    if figure is None:
        return ""
    median = f"{figure['median']:,.0f}" if figure["median"] > 99 else f"{figure['median']:.3g}"  # noqa: PLR2004 - three digits
    if name == OURS:
        return f"**{median}**"
    if figure["low"] == figure["high"]:
        return f"{median}"
    return f"{median} = {figure['ratio']:.2f}x [{figure['low']:.2f}-{figure['high']:.2f}]"


if __name__ == "__main__":
    main()
