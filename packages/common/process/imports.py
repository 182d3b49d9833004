"""Import of large libraries without the garbage collector.

torch, diffusers and DeepSpeed make 800,000 objects that live as long as the process. Python searches them again and
again while they are imported, then with every full collection, and twice when the process ends: a third of the
processor time of a process that imports them and ends.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Their bindings (nanobind) count at the end of the process what was not collected, and report it as leaks.
COUNTING = {"duckdb", "onnx"}


@contextmanager
def large_imports() -> Iterator[None]:
    """Context for imports at the top of a module: nothing is collected meanwhile.

    What is alive after the first large ones of a process is never searched again. Not after later ones: with torch
    there may be models, which must be freed when nothing refers to them any more.
    """
    if not gc.isenabled():
        yield
        return
    first = "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if first and COUNTING.isdisjoint(sys.modules):
            gc.freeze()
        gc.enable()
