"""Folder of what this machine's user need not compute twice, whatever the run: compiled kernels, measured choices."""

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """`$XDG_CACHE_HOME/omniavatar/NAME`, below ~/.cache where that variable is unset; the folder need not exist.

    Everything in it may be deleted at any time.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of XDG has relative paths ignored.
    return (Path(root) if root.startswith("/") else Path.home() / ".cache") / "omniavatar" / name
