"""Return of freed memory to the system."""

import ctypes
import sys


def release_heap() -> None:
    """Give what is freed but kept in the heap back to the system; nothing where the C library is not glibc.

    glibc keeps freed blocks of up to 32 MB, after a VAE in a small size some hundred megabytes.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
