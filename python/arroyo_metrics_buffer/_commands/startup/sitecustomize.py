"""Has the package imported as soon as a program imports arroyo: ``arroyo-metrics-buffer run``.

That puts this folder in front of PYTHONPATH, and ``site`` imports what it finds under this name
whenever an interpreter starts. Any Python among the program's children may be that interpreter,
Python 2 too, and most never import arroyo. So nothing is imported here but what an interpreter has
anyway: the program may have a module of its own with the name of one of the standard library's.
"""

import os
import sys

_folder = os.path.dirname(__file__)  # as sys.path has it


def _wait_for_arroyo():
    from _frozen_importlib_external import SourceFileLoader

    # Not by its name, which would import the package.
    path = os.path.join(_folder, "..", "..", "_patching", "hook.py")
    module = type(sys)("arroyo_metrics_buffer_hook")
    SourceFileLoader(module.__name__, path).exec_module(module)
    hook = module.ImportHook()

    def import_package(*_):
        hook.stop()
        try:
            __import__("arroyo_metrics_buffer")
        except Exception as error:  # of another interpreter, most likely
            _tell(error)

    hook.start({"arroyo": import_package})


def _tell(error):
    """Say that the program runs without the package."""
    # No subinterpreter can have it, and that is no news: a program may make one for each request.
    if isinstance(error, ImportError) and "subinterpreters" in str(error):
        return
    line = "arroyo-metrics-buffer: %s runs without it: %r\n" % (sys.executable, error)
    try:
        sys.stderr.write(line)
    except Exception:  # stderr may be closed
        return


def _run_next():
    """Run the module of this name that would be found without this folder, in the place of this."""
    from _frozen_importlib import module_from_spec
    from _frozen_importlib_external import PathFinder

    spec = PathFinder.find_spec(__name__, sys.path[sys.path.index(_folder) + 1 :])
    if spec is None or spec.loader is None:
        if _is_imported_by_name():
            raise ImportError("No module named %r" % __name__, name=__name__)
        return
    sys.modules[__name__] = module = module_from_spec(spec)
    sys.path.remove(_folder)  # that module may look for a next one too
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.insert(0, _folder)  # for children whose PYTHONPATH is made of it


def _is_imported_by_name():
    """Whether an import statement came here, and not an agent that loads what it has found."""
    frame = sys._getframe(3)
    while frame.f_code.co_filename.startswith("<frozen importlib"):
        if frame.f_code.co_name == "_find_and_load":
            return True
        frame = frame.f_back
    return False


def _run_next_in_python_2():
    import imp

    behind = sys.path[sys.path.index(_folder) + 1 :]
    try:
        found = imp.find_module(__name__, behind)
    except ImportError:
        return
    this = sys.modules.pop(__name__)  # else the next one would run among the names of this one
    sys.path.remove(_folder)
    try:
        imp.load_module(__name__, *found)
    finally:
        sys.path.insert(0, this._folder)


try:
    _wait_for_arroyo()
except Exception:  # a Python that this package has never had a release for
    pass
# What the next one raises is for whoever imports this to judge, as ever.
if getattr(sys.modules.get(__name__), "__dict__", None) is globals() and _folder in sys.path:
    if sys.version_info[0] == 2:
        _run_next_in_python_2()
    else:
        _run_next()
