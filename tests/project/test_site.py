"""The check of the site that `make docs` builds, and what the site is made of."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import arroyo_metrics_buffer
from support.documents import DOCUMENTS, ROOT, links, tokens

CHECK = ROOT / "scripts" / "check_site.py"
PICTURES = {
    (document.parent / link).resolve()
    for document in DOCUMENTS
    for link in links(tokens(document))
    if link.endswith(".svg")
}


def check(site: Path, page: str) -> str:
    """Print what is wrong with a site of this page and of "other.html"."""
    (site / "index.html").write_text(page, encoding="utf-8")
    (site / "other.html").write_text('<h2 id="there">There</h2>', encoding="utf-8")
    command = [sys.executable, str(CHECK), str(site)]
    ended = subprocess.run(command, capture_output=True, check=False, text=True)
    assert ended.stderr == ""
    assert ended.returncode == bool(ended.stdout)
    return ended.stdout


@pytest.mark.parametrize(
    "page",
    [
        '<a href="other.html#there">',
        '<h2 id="here"></h2><a href="#here">',
        '<a href="https://example.com/">',
        '<link rel="canonical" href="https://example.com/">',
        '<style>a { background: url("data:image/png;base64,AAAA") }</style>',
    ],
)
def test_a_sound_page_passes(page: str, tmp_path: Path) -> None:
    assert check(tmp_path, page) == ""


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ('<a href="gone.html">', "dead link: gone.html"),
        ('<a href="other.html#gone">', "dead link: other.html#gone"),
        ('<a href="../index.html">', "dead link: ../index.html"),
        ('<img alt="A text" src="gone.svg">', "not there: gone.svg"),
        ('<img src="other.html">', "no text for other.html"),
        ('<script src="https://example.com/a.js">', "from elsewhere: https://example.com/a.js"),
        ('<script src="//example.com/a.js">', "from elsewhere: //example.com/a.js"),
        ('<link rel="stylesheet" href="http://a.b/c">', "from elsewhere: http://a.b/c"),
        ('<p style="background: url(http://a.b/c)">', "from elsewhere: http://a.b/c"),
        ('<style>@import "http://a.b/c";</style>', "from elsewhere: http://a.b/c"),
        ('<pre class="mermaid">', 'class="mermaid"'),
    ],
)
def test_what_is_wrong_with_a_page_is_printed(page: str, wrong: str, tmp_path: Path) -> None:
    assert check(tmp_path, page) == f"index.html: {wrong}\n"


def test_a_style_that_loads_from_elsewhere_is_printed(tmp_path: Path) -> None:
    (tmp_path / "site.css").write_text("a { src: url(https://a.b/font) }", encoding="utf-8")
    assert check(tmp_path, "") == "site.css: from elsewhere: https://a.b/font\n"


def test_the_reference_has_every_public_name() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\* \[`(\w+)`\]", reference, flags=re.MULTILINE)
    assert sorted(listed) == sorted(arroyo_metrics_buffer.__all__)


@pytest.mark.parametrize("picture", sorted(PICTURES), ids=lambda path: path.name)
def test_a_picture_has_a_text_and_is_for_light_and_dark_pages(picture: Path) -> None:
    svg = picture.read_text(encoding="utf-8")
    assert re.search(r"<title\b[^>]*>[^<]+</title>\s*<desc\b[^>]*>[^<]+</desc>", svg)
    assert "@media (prefers-color-scheme: dark)" in svg
