"""The project's documents, as Markdown reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

for_each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


@cache
def tokens(document: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(document.read_text(encoding="utf-8"))


def links(blocks: list[Token]) -> Iterator[str]:
    """What links and images refer to, within the project."""
    for token in blocks:
        for attribute in ("href", "src"):
            link = str(token.attrGet(attribute) or "")
            if link and not re.match(r"[a-z]+:", link):
                yield link
        yield from links(token.children or [])


def code_spans(blocks: list[Token]) -> Iterator[str]:
    for token in blocks:
        if token.type == "code_inline":
            yield token.content
        yield from code_spans(token.children or [])
