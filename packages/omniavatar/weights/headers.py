"""Names, types and shapes of the tensors in weight files, without torch and without reading values.

For a forecast: what cannot be read is left to the loaders, which say what is wrong.
"""

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.untrusted.weight_files import Header, refuse_bomb
from common.untrusted.weight_files import read_headers as read_safetensors

_OF_STORAGE = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}


def read_headers(path: Path) -> dict[str, Header]:
    """Name -> header of every tensor in a `.safetensors` or torch file, or in the safetensors files of a folder.

    Files that are no such file are left out.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {name: header for file in files if file.is_file() for name, header in _read(file)}


def _read(file: Path) -> Iterator[tuple[str, Header]]:
    try:
        yield from (read_safetensors if file.suffix == ".safetensors" else _torch_file)(file).items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError):
        return
    except (pickle.UnpicklingError, zipfile.BadZipFile):
        return


def _torch_file(file: Path) -> dict[str, Header]:
    refuse_bomb(file)
    with zipfile.ZipFile(file) as archive:
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(index) as opened:
            found = _Shapes(opened).load()
    found = found.get("model_state", found)
    return {name: value for name, value in found.items() if isinstance(value, Header)}


class _Names(dict[str, Any]):
    """Stands for an OrderedDict: unpickling may set attributes of it."""


class _Shapes(pickle.Unpickler):
    """The index of a torch file with a Header for each tensor. It knows these few names and runs nothing of the
    file."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Names
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda kind, offset, shape, *_: Header(kind, tuple(shape))
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda header, *_: header
        if module == "torch" and name in _OF_STORAGE:
            return _OF_STORAGE[name]
        raise pickle.UnpicklingError(f"{module}.{name} is none of a plain tensor file")

    def persistent_load(self, place: Any) -> Any:
        return place[1]  # ("storage", kind, key, device, count)
