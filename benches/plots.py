"""Draws the plots of docs/benchmarks.md: as wide as a phone, in light and in dark colours."""

from __future__ import annotations

import io
import sys
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from measuring import OURS

Results = dict[str, Any]

# Each colour on a light page, and below what stands for it on a dark one. As in docs/why/*.svg.
PAPER, INK, LINE, ACCENT, OTHERS = (
    "#ffffff",
    "#1f2937",
    "#d1d5db",
    "#c2410c",
    ("#64748b", "#0e7490", "#7c3aed"),
)
DARK = {
    PAPER: "#1b1e26",
    INK: "#e5e7eb",
    LINE: "#4b5563",
    ACCENT: "#fb923c",
    OTHERS[0]: "#94a3b8",
    OTHERS[1]: "#22d3ee",
    OTHERS[2]: "#a78bfa",
}
STYLE: Any = {
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "figure.figsize": (3.5, 2.8),  # inches, of which a browser makes 336 x 269 pixels
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "font.family": "sans-serif",
    "font.size": 9,
    "legend.frameon": False,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "arroyo",
    "text.color": INK,
    "xtick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
}
EMPTY = "empty method in Rust"


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Write the plots, and return the text of each by its file's name."""
    with_gil, without = (oldest(results, free_threaded=kind) for kind in (False, True))
    texts = {}
    with mpl.rc_context(STYLE):
        for plot, figures in (
            (calls, with_gil),
            (messages, with_gil),
            (scaling, without),
            (waits, with_gil),
        ):
            figure, axes = plt.subplots()
            text = plot(axes, figures)
            name = f"{plot.__name__}.svg"
            (folder / name).write_text(svg(figure, axes.get_title(), text), "utf-8")
            texts[name] = f"{axes.get_title()}. {text}"
            plt.close(figure)
    return texts


def oldest(results: Results, *, free_threaded: bool) -> Results:
    """The results of the oldest interpreter of a kind."""
    for each in results.values():
        if each["machine"]["free_threaded"] == free_threaded:
            found: Results = each
            return found
    sys.exit("Results of an interpreter with and of one without the GIL are needed: make bench")


def medians(results: Results, group: str, title: str) -> dict[str, float]:
    contenders = results["figures"][group][title]["contenders"]
    return {name: figure["median"] for name, figure in contenders.items()}


def calls(axes: Axes, results: Results) -> str:
    costs = medians(results, "call", "incr_counter")
    names = [name for name in costs if name not in ("OpenTelemetry", "datadog, aggregating")][::-1]
    colours = [ACCENT if name == OURS else OTHERS[0] for name in names]
    bars = axes.barh(names, [costs[name] for name in names], height=0.35, color=colours)
    axes.bar_label(bars, [f"{costs[name]:.0f} ns" for name in names], padding=3)
    for place, name in enumerate(names):
        axes.annotate(name, (0, place + 0.18), textcoords="offset points", xytext=(0, 3))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines.bottom.set_visible(False)
    axes.margins(x=0.2, y=0.08)
    axes.set_title("A call of incr_counter")
    python = results["machine"]["python"]
    axes.set_xlabel(f"less is better, CPython {python}")
    listed = "; ".join(f"{name}: {costs[name]:.0f}" for name in names[::-1])
    return f"Bars, in nanoseconds on CPython {python}: {listed}."


def messages(axes: Axes, results: Results) -> str:
    titles = list(results["figures"]["processor"])
    ratios = [
        1 / results["figures"]["processor"][title]["contenders"]["arroyo"]["ratio"]
        for title in titles
    ]
    strategies = [title.removeprefix("strategy of ") for title in titles]
    bars = axes.bar(strategies, ratios, color=ACCENT, width=0.6)
    axes.bar_label(bars, [f"{each:.2f}x" for each in ratios], padding=3)
    axes.axhline(1, color=OTHERS[0], linestyle="--")
    axes.margins(y=0.12)
    axes.set_title("Messages through StreamProcessor")
    axes.set_ylabel("times arroyo's, more is better")
    python = results["machine"]["python"]
    axes.set_xlabel(f"strategy's time, CPython {python}")
    listed = ", ".join(
        f"{ratio:.2f} at {each}" for each, ratio in zip(strategies, ratios, strict=True)
    )
    return f"Bars, in times the messages with arroyo's buffer, by the strategy's time: {listed}."


def scaling(axes: Axes, results: Results) -> str:
    machine = results["machine"]
    threads = list(results["figures"]["threads"])
    rates = [medians(results, "threads", each) for each in threads]
    listed = lines(
        axes, threads, {name: [each[name] for each in rates] for name in (OURS, EMPTY, "arroyo")}
    )
    axes.set_ylim(bottom=0, top=max(each[EMPTY] for each in rates) * 1.45)  # the legend is above
    axes.set_title(f"Calls without the GIL, {machine['cores']} cores")
    axes.set_ylabel("million/s, more is better")
    axes.set_xlabel(f"threads, CPython {machine['python']}t")
    return f"Lines, in million calls per second from {', '.join(threads)} threads: {listed}."


def waits(axes: Axes, results: Results) -> str:
    percentiles = list(results["figures"]["wait"])
    times = [medians(results, "wait", each) for each in percentiles]
    names = sorted(times[0], key=lambda name: name != OURS)  # ours first
    axes.set_yscale("log")
    listed = lines(axes, percentiles, {name: [each[name] for each in times] for name in names})
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("A call while another thread flushes")
    axes.set_ylabel("µs, less is better")
    axes.set_xlabel(f"of all calls, CPython {results['machine']['python']}")
    return (
        f"The backend takes 100 ms. Lines, in microseconds at {', '.join(percentiles)}: {listed}."
    )


def lines(axes: Axes, places: list[str], series: dict[str, list[float]]) -> str:
    """Draw a line for each name, ours in front, and return them as text."""
    others = cycle(zip(OTHERS, "s^D", strict=True))
    for name, values in series.items():
        colour, marker = (ACCENT, "o") if name == OURS else next(others)
        axes.plot(
            places, values, color=colour, label=name, marker=marker, zorder=2 + (name == OURS)
        )
    axes.legend(loc="upper left")
    listed = {name: ", ".join(map(rounded, values)) for name, values in series.items()}
    return "; ".join(f"{name}: {values}" for name, values in listed.items())


def rounded(value: float) -> str:
    return f"{value:,.0f}" if value > 99 else f"{value:.2g}"  # noqa: PLR2004 - three digits


def svg(figure: Figure, title: str, text: str) -> str:
    """The figure on a sheet of its own, with its text, and with dark colours for dark pages."""
    file = io.StringIO()
    figure.savefig(
        file, format="svg", metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"])
    )
    opening, _, drawing = file.getvalue().partition('version="1.1">\n')
    dark = "".join(
        f'\n   [style*="{each}: {light}"] {{ {each}: {dark} !important }}'
        for light, dark in DARK.items()
        for each in ("fill", "stroke")
    )
    return f"""{opening}version="1.1" role="img" aria-labelledby="title desc">
 <title id="title">{escape(title)}</title>
 <desc id="desc">{escape(text)}</desc>
 <style>
  @media (prefers-color-scheme: dark) {{{dark}
  }}
 </style>
 <rect x="0.5" y="0.5" width="251" height="200.6" rx="6" style="fill: {PAPER}; stroke: {LINE}"/>
{drawing}"""
