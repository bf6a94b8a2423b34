"""Makes docs/benchmarks.md and its plots of the JSON files that run.py wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import OURS
from plots import draw

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
    pictures = [f"![{text}](benchmarks/{name})" for name, text in draw(results, folder).items()]
    page = "\n".join(lines(results, pictures))
    folder.with_suffix(".md").write_text(page + "\n", "utf-8")


def lines(results: Results, pictures: list[str]) -> Iterator[str]:
    """The page."""
    yield "# Benchmarks"
    yield ""
    yield "Made by `make bench`; do not edit. What is compared runs side by side in one process and"
    yield "in turn, round after round. A ratio is the median of the rounds' ratios, with quartiles"
    yield "in brackets; [benches/measuring.py](../benches/measuring.py) says why not pyperf."
    yield ""
    yield from pictures
    yield ""
    for each in results.values():
        yield f"* {machine(each['machine'])}"
    if wheel := next((each["wheel"] for each in results.values() if each["wheel"]), None):
        yield f"* The wheel has {wheel / 1e3:,.0f} kB."
    for group, heading in GROUPS.items():
        yield from ("", f"## {heading}")
        if NOTES[group]:
            yield from ("", NOTES[group])
        for tag, each in results.items():
            if cases := each["figures"].get(group):  # `run.py --only` may not have run everywhere
                yield ""
                yield from table(tag, cases)


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
