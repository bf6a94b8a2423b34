"""Measures everything and writes it down as JSON, for report.py."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any

import calls
import flushes
import footprint
import processors
import streams
import waits
from measuring import OURS, Case, Figures, side_by_side

MODULES = {each.__name__: each for each in (calls, flushes, processors, streams, footprint)}
PACKAGES = (
    "sentry-arroyo",
    "confluent-kafka",
    "prometheus-client",
    "opentelemetry-sdk",
    "datadog",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the JSON, named after the interpreter")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--only", choices=MODULES, help="and keep the other figures of the file")
    arguments = parser.parse_args()
    threaded = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    output = arguments.folder / f"cp{sys.version_info[0]}{sys.version_info[1]}{threaded}.json"
    if arguments.only:
        results: dict[str, Any] = json.loads(output.read_text("utf-8"))
        modules = [MODULES[arguments.only]]
    else:
        results = {"machine": machine(), "figures": {}}
        modules = [*MODULES.values()]
    for module in modules:
        for case in module.cases():
            rounds = max(case.rounds // 10, 3) if arguments.quick else case.rounds
            enter(results, case, side_by_side(rounds, case.contenders))
    if not arguments.only:
        for title, figures in waits.figures():
            enter(results, Case("wait", title, "µs", 1, {}), figures)
        results["wheel"] = footprint.wheel()
    output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")


def enter(results: dict[str, Any], case: Case, figures: Figures) -> None:
    print(f"{case.group}: {case.title}, {case.unit}")
    for name, figure in figures.items():
        spread = (
            "" if name == OURS else f" {figure.ratio:8.2f} [{figure.low:.2f} to {figure.high:.2f}]"
        )
        print(f"  {name:24}{figure.median:14,.4g}{spread}")
    sys.stdout.flush()
    cases = results["figures"].setdefault(case.group, {})
    cases[case.title] = {
        "unit": case.unit,
        "rounds": case.rounds,
        "contenders": {name: figure._asdict() for name, figure in figures.items()},
    }


def machine() -> dict[str, Any]:
    model = "unknown processor"
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [line for line in cpuinfo.read_text("utf-8").splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    main()
