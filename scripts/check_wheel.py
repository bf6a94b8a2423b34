"""scripts/check_wheel.py FILE...: what is uploaded is what it should be. Exit status 1 if not.

Of a wheel: its size, its files, its platform's tag, whose unwinder it has, and that it can be
imported after an installation with no compiler, by `arroyo-metrics-buffer run` too, if this
interpreter is the one that it is for. Of a source distribution: its size and its files.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

MOST_BYTES = 1_000_000
PACKAGE = "arroyo_metrics_buffer"
# The oldest systems of each kind that the wheels are for.
PLATFORMS = (
    r"manylinux2014_(x86_64|aarch64)\.manylinux_2_17_\1",
    r"musllinux_1_2_(x86_64|aarch64)",
    r"macosx_10_12_x86_64",
    r"macosx_11_0_arm64",
)
FOLDER = Path("python")
MODULES = {
    path.relative_to(FOLDER).as_posix()
    for path in FOLDER.rglob("*")
    if path.suffix in {".py", ".pyi"} or path.name == "py.typed"
}
IMPORT = f"import {PACKAGE} as package; print(package.status()); package.MetricsBuffer"
IMPORTED = f"import arroyo, sys; sys.modules['{PACKAGE}']"


def wrong(path: Path) -> Iterator[str]:
    if path.stat().st_size > MOST_BYTES:
        yield f"it has {path.stat().st_size} bytes, more than {MOST_BYTES}"
    if path.suffix == ".whl":
        yield from wrong_in_wheel(path)
        yield from wrong_on_platform(path)
        if "-manylinux" in path.name:
            yield from wrong_unwinder(path)
        yield from wrong_when_imported(path)
    else:
        yield from wrong_in_source(path)


def wrong_in_source(path: Path) -> Iterator[str]:
    with tarfile.open(path) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    expected = {"PKG-INFO", "LICENSE", "Cargo.lock", "Cargo.toml", "pyproject.toml"}
    expected |= {"docs/package-index.md"}
    sources = [*Path("src").rglob("*.rs"), Path("core/Cargo.toml"), *Path("core/src").rglob("*.rs")]
    expected |= {source.as_posix() for source in sources}
    expected |= {"scripts/build_backend.py", *(f"python/{module}" for module in MODULES)}
    yield from differences(files, expected)


def wrong_in_wheel(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive:
        files = set(archive.namelist())
    extensions = {file for file in files if re.fullmatch(rf"{PACKAGE}/_core\..*so", file)}
    if len(extensions) != 1:
        yield f"it has {len(extensions)} extension modules"
    name, version, *_ = path.name.split("-")
    information = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    information.add("sboms/arroyo-metrics-buffer.cyclonedx.json")
    expected = {f"{name}-{version}.dist-info/{file}" for file in information}
    yield from differences(files, expected | extensions | MODULES)


def differences(files: set[str], expected: set[str]) -> Iterator[str]:
    yield from (f"{file} is missing" for file in sorted(expected - files))
    yield from (f"{file} does not belong in it" for file in sorted(files - expected))


def wrong_on_platform(path: Path) -> Iterator[str]:
    """Check that it is one we promise; that the extension fits the tag, maturin has checked."""
    *_, interpreter, abi, system = path.stem.split("-")
    if abi.removesuffix("t") != interpreter:
        yield f"it is for {abi}, not for one version of CPython"
    if not any(re.fullmatch(each, system) for each in PLATFORMS):
        yield f"{system} is none of the platforms that wheels are built for"
    # Not of musllinux: maturin's linker gives libc another name than auditwheel knows it by.
    elif system.startswith("manylinux") and sys.platform == "linux":
        audit = run(sys.executable, "-m", "auditwheel", "show", str(path))
        if f'"{system.rpartition(".")[2]}"' not in audit.stdout:
            yield audit.stdout + audit.stderr


def wrong_unwinder(path: Path) -> Iterator[str]:
    """Check that it is the system's: with another, threads that end inside the extension crash.

    An extension that brings its own has no need to import the function with which Rust's
    personality routine reads the frame that is unwound.
    """
    with zipfile.ZipFile(path) as archive:
        (extension,) = (name for name in archive.namelist() if name.endswith(".so"))
        with archive.open(extension) as file:
            table = ELFFile(file).get_section_by_name(".dynsym")
            assert isinstance(table, SymbolTableSection)
            symbols = table.iter_symbols()
            imported = {symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF"}
    if "_Unwind_GetLanguageSpecificData" not in imported:
        yield "it brings an unwinder of its own: see scripts/libgcc_s.c"


def wrong_when_imported(path: Path) -> Iterator[str]:
    if parse_wheel_filename(path.name)[3].isdisjoint(sys_tags()):
        print(f"{path.name}: not imported, it is for another interpreter or machine than this")
        return
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, symlinks=True, with_pip=True)
        scripts = Path(folder, "bin")
        # With nothing else on the PATH there is no compiler; what it depends on is wheels too.
        python = str(scripts / "python")
        install = ["-m", "pip", "install", "--quiet", "--only-binary=:all:", str(path.resolve())]
        console_script = str(scripts / "arroyo-metrics-buffer")
        Path(folder, "arroyo.py").touch()  # what `run` waits for
        for command in (
            [python, *install],
            [python, "-I", "-c", IMPORT],
            [console_script, "run", python, "-c", IMPORTED],
        ):
            ended = run(*command, cwd=folder, PATH=str(scripts))
            if ended.returncode:
                yield ended.stderr
                return


def run(*command: str, cwd: str = ".", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, capture_output=True, check=False, cwd=cwd, env=environment, text=True
    )


def main(files: list[str]) -> int:
    failed = False
    for path in map(Path, files):
        reasons = list(wrong(path))
        for reason in reasons or ["as it should be"]:
            print(f"{path.name}: {reason}")
        failed |= bool(reasons)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
