"""How far a command has come, on stderr: stdout is for what it found."""

from __future__ import annotations

import sys
from typing import Self


class Progress:
    """Lines of progress, of which a terminal shows the last."""

    def __enter__(self) -> Self:
        self._in_line = False
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_line:
            sys.stderr.write("\n")

    def show(self, line: str) -> None:
        """Show a line; on a terminal it takes the place of the previous one."""
        self._in_line = sys.stderr.isatty()
        sys.stderr.write(f"\r{line}\x1b[K" if self._in_line else f"{line}\n")
        sys.stderr.flush()
