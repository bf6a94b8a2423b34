"""Write the docstrings of the extension into its stub, where editors look for them.

The doc comments in Rust are the docstrings of the extension that is built. The signatures in
_core.pyi are written by hand; what is public there gets the docstring that the extension has for
it, in the place of its own or of ``...``. ``--check`` only says whether the file is up to date.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from arroyo_metrics_buffer import _core

STUB = Path(__file__).parent.parent / "python" / "arroyo_metrics_buffer" / "_core.pyi"

Definition = ast.ClassDef | ast.FunctionDef


def main(*arguments: str) -> int:
    stub = STUB.read_text(encoding="utf-8")
    current = with_docstrings(stub)
    if arguments != ("--check",):
        STUB.write_text(current, encoding="utf-8")
    elif stub != current:
        print(f"{STUB.name} has other docstrings than the extension: run scripts/stubs.py")
        return 1
    return 0


def with_docstrings(stub: str) -> str:
    lines = stub.splitlines()
    for definition, documented in reversed([*public(ast.parse(stub), _core)]):
        docstring, first = inspect.getdoc(documented), definition.body[0]
        if not docstring or not isinstance(first, ast.Expr):
            sys.exit(f"{definition.name} has no docstring, in the extension or in {STUB.name}")
        end = "\n" * ("\n" in docstring)
        written = textwrap.indent(f'"""{docstring}{end}"""', " " * (definition.col_offset + 4))
        before = lines[first.lineno - 1][: first.col_offset].rstrip()  # a signature, or nothing
        lines[first.lineno - 1 : first.end_lineno] = [*filter(None, [before]), written]
    return "\n".join(lines) + "\n"


def public(node: ast.Module | ast.ClassDef, owner: object) -> Iterator[tuple[Definition, object]]:
    """What the stub defines, in the order of its lines, and what it stands for."""
    for child in node.body:
        if not isinstance(child, Definition) or child.name.startswith("_"):
            continue
        if any(isinstance(each, ast.Attribute) for each in child.decorator_list):
            continue  # a property's setter or deleter
        documented: object = getattr(owner, child.name)
        yield child, documented
        if isinstance(child, ast.ClassDef):
            yield from public(child, documented)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
