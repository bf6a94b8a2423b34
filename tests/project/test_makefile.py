"""The Makefile: `make help` says what each target does."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from support.documents import ROOT

GROUPS = ["Every day", "Longer", "Release"]


def test_help_lists_every_target_with_a_sentence() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    targets = re.findall(r"^\.PHONY: *(.*)$", makefile, flags=re.MULTILINE)
    command = [make, "--no-print-directory", "help"]
    printed = subprocess.check_output(command, cwd=ROOT, text=True)
    listed = re.findall(r"^ +make ([\w-]+) +[a-z].*\.$", printed, flags=re.MULTILINE)
    assert sorted(listed) == sorted(" ".join(targets).split())
    assert re.findall(r"\n\n(.*)\n", printed) == GROUPS
