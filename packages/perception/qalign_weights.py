"""Reading Q-Align weights: shard by shard into a model built without memory, strictly by name and shape."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from perception.qalign_bits import Bits, PackedLinear
from perception.qalign_model import Owl, QAlignError


def load_weights(model: Owl, folder: Path, device: str, dtype: torch.dtype, bits: Bits = 16) -> None:
    """Fill a meta-device model from the weight files of `folder`; peak memory is the model and one tensor.

    With 8 or 4 `bits` the linear layers of the language model are packed as they come. QAlignError lists every tensor
    that is missing, unexpected or of another shape.
    """
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    seen: set[str] = set()
    problems: list[str] = []
    for name, tensor in published_tensors(folder):
        if name.endswith("rotary_emb.inv_freq"):
            continue  # written by transformers before 4.32; computed here
        if name not in wanted:
            problems.append(f"unexpected {name}")
        elif tensor.shape != wanted[name]:
            problems.append(f"{name} is {tuple(tensor.shape)}, expected {tuple(wanted[name])}")
        else:
            _place(model, name, tensor.to(device, dtype), bits)
        seen.add(name)
    problems += [f"missing {name}" for name in wanted if name not in seen]
    if problems:
        raise QAlignError(f"{folder} does not fit its config.json: " + "; ".join(problems))


def _place(model: Owl, name: str, tensor: Tensor, bits: Bits) -> None:
    owner = name.rpartition(".")[0]
    if bits < 16 and name.startswith("model.layers.") and isinstance(model.get_submodule(owner), nn.Linear):
        model.set_submodule(owner, PackedLinear(tensor, bits))
    else:
        model.load_state_dict({name: tensor}, strict=False, assign=True)


def published_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of the folder, safetensors preferred over `pytorch_model*.bin` (never unpickled as code)."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        for path in files:
            yield from _safetensors(path)
        return
    binaries = sorted(folder.glob("pytorch_model*.bin"))
    if not binaries:
        raise QAlignError(
            f"{folder} has no *.safetensors (or pytorch_model*.bin) file; copy the published weights there"
        )
    for path in binaries:
        yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  a safe_open handle is not iterable
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise QAlignError(f"{path} is not a whole safetensors file ({error}); copy it again") from error
