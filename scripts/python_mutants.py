"""Break the Python that patches arroyo in one small way after another; list what no test notices.

cosmic-ray makes the mutants of ``python/arroyo_metrics_buffer/_patching``. It has up to eleven for
a place, such as a comparison. ``SEED`` chooses one of them, and a third of the places of each
module; ``--all`` takes all places. The tests that are about the module come first; what survives
them is given to the other tests of the patching. Names of modules choose some.

Every mutant is made in a copy of what is committed. The copy has a virtual environment of its own,
since many tests start interpreters.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cosmic_ray import plugins  # type: ignore[import-untyped]
from cosmic_ray.commands.init import _all_work_items  # type: ignore[import-untyped]
from cosmic_ray.mutating import mutate_code  # type: ignore[import-untyped]
from cosmic_ray.testing import run_tests  # type: ignore[import-untyped]
from cosmic_ray.work_item import MutationSpec, TestOutcome  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent
PACKAGE = Path("python/arroyo_metrics_buffer")
SEED = 17
SHARE = 3  # of the places, one in so many is tried, unless --all is given
TIMEOUT = 300  # seconds; all tests together need a third of that
# What is about a module, the quickest first.
FIRST = {
    "ending": ["contract/test_exit"],
    "fixes": ["patching/test_fixes"],
    "hook": ["patching/test_hook", "commands/test_run"],
    "install": ["patching/test_install", "patching/test_environment_variables"],
    "log": ["patching/test_status", "patching/test_install"],
    "look": ["patching/test_status"],
    "older": ["patching/test_releases"],
    "patch": ["patching/test_producer_patches", "patching/test_status"],
    "private_names": ["patching/test_remedies"],
    "producer": ["patching/test_producer_patches", "patching/test_install_producer"],
    "recognition": ["patching/test_fixes", "patching/test_install"],
    "remedies": ["patching/test_remedies"],
    "shapes": ["patching/test_install", "patching/test_install_producer"],
    "state": ["patching/test_install"],
    "status": ["patching/test_status"],
    "tables": ["patching/test_remedies"],
    "targets": ["patching/test_status", "patching/test_install_producer"],
    "variables": ["patching/test_environment_variables"],
}
# Of the contract, what the patching has a part in.
CONTRACT = ["contract/test_producer", "contract/test_drop_in"]
# The lines of the survivors that are known, with the reason that no test turns red.
KNOWN = {
    "_PRIORITY = 19": "nothing of multiprocessing's is between the two",
    "first = failed[0].errors[ -1]": "the text of a record: which of a flush's errors it has",
    "self.is_on = False": "the import of the package sets it",
    'elif found.state <= "missing" and found.is_protected:': (
        "of the states before it in the alphabet none is protected"
    ),
    'if found.state < "patched" or patch is None:': (
        "the text of a reason has what others had patched before, where a class is not known now"
    ),
    'interval = getattr(arroyo, "METRICS_FREQUENCY_SEC", 0.0)': (
        "no known release lacks that name"
    ),
    "if flush != judged[0] or flush_metrics is not judged[1]:": (
        "functions are equal to themselves alone"
    ),
    "theirs = remedies.others_methods(cls, known[ 1])": (
        "the text of a reason: where methods are others', it names them by another release"
    ),
    "found, before = self.match(original) or (self.patchable[ -1], UNCHANGED)": (
        "the class was recognised a moment before, under the same lock"
    ),
    "self.are_on = True": "apply() sets it before anyone else has the object",
    "self._has_told = True": "switch() resets it before anyone else has the object",
}


class Mutant(NamedTuple):
    """A module with one small change."""

    module: Path
    line: int
    old: str
    new: str
    text: str
    """The whole module, changed."""

    def describe(self) -> str:
        return f"{self.module.stem}.py:{self.line}: {self.old}  ->  {self.new}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="names of modules, all by default")
    parser.add_argument("--all", action="store_true", help="try a mutant of every place")
    parser.add_argument("--list", action="store_true", help="only show the mutants")
    options = parser.parse_args()
    chosen = options.modules or sorted(FIRST)
    share = 1 if options.all else SHARE
    mutants = [mutant for name in chosen for mutant in sample(name, share)]
    if options.list:
        print(*(mutant.describe() for mutant in mutants), sep="\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        everything = [*sorted({file for files in FIRST.values() for file in files}), *CONTRACT]
        if not copy.passes(everything):
            sys.exit(f"the tests fail without a mutant:\n{copy.output}")
        began = time.monotonic()
        survivors = [mutant for mutant in mutants if copy.survives(mutant, everything)]
    minutes = (time.monotonic() - began) / 60
    unknown = [mutant for mutant in survivors if mutant.new not in KNOWN]
    print(
        f"{len(mutants)} mutants in {minutes:.0f} minutes: {len(mutants) - len(survivors)} killed, "
        f"{len(survivors) - len(unknown)} known to survive, {len(unknown)} others survive"
    )
    sys.exit(bool(unknown))


def sample(name: str, share: int) -> Iterator[Mutant]:
    """The mutants of a module that are tried, one for a place."""
    module = PACKAGE / "_patching" / f"{name}.py"
    text = (ROOT / module).read_text(encoding="utf-8")
    places: dict[object, list[str]] = {}
    for item in _all_work_items([ROOT / module], {}):
        spec: MutationSpec = item.mutations[0]
        operator = plugins.get_operator(spec.operator_name)()
        mutated = mutate_code(text, operator, spec.occurrence)
        if mutated is not None and not same_program(text, mutated):
            places.setdefault((spec.start_pos, spec.end_pos), []).append(mutated)
    chooser = random.Random(SEED)
    chosen = [(place, chooser.choice(mutated)) for place, mutated in sorted(places.items())]
    for _, mutated in sorted(chooser.sample(chosen, -(-len(chosen) // share))):
        yield _mutant(module, text, mutated)


def _mutant(module: Path, text: str, mutated: str) -> Mutant:
    lines, now = text.splitlines(), mutated.splitlines()
    first = next(i for i, (old, new) in enumerate(zip(lines, now, strict=False)) if old != new)
    return Mutant(module, first + 1, lines[first].strip(), now[first].strip(), mutated)


def same_program(text: str, mutated: str) -> bool:
    """Whether two texts differ in nothing that is tested, or the second is no program.

    Annotations are not tested, nor whether a parameter could be passed in another way too: the
    operators ``|`` and ``*`` are in them to the tool.
    """
    try:
        return _what_is_tested(text) == _what_is_tested(mutated)
    except SyntaxError:
        return True


def _what_is_tested(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
            node.defaults += filter(None, node.kw_defaults)
            node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


class Copy:
    """A copy of what is committed, and a virtual environment in which it is installed."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "copy"
        self.output = ""
        subprocess.run(["git", "clone", "--quiet", ROOT, self.root], check=True)
        for extension in (ROOT / PACKAGE).glob("_core*.so"):
            (self.root / PACKAGE / extension.name).symlink_to(extension)
        (self.root / "target").mkdir()
        (self.root / "target" / "arroyo").symlink_to(ROOT / "target" / "arroyo")
        venv.create(folder / "venv", symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        show = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site, theirs = (
            subprocess.check_output([python, "-c", show], text=True).strip()
            for python in (self.python, sys.executable)
        )
        # What is in there is not read as a site folder: the package is the copy's.
        Path(site, "copy.pth").write_text(f"{self.root / 'python'}\n{theirs}\n", encoding="utf-8")
        command = self.python.with_name("arroyo-metrics-buffer")
        start = "import sys; from arroyo_metrics_buffer._commands.cli import main; sys.exit(main())"
        command.write_text(f"#!{self.python}\n{start}\n", encoding="utf-8")
        command.chmod(0o755)
        os.chdir(self.root)

    def survives(self, mutant: Mutant, everything: list[str]) -> bool:
        """Whether all tests pass with it."""
        original = mutant.module.read_text(encoding="utf-8")
        mutant.module.write_text(mutant.text, encoding="utf-8")
        try:
            first = FIRST[mutant.module.stem]
            survives = self.passes(first) and self.passes(
                [file for file in everything if file not in first]
            )
        finally:
            mutant.module.write_text(original, encoding="utf-8")
        print("survives" if survives else "killed  ", mutant.describe(), flush=True)
        return survives

    def passes(self, files: list[str]) -> bool:
        """Whether all tests of these files pass, in time."""
        options = ["--quiet", "--exitfirst", "-p", "no:cacheprovider", "-p", "no:xdist"]
        tests = [f"tests/{file}.py" for file in files]
        command = [str(self.python), "-m", "pytest", *options, *tests]
        outcome, output = run_tests(shlex.join(command), TIMEOUT)
        if outcome is TestOutcome.INCOMPETENT:
            sys.exit(output)
        self.output = output
        return bool(outcome is TestOutcome.SURVIVED)


if __name__ == "__main__":
    main()
