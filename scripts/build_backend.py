"""maturin's build backend, except that it fetches no Rust: where there is none, it says so.

pip runs it for a source distribution. Left to itself, maturin downloads a compiler that nobody
asked for, or, offline, ends in a traceback of its HTTP client.
"""

import os

os.environ.setdefault("MATURIN_NO_INSTALL_RUST", "1")

from maturin import *  # type: ignore[import-untyped] # noqa: F403 - reads it at its import
