"""scripts/rehearsal.py FILE...: a release, rehearsed on a package index of our own, on loopback.

The files are checked and uploaded by twine. Then pip and uv each install the package from that
index into an empty environment, as its users do, and `doctor` and `demo` run there. What else they
install comes from the index that pip is set up with. Exit status 1 if anything is wrong.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_binary_file
from html.parser import HTMLParser
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener
from zipfile import ZipFile

from readme_renderer import markdown

BIN = Path(sys.executable).parent
PACKAGE = "arroyo-metrics-buffer"
LINKS = {"a": "href", "img": "src"}
# Where pip might find the package besides: it has to come from our index.
ELSEWHERE = ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")


def main(files: list[str]) -> None:
    for link in links(files):
        # Each heading has a link to itself.
        if not link.startswith(("https://", "#user-content-")):
            raise SystemExit(f"{link}: dead where the index shows the description")
    run(str(BIN / "twine"), "check", "--strict", *files)
    with tempfile.TemporaryDirectory() as folder, index(folder) as url:
        upload = ["--repository-url", url, "--username", "none", "--password", "none"]
        run(str(BIN / "twine"), "upload", "--disable-progress-bar", *upload, *files)
        for installer in ("pip", "uv"):
            with tempfile.TemporaryDirectory() as environment:
                print(f"{installer} install {PACKAGE}[arroyo]", flush=True)
                install(installer, environment, f"{url}/simple/")
                for command in ("doctor", "demo"):
                    run(str(Path(environment, "bin", PACKAGE)), command, cwd=environment)


def links(files: list[str]) -> Iterator[str]:
    """What the description of the wheel refers to, as the index renders it."""
    (wheel,) = (file for file in files if file.endswith(".whl"))
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        with archive.open(name) as metadata:
            description = str(message_from_binary_file(metadata).get_payload())
    found: list[str | None] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(value for name, value in attrs if name == LINKS.get(tag))

    Parser().feed(markdown.render(description) or "")
    if not found:
        raise SystemExit(f"{wheel}: its description has no link, not even to arroyo")
    yield from map(str, found)


@contextmanager
def index(folder: str) -> Iterator[str]:
    """An index that anyone may upload to, and its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    open_to_all = ["--authenticate", ".", "--passwords", "."]
    server = [str(BIN / "pypi-server"), "run", "--interface", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen([*server, *open_to_all, *fallback(), folder]) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, process)
            yield url
        finally:
            process.terminate()


def fallback() -> list[str]:
    """Where the index sends those who ask for what it lacks, if not to the public one."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    configured = subprocess.run(asked, capture_output=True, check=False, text=True).stdout.strip()
    url = os.environ.get("PIP_INDEX_URL", configured)
    return ["--fallback-url", url] if url else []


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    direct = build_opener(ProxyHandler({}))
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        try:
            with direct.open(url):
                return
        except URLError:
            time.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


def install(installer: str, environment: str, url: str) -> None:
    venv.create(environment, symlinks=True, with_pip=installer == "pip")
    python = str(Path(environment, "bin", "python"))
    if installer == "pip":
        command = [python, "-m", "pip", "install"]
    else:
        command = [str(BIN / "uv"), "pip", "install", "--python", python, "--no-cache"]
    run(*command, "--quiet", "--index-url", url, f"{PACKAGE}[arroyo]")


def run(*command: str, cwd: str = ".") -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    ended = subprocess.run(command, check=False, cwd=cwd, env=environment)
    if ended.returncode:
        raise SystemExit(f"{Path(command[0]).name} ended with {ended.returncode}")


if __name__ == "__main__":
    main(sys.argv[1:])
