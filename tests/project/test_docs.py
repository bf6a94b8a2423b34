"""The documentation: its examples run, its links lead somewhere."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import arroyo_metrics_buffer
from support.documents import ROOT, for_each_document, links, tokens

SOURCES = ROOT / "python" / "arroyo_metrics_buffer"
INSTALLED = Path(arroyo_metrics_buffer.__file__).parent
STAND_INS = ROOT / "tests" / "support" / "stand_ins"  # what examples import of a reader's own
TIMEOUT = 60  # seconds for an example


@for_each_document
def test_every_example_runs_and_prints_what_it_is_said_to(document: Path, tmp_path: Path) -> None:
    """In order, and each in an interpreter of its own.

    ``python``: a comment in the first line that names a file has it written there, for the examples
    that follow; what else there is runs. ``console``: what follows ``$`` runs in a shell. What is
    printed has to be what follows it, or the ``text`` that follows the ``python``; "..." stands for
    anything. Other languages, ``sh`` among them, are for reading.
    """
    blocks = tokens(document)
    for block, after in zip(blocks, [*blocks[1:], None], strict=False):
        if block.type != "fence":
            continue
        where = f"{document.name}, line {(block.map or [0])[0] + 1}"
        if block.info == "python":
            if name := re.match(r"# ([\w/]+\.py)\n", block.content):
                file = tmp_path / name[1]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.content, encoding="utf-8")
                continue
            printed = run([sys.executable, "-W", "error", "-c", block.content], tmp_path, where)
            if after and after.info == "text":
                assert_alike(after.content, printed, where)
        elif block.info == "console":
            for command in re.split(r"^\$ ", block.content, flags=re.MULTILINE)[1:]:
                line, _, expected = command.partition("\n")
                assert_alike(expected, run(["sh", "-c", line], tmp_path, where), where)


def run(command: list[str], folder: Path, where: str) -> str:
    path = [str(folder), str(STAND_INS), *filter(None, [os.environ.get("PYTHONPATH")])]
    scripts = [str(Path(sys.executable).parent), os.environ["PATH"]]
    ended = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": os.pathsep.join(scripts), "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        check=False,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode == 0, f"{where}: exit status {ended.returncode}\n{ended.stderr}"
    return ended.stdout


def assert_alike(expected: str, printed: str, where: str) -> None:
    alike = doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS)
    assert alike, f"{where}: this is printed\n{printed}"


@for_each_document
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in links(tokens(document)):
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.is_relative_to(ROOT), link
        if target.is_relative_to(SOURCES):  # which are somewhere else where a wheel is tested
            target = INSTALLED / target.relative_to(SOURCES)
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@cache
def anchors(document: Path) -> list[str]:
    """Those that GitHub gives a document's headings."""
    headings = [
        text.content
        for heading, text in zip(tokens(document), tokens(document)[1:], strict=False)
        if heading.type == "heading_open"
    ]
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
