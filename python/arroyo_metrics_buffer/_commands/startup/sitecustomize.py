"""Imports the package before the program does anything: ``arroyo-metrics-buffer run``.

That puts this folder in front of PYTHONPATH, and ``site`` imports what it finds under this name
whenever an interpreter starts. Any Python 3 among the program's children may be that interpreter.
"""

import contextlib
import importlib
import os
import sys

try:
    importlib.import_module("arroyo_metrics_buffer")
except Exception as error:  # noqa: BLE001 - another interpreter, most likely: its program has to run
    # No subinterpreter can have it, and that is no news: a program may make one for each request.
    if not (isinstance(error, ImportError) and "subinterpreters" in str(error)):
        line = f"arroyo-metrics-buffer: {sys.executable} runs without it: {error!r}\n"
        with contextlib.suppress(Exception):  # stderr may be closed
            sys.stderr.write(line)

# Now the module of this name that would have been found without this folder. What it raises is for
# `site` to judge, as ever; so is the ImportError, if there is none. Where somebody else than `site`
# runs this file, by its path, it is in nobody's way.
_folder = os.path.dirname(__file__)  # noqa: PTH120 - as sys.path has it
_by_site = getattr(sys.modules.get("sitecustomize"), "__dict__", None) is globals()
if _by_site and _folder in sys.path:
    sys.path.remove(_folder)
    del sys.modules["sitecustomize"]
    try:
        importlib.import_module("sitecustomize")
    finally:
        sys.path.insert(0, _folder)  # for children whose PYTHONPATH is made of it
