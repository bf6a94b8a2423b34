"""Types, as a user's type checker sees them. `make lint` compares the stub with the extension."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import arroyo_metrics_buffer

PACKAGE = Path(arroyo_metrics_buffer.__file__).parent


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
def report(error: BaseException | None = None, scope: str | None = None) -> str | None: ...
install(on_backend_error=report)
""",
            None,
        ),
        (
            "from arroyo_metrics_buffer import install\ninstall(on_backend_error='ignore')\n",
            "arg-type",
        ),
        (
            "from arroyo_metrics_buffer import install\ninstall(on_backend_error=lambda: None)\n",
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
    options += ["--no-sqlite-cache"]  # scripts/build_pythons' for musl has no SQLite
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(path)],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (result.returncode == 0) == (error is None), result.stdout
    assert error is None or f"[{error}]" in result.stdout
