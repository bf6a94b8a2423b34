"""What the documents say of the tree is so: each path is there, and "Where is what" is complete."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path

import pytest

import arroyo_metrics_buffer
from support.documents import ROOT, code_spans, for_each_document, tokens

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
SUFFIXES = "c|json|md|py|pyi|rs|svg|toml|yml"  # of what the project has, and is no attribute's name
MADE_BY_MAKE = {".venv", "dist", "target"}
# A copy of the project that tests a wheel (scripts/test_installed.py) has no git, no hidden files
# and, in place of the package's sources, the package that is installed.
IS_CHECKOUT = (ROOT / ".git").exists()


@cache
def tree() -> set[str]:
    """Every file and folder that the project has in git, by its path."""
    if IS_CHECKOUT:
        git = ["git", "ls-files", "-z"]
        listed = subprocess.run(git, capture_output=True, check=True, cwd=ROOT, text=True)
        files = [path for path in listed.stdout.split("\0")[:-1] if (ROOT / path).exists()]
    else:
        package = Path(arroyo_metrics_buffer.__file__).parent
        installed = (path.relative_to(package.parent) for path in package.rglob("*"))
        files = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
        files += [f"python/{path}" for path in installed]
    folders = {str(folder) for file in files for folder in Path(file).parents}
    return {*files, *folders} - {"."}


def named_paths(document: Path) -> Iterator[str]:
    """The words in code spans that look like a path: those with a slash, or a suffix of a file."""
    for span in code_spans(tokens(document)):
        for word in re.split(r"[\s\"=,]+", span):
            looks_like_a_path = re.fullmatch(rf"\.?[a-z][\w.-]*/[\w./-]*|\w+\.({SUFFIXES})", word)
            if looks_like_a_path and word.partition("/")[0] not in MADE_BY_MAKE:
                yield word.rstrip("/")


def is_there(path: str) -> bool:
    """Whether the tree has a path, or one that ends with it. What can't be looked for is there."""
    if not IS_CHECKOUT and path.startswith("."):
        return True
    return any(f"/{entry}".endswith(f"/{path}") for entry in tree())


@for_each_document
def test_every_path_that_a_document_names_is_in_the_tree(document: Path) -> None:
    assert [path for path in named_paths(document) if not is_there(path)] == []


def entries_of_where_is_what() -> list[str]:
    """The paths in the first column of the table that CONTRIBUTING.md has under that heading."""
    blocks = iter(tokens(CONTRIBUTING))
    assert any(block.content == "Where is what" for block in blocks)
    section = takewhile(lambda block: block.type != "heading_open", list(blocks)[1:])
    table = [block for block in section if block.type in ("tr_open", "inline")]
    first_cells = [
        cell for row, cell in pairwise(table) if (row.type, cell.type) == ("tr_open", "inline")
    ]
    return [path.rstrip("/") for path in code_spans(first_cells)]


def test_where_is_what_names_only_what_is_there() -> None:
    entries = entries_of_where_is_what()
    assert entries
    checked = [entry for entry in entries if IS_CHECKOUT or not entry.startswith(".")]
    assert [entry for entry in checked if entry not in tree()] == []


@pytest.mark.skipif(not IS_CHECKOUT, reason="no git to tell what belongs to the project")
def test_where_is_what_names_every_entry_of_the_top_but_hidden_files() -> None:
    top = {path for path in tree() if "/" not in path}
    hidden_files = {path for path in top if path.startswith(".") and (ROOT / path).is_file()}
    assert top - hidden_files == {entry.partition("/")[0] for entry in entries_of_where_is_what()}
