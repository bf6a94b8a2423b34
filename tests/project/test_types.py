"""Types and docs: what the stub says is what the extension is."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import arroyo_metrics_buffer
from arroyo_metrics_buffer import _core

PACKAGE = Path(arroyo_metrics_buffer.__file__).parent


def documented(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every class and function of the stub that has a docstring."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            name = f"{prefix}{child.name}"
            if docstring := ast.get_docstring(child):
                yield name, docstring
            yield from documented(child, f"{name}.")


STUB = dict(documented(ast.parse((PACKAGE / "_core.pyi").read_text())))


@pytest.mark.parametrize("name", STUB)
def test_the_stub_and_the_extension_document_the_same_word_for_word(name: str) -> None:
    attribute: object = _core
    for part in name.split("."):
        attribute = getattr(attribute, part)
    assert STUB[name] == inspect.getdoc(attribute)


def test_everything_public_is_documented_in_the_stub() -> None:
    public = {"configure", "on_backend_error", "stats"}
    for cls in (_core.MetricsBuffer, _core.DeliveryBuffer):
        methods = [name for name in vars(cls) if not name.startswith("_")]
        public |= {cls.__name__, *(f"{cls.__name__}.{name}" for name in methods)}
    assert public == STUB.keys()


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize(
    ("program", "error"),
    [
        (
            """
from arroyo_metrics_buffer import MetricsBuffer, Status, install
status: Status = install(clock=lambda: 1.0, on_backend_error="log")
class Mine(MetricsBuffer):
    def __init__(self, owner: str) -> None:
        super().__init__(flush_interval=1)
        self.owner = owner
Mine("me").incr_counter("x", 1)
""",
            None,
        ),
        (
            "from arroyo_metrics_buffer import install\ninstall(on_backend_error='ignore')\n",
            "arg-type",
        ),
        (
            "import arroyo_metrics_buffer as a; a.MetricsBuffer().incr_counter('x', 1.5)",
            "arg-type",
        ),
        ("from arroyo_metrics_buffer import threading\n", "attr-defined"),
    ],
)
def test_a_users_program_type_checks_exactly_if_it_is_right(
    tmp_path: Path, program: str, error: str | None
) -> None:
    path = tmp_path / "program.py"
    path.write_text(program)
    options = ["--strict", "--no-implicit-reexport", "--cache-dir", str(tmp_path / "cache")]
    options += ["--no-sqlite-cache"]  # an interpreter may have no SQLite: scripts/pythons' for musl
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(path)],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (result.returncode == 0) == (error is None), result.stdout
    assert error is None or f"[{error}]" in result.stdout
