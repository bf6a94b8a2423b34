"""scripts/check_site.py FOLDER: check the site that MkDocs built there.

Every link within the site leads to a file and an anchor that exist, nothing that a page loads comes
from elsewhere, and each picture has a text. Exit status: 1 if something is wrong, which is printed.
MkDocs checks the links of the documents; here are also those of the theme and of the API reference.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ADDRESSES = ("action", "data", "href", "poster", "src", "srcset")
# What the theme's script asks GitHub for, and what it loads Mermaid for.
LOADS_BY_SCRIPT = {("data-md-component", "source"), ("class", "mermaid")}
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""")
# Where the site will be, as in mkdocs.yml. 404.html, which is shown at any depth, has whole paths.
BASE = urlsplit(os.environ.get("SITE_URL", "")).path.rstrip("/") + "/"


class Page(HTMLParser):
    """What a page has to be checked for."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors = {""}
        self.links: list[str] = []  # what a reader may follow
        self.loads: list[str] = []  # what a browser fetches by itself
        self.wrong: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.anchors |= {attributes.get("id", ""), attributes.get("name", "")}
        is_link = tag in ("a", "area") or attributes.get("rel") in ("canonical", "next", "prev")
        found = [attributes[name] for name in ADDRESSES if name in attributes]
        (self.links if is_link else self.loads).extend(found)
        self.loads += IN_STYLE.findall(attributes.get("style", ""))
        self.wrong += [f'{name}="{value}"' for name, value in LOADS_BY_SCRIPT & attributes.items()]
        if tag == "img" and not attributes.get("alt"):
            self.wrong.append(f"no text for {attributes.get('src')}")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.loads += IN_STYLE.findall(data)


def main(folder: str) -> int:
    site = Path(folder).resolve()
    pages = {file: Page(file) for file in sorted(site.rglob("*.html"))}
    wrong = [f"{file.relative_to(site)}: {each}" for file, each in problems(site, pages)]
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    if not pages:
        print(f"there is no page in {folder}")
    return bool(wrong) or not pages


def problems(site: Path, pages: dict[Path, Page]) -> Iterator[tuple[Path, str]]:
    for file, page in pages.items():
        for link in page.links:
            if not urlsplit(link).scheme and not leads_somewhere(link, file, site, pages):
                yield file, f"dead link: {link}"
        for load in page.loads:
            yield from ((file, each) for each in loading(load, file, site, pages))
        yield from ((file, each) for each in page.wrong)
    for file in sorted(each for suffix in ("css", "svg") for each in site.rglob(f"*.{suffix}")):
        for load in IN_STYLE.findall(file.read_text(encoding="utf-8")):
            yield from ((file, each) for each in loading(load, file, site, pages))


def loading(load: str, file: Path, site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    address = urlsplit(load)
    if address.netloc or address.scheme not in ("", "data"):
        yield f"from elsewhere: {load}"
    elif not address.scheme and not leads_somewhere(load, file, site, pages):
        yield f"not there: {load}"


def leads_somewhere(link: str, file: Path, site: Path, pages: dict[Path, Page]) -> bool:
    address = urlsplit(link)
    path = unquote(address.path)
    if address.netloc:
        return False
    if path.startswith("/"):
        target = site / path.removeprefix(BASE) if path.startswith(BASE) else Path(path)
    else:
        target = file.parent / path if path else file
    target = target.resolve()
    if target.is_dir():
        target /= "index.html"
    if not target.is_relative_to(site) or not target.is_file():
        return False
    return target not in pages or unquote(address.fragment) in pages[target].anchors


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
