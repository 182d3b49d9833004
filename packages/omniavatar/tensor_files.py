"""Weight files: read them tensor by tensor, refuse whatever does not fit, never run pickled code."""

import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

NamedTensors = Iterable[tuple[str, Tensor]]
M = TypeVar("M", bound=nn.Module)


class CheckpointError(ValueError):
    """A weight file that cannot be used; the message names the file and lists every problem found in it."""

    def __init__(self, source: Path | str, problems: list[str]):
        self.source, self.problems = str(source), problems
        listed = "\n  ".join(problems)
        super().__init__(f"{source} cannot be used, {len(problems)} problem(s):\n  {listed}")


def read_tensors(path: Path | str) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, CPU tensor) from a `.pt`/`.pth`/`.bin`/`.safetensors` file or a folder of safetensors shards.

    Shards are opened one after the other, so host memory holds what the caller keeps plus one tensor.
    Raises FileNotFoundError when there is nothing to read, CheckpointError when a file is broken or holds code.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a weight file or a folder of safetensors files.")
    for file in shard_files(path) if path.is_dir() else [path]:
        if file.suffix == ".safetensors":
            yield from _read_safetensors(file)
        else:
            yield from read_torch_file(file).items()


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by its index file when it has one. Raises FileNotFoundError."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        names = sorted(set(json.loads(indexes[0].read_text())["weight_map"].values()))
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise FileNotFoundError(f"{folder} lacks the shards {', '.join(missing)} named in {indexes[0].name}.")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        found = f"{len(files)} of them and no index" if files else "none"
        raise FileNotFoundError(f"{folder} must hold one .safetensors file or shards with their index; found {found}.")
    return files


def _read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (the handle is not a mapping)
                yield name, opened.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(file, [f"not a readable safetensors file ({error}); fetch it again"]) from error


def read_torch_file(file: Path) -> dict[str, Tensor]:
    """The flat name -> tensor dict of a torch file, read without running code from it. Raises CheckpointError."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(file, [f"not a plain tensor file ({reason}); code in weight files is refused"]) from error
    if isinstance(content, dict) and isinstance(content.get("model_state"), dict):
        content = content["model_state"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(file, [f"holds a {type(content).__name__}; expected a dict of name -> tensor"])
    odd = [
        f"{name}: a {type(value).__name__}, not a tensor" for name, value in content.items() if not _is_tensor(value)
    ]
    if odd:
        raise CheckpointError(file, odd)
    return content


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def build_empty(build: Callable[[], M]) -> M:
    """Build a module whose parameters take no memory (meta device); buffers, such as RoPE tables, are real."""
    with init_empty_weights(include_buffers=False):
        return build()


def check_tensors(expected: dict[str, torch.Size], tensors: dict[str, Tensor]) -> list[str]:
    """Every difference between wanted names and shapes and given tensors: missing, unexpected, shape, NaN."""
    problems = [f"missing: {name} {tuple(shape)}" for name, shape in expected.items() if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
        elif tensor.shape != expected[name]:
            problems.append(f"shape: {name} is {tuple(tensor.shape)}, expected {tuple(expected[name])}")
        elif not tensor.is_floating_point():
            problems.append(f"type: {name} is {tensor.dtype}, expected floating point")
        elif not torch.isfinite(tensor).all():
            problems.append(f"broken: {name} holds NaN or infinity")
    return problems


def fill_module(
    module: nn.Module,
    tensors: NamedTensors,
    source: Path | str,
    dtype_of: Callable[[str], torch.dtype] = lambda name: torch.float32,
    tied: frozenset[str] = frozenset(),
) -> None:
    """Put tensors into a module built empty, strictly: all of them or a CheckpointError that lists every problem.

    `dtype_of` gives the storage type by parameter name; names in `tied` may be absent (they share another tensor).
    """
    # Converted as they are read, so the file's copy of a tensor can go before the next one is opened.
    given = {name: tensor.to(dtype_of(name)) if tensor.is_floating_point() else tensor for name, tensor in tensors}
    expected = {name: value.shape for name, value in module.state_dict().items() if name not in tied}
    problems = check_tensors(expected, {name: tensor for name, tensor in given.items() if name not in tied})
    if problems:
        raise CheckpointError(source, problems)
    module.load_state_dict(given, strict=not tied, assign=True)
    module.requires_grad_(True)
