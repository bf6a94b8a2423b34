"""Hooks of MkDocs for the site of the documentation: what mkdocs.yml can't say.

The documents are written for the repository. Their links are relative, and their Markdown is
CommonMark. The hooks do three things for the site:

* A link to another document leads to its page. A link to a source file leads to the repository,
  whose address is ``extra.repository``; where that is not known, the text stays without the link.
* In the reference, a list item that names a public name becomes the docstring of that name.
* A page whose blocks are not those of the document in the repository is a warning, and so an error.
"""

from __future__ import annotations

import logging
import os
import re
from difflib import unified_diff
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree as ET

from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor
from markdown_it import MarkdownIt
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Documents that are not in docs/, and the one there whose name MkDocs takes for the home page's.
PAGES = {
    "README.md": "index.md",
    "docs/README.md": "documents.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
REFERENCE = "reference.md"
TAGS = "blockquote|code|em|h[1-6]|img|li|ol|pre|strong|table|td|th|ul"

log = logging.getLogger("mkdocs.hooks.site")


def on_config(config: MkDocsConfig) -> None:
    config.markdown_extensions.append(links)  # type: ignore[arg-type] # an instance is as good as a name
    if repository := config.extra["repository"]:
        link = {"icon": "fontawesome/brands/git-alt", "link": repository, "name": "Repository"}
        config.extra["social"] = [link]


def on_files(files: Files, config: MkDocsConfig) -> None:
    for path, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    links.page = page
    on_site = [*files.documentation_pages(), *files.media_files()]
    links.pages = {file.abs_src_path: file.src_uri for file in on_site}
    links.repository = config.extra["repository"]
    if page.file.src_uri != REFERENCE:
        return markdown
    return re.sub(r"(?m)^\* \[`(\w+)`\].*", r"::: arroyo_metrics_buffer.\1\n", markdown)


def on_page_content(html: str, page: Page, **_: object) -> None:
    if page.file.src_uri == REFERENCE:
        return
    there = blocks(MarkdownIt("commonmark").enable("table").render(page.markdown or ""))
    if difference := [*unified_diff(there, blocks(html), "repository", "site", n=1, lineterm="")]:
        log.warning(
            "%s is not the same on the site. Does what belongs to a list item have four spaces"
            " before it, and each list an empty line?\n%s",
            page.file.src_uri,
            "\n".join(difference),
        )


def blocks(html: str) -> list[str]:
    """The tags that a reader sees, and the text between them without its spaces."""
    html = re.sub(r'<!--.*?-->|<a class="headerlink".*?</a>|\[[ x]\]', "", html, flags=re.DOTALL)
    html = re.sub(rf"<(?!/?(?:{TAGS})\b)[^>]*>", "", html)
    html = re.sub(rf"<(/?(?:{TAGS}))\b[^>]*>", r"\0\1\0", html)
    return [each for piece in html.split("\0") if (each := unescape(re.sub(r"\s", "", piece)))]


class Links(Extension, Treeprocessor):
    """Turns the repository's links into the site's."""

    page: Page
    pages: dict[str | None, str]
    repository: str

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - the name that Markdown calls
        md.treeprocessors.register(self, "repository_links", 10)  # after "inline", before MkDocs'

    def run(self, root: ET.Element) -> None:
        folder = Path(self.page.file.abs_src_path or "").parent
        for element in root.iter():
            attribute = {"a": "href", "img": "src"}.get(element.tag, "")
            link = urlsplit(element.get(attribute, ""))
            if link.scheme or not link.path:
                continue
            target = Path(os.path.normpath(folder / unquote(link.path)))
            if uri := self.pages.get(str(target)):
                element.set(attribute, link._replace(path=uri).geturl())
            elif target.is_relative_to(ROOT) and target.exists():
                if self.repository:
                    element.set(attribute, f"{self.repository}/{target.relative_to(ROOT)}")
                else:
                    element.tag = "span"
                    del element.attrib[attribute]


links = Links()
