"""Reading Q-Align weights: shard by shard into a model built without memory, strictly by name and shape."""

from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from perception.quality.qalign_model import Owl, QAlignError


def load_weights(model: Owl, folder: Path, device: str, dtype: torch.dtype) -> None:
    """Fill a meta-device model from the weight files of `folder`; peak memory is the model and one tensor.

    Raises QAlignError as `check_weights`, before anything is read.
    """
    check_weights(model, folder)
    for name, tensor in published_tensors(folder):
        if not _outdated(name):
            model.load_state_dict({name: tensor.to(device, dtype)}, strict=False, assign=True)


def check_weights(model: Owl, folder: Path) -> None:
    """Compare names and shapes of the files' headers with `model`; no weight is read.

    QAlignError lists every tensor that is missing, unexpected or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: shape for name, shape in published_shapes(folder) if not _outdated(name)}
    problems = [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} is {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    problems += [f"missing {name}" for name in expected if name not in found]
    if problems:
        raise QAlignError(f"{folder} does not fit its config.json: " + "; ".join(problems))


def _outdated(name: str) -> bool:
    """Written by transformers before 4.32; computed here."""
    return name.endswith("rotary_emb.inv_freq")


def published_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of the folder, safetensors preferred over `pytorch_model*.bin` (never unpickled as code)."""
    for path in _files(folder):
        if path.suffix == ".bin":
            yield from _binary(path).items()
            continue
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  a safe_open handle is not iterable
                yield name, file.get_tensor(name)


def published_shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every (name, shape) of the folder from the files' headers. QAlignError for a file that is not whole."""
    for path in _files(folder):
        if path.suffix == ".bin":
            yield from ((name, tuple(tensor.shape)) for name, tensor in _binary(path).items())
            continue
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  a safe_open handle is not iterable
                    yield name, tuple(file.get_slice(name).get_shape())
        except SafetensorError as error:
            raise QAlignError(f"{path} is not a whole safetensors file ({error}); copy it again") from error


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise QAlignError(
            f"{folder} has no *.safetensors (or pytorch_model*.bin) file; copy the published weights there"
        )
    return files


def _binary(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise QAlignError(f"{path} is not a whole file of PyTorch tensors; copy it again") from error
