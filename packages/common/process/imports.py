"""Import of large libraries without the garbage collector.

torch, diffusers and DeepSpeed make 800,000 objects that live as long as the process. Python searches them again and
again while they are imported, then with every full collection, and twice when the process ends: a third of the
processor time of a process that imports them and ends.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# With torch there may be models, which must be freed when nothing refers to them any more; what onnx counts at
# the end of the process (nanobind does) must be collected then.
KEEPS_COLLECTING = {"torch", "onnx"}


@contextmanager
def large_imports() -> Iterator[None]:
    """Context for imports at the top of a module: nothing is collected meanwhile.

    When they are the first large ones of the process, what is alive after them is never searched again.
    """
    if not gc.isenabled():
        yield
        return
    first = KEEPS_COLLECTING.isdisjoint(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        gc.enable()
