"""scripts/test_installed.py FILE [ARGUMENT...]: the suite on a wheel or a source distribution.

FILE is installed as users install it, into a new virtual environment of this interpreter. If FILE
is a wheel, nothing is compiled. pytest, with the arguments, then runs in a copy of the project that
has none of the package's sources, so that what it imports is what FILE brought. pip's environment
variables hold. Exit status: pytest's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The package's sources, and what builds, editors and git leave behind.
LEFT_OUT = shutil.ignore_patterns("python", ".*", "__pycache__", "dist", "target")
ON_EVERY_CORE = ("--numprocesses=auto", "--dist=worksteal")
RELEASES = Path("target", "arroyo"), Path("target", "streams")  # `make releases`


def main(file: str, *arguments: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder, "venv"), Path(file).resolve())
        project = Path(folder, "project")
        shutil.copytree(ROOT, project, ignore=LEFT_OUT)
        for releases in RELEASES:
            shutil.copytree(ROOT / releases, project / releases)
        print(f"{Path(file).name} on Python {sys.version}", flush=True)
        pytest = [python, "-m", "pytest", "--quiet", *ON_EVERY_CORE, *arguments]
        return subprocess.run(pytest, check=False, cwd=project).returncode


def environment(folder: Path, file: Path) -> str:
    """Make a virtual environment with a distribution and what its tests need."""
    venv.create(folder, symlinks=True, with_pip=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip>=25.1"], check=True)  # it knows groups
    if file.suffix == ".whl":
        pip.append("--only-binary=:all:")
    subprocess.run([*pip, str(file), "--group", f"{ROOT / 'pyproject.toml'}:test"], check=True)
    return python


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
