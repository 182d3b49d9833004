"""Weight files: streamed reading and atomic writing of tensors, strict checks, no execution of pickled code.

Files are memory-mapped: an unused tensor costs nothing, and on device "meta", where only names, shapes and types are
read, a folder of any size is checked in seconds.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import InputError, MissingFileError, UserError
from common.runs import atomic_write, plain, write_json

NamedTensors = Iterable[tuple[str, Tensor]]
M = TypeVar("M", bound=nn.Module)


class CheckpointError(UserError, ValueError):
    """A weight file that cannot be used; the message names the file and lists every problem found in it."""

    def __init__(self, source: Path | str, problems: list[str]):
        self.source, self.problems = str(source), problems
        listed = "\n  ".join(problems)
        super().__init__(f"{source} cannot be used, {len(problems)} problem(s):\n  {listed}")


def read_tensors(path: Path | str, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) from a `.pt`/`.pth`/`.bin`/`.safetensors` file or a folder of safetensors shards.

    Shards are opened one after the other, so memory holds the tensors the caller keeps plus one shard; on device "meta"
    only headers are read. A tensor that is not copied remains a map of its file: replace files, never write into them.
    Raises FileNotFoundError when there is nothing to read, CheckpointError when a file is broken or contains code.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{path} does not exist; expected a weight file or a folder of safetensors files.")
    for file in shard_files(path) if path.is_dir() else [path]:
        named = _read_safetensors(file) if file.suffix == ".safetensors" else iter(read_torch_file(file).items())
        for name, tensor in named:
            yield name, tensor.to(device)


def weights_file(path: Path | str) -> Path:
    """The one file that names every tensor of a weight file or folder: itself, its only shard, or its index."""
    path = Path(path)
    if not path.is_dir():
        return path
    return next(iter(sorted(path.glob("*.safetensors.index.json"))), None) or shard_files(path)[0]


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by its index file when it has one. Raises FileNotFoundError."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        names = sorted(set(json.loads(indexes[0].read_text())["weight_map"].values()))
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise MissingFileError(f"{folder} lacks the shards {', '.join(missing)} named in {indexes[0].name}.")
        return [folder / name for name in names]
    files = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("."))
    if len(files) != 1:
        found = f"{len(files)} of them and no index" if files else "none"
        raise MissingFileError(f"{folder} must hold one .safetensors file or shards with their index; found {found}.")
    return files


def _read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (the handle is not a mapping)
                yield name, opened.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(file, [f"not a readable safetensors file ({error}); fetch it again"]) from error


def read_torch_file(file: Path) -> dict[str, Tensor]:
    """The flat name -> tensor dict of a torch file, read without running its code. Raises CheckpointError."""
    whole = zipfile.is_zipfile(file)
    if not whole and _begins_as_zip(file):
        raise CheckpointError(file, ["is truncated: the directory at its end is missing; fetch it again"])
    try:
        # Files of torch before 1.6 are not zip archives and cannot be mapped.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=whole)
    except (pickle.UnpicklingError, RuntimeError, EOFError, IndexError) as error:
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


def _begins_as_zip(file: Path) -> bool:
    with open(file, "rb") as opened:
        return opened.read(2) == b"PK"


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def write_torch_file(path: Path | str, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write a flat name -> tensor dict with sorted names, atomically; `dtype` converts, None does not.

    Raises CheckpointError for tensors that are empty (device meta) or not finite, DiskFullError.
    """
    _refuse_broken(path, tensors)
    stored = {name: _own_storage(_on_cpu(tensors[name], dtype)) for name in sorted(tensors)}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        torch.save(stored, file)


def write_shards(
    folder: Path | str,
    tensors: Mapping[str, Tensor],
    stem: str,
    dtype: torch.dtype | None = None,
    shard_size: int | str = "10GB",
) -> None:
    """Write `<stem>.safetensors`, or its shards and then their index; one shard at a time is converted to `dtype`.

    Files of another split under this stem are removed. Raises as `write_torch_file` does.
    """
    folder = Path(folder)
    _refuse_broken(folder, tensors)
    sizes = {name: tensor.to("meta", dtype) for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(
        sizes, filename_pattern=stem + "{suffix}.safetensors", max_shard_size=shard_size
    )
    for file, names in split.filename_to_tensors.items():
        with atomic_write(folder / file) as temporary:
            save_file({name: _on_cpu(tensors[name], dtype) for name in names}, temporary, metadata={"format": "pt"})
    index = folder / f"{stem}.safetensors.index.json"
    if split.is_sharded:
        write_json(index, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    else:
        index.unlink(missing_ok=True)
    for old in folder.glob(f"{stem}*.safetensors"):
        if old.name not in split.filename_to_tensors:
            old.unlink()


def _refuse_broken(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    problems = [f"empty: {name} has no data (device meta)" for name, tensor in tensors.items() if tensor.is_meta]
    problems += [f"broken: {name} holds NaN or infinity" for name, tensor in tensors.items() if not is_finite(tensor)]
    if problems:
        raise CheckpointError(path, problems)


def _on_cpu(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to("cpu", dtype).contiguous()


def _own_storage(tensor: Tensor) -> Tensor:
    """A copy of a tensor that is a part of its storage, such as a mapped shard: torch.save writes whole storages."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def refuse_unsaid(config: Mapping[str, Any], read_back: Mapping[str, Any], but: Set[str] = frozenset()) -> None:
    """Raise ValueError when a model's config differs from the config that a reader infers from its original file.

    The original files of Wan contain few settings; keys in `but` and those with a leading _ may differ.
    """
    own, inferred = plain(dict(config)), plain(dict(read_back))
    differing = {key: own[key] for key in own if key[0] != "_" and own[key] != inferred.get(key)}
    unsaid = {key: value for key, value in differing.items() if key not in but}
    if unsaid:
        raise InputError(f"The original layout cannot represent {unsaid}; save this model in the other layout.")


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity, without a temporary of its size; True for one without data."""
    if tensor.is_meta or not tensor.numel():
        return True
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor.detach()))


def build_empty(build: Callable[[], M]) -> M:
    """A module whose parameters take no memory (meta device); buffers, such as RoPE tables, are real."""
    with init_empty_weights(include_buffers=False):
        return build()


def check_tensors(expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], values: bool = True) -> list[str]:
    """All differences between expected names and shapes and `tensors`: missing, unexpected, shape, type, NaN.

    Values are checked with `values`, and not on device "meta".
    """
    problems = [f"missing: {name} {tuple(shape)}" for name, shape in expected.items() if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
        elif tensor.shape != expected[name]:
            problems.append(f"shape: {name} is {tuple(tensor.shape)}, expected {tuple(expected[name])}")
        elif not tensor.is_floating_point():
            problems.append(f"type: {name} is {tensor.dtype}, expected floating point")
        elif values and not is_finite(tensor):
            problems.append(f"broken: {name} holds NaN or infinity")
    return problems


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor


def rename_problems(problems: Iterable[str], name_in_file: Callable[[str], str]) -> list[str]:
    """Problems of `check_tensors` with the names that the tensors have in their file."""
    parts = (problem.split(" ", 2) for problem in problems)
    return [f"{kind} {name_in_file(name)} {rest}" for kind, name, rest in parts]


def fill_module(
    module: nn.Module,
    tensors: NamedTensors,
    source: Path | str,
    dtype_of: Callable[[str], torch.dtype] = lambda name: torch.float32,
    tied: frozenset[str] = frozenset(),
    name_in_file: Callable[[str], str] = str,
    mapped: bool = False,
) -> None:
    """Load tensors into a module built by `build_empty`, strictly: raises CheckpointError that lists every problem.

    `dtype_of` gives the storage type by parameter name; names in `tied` may be absent (they share another tensor).
    `source` is the file or folder of the tensors, `name_in_file` maps a parameter to its name there; errors show both.
    Tensors on device "meta" leave the module empty. With `mapped` they stay maps of their files, of the type they have
    there; their values are then for `settle_weights` or `refuse_broken` to check.
    """
    # Copied as they are read: a single tensor that stays mapped would keep all pages of its file in memory.
    copied = {name: tensor if mapped else _converted(tensor, dtype_of(name)) for name, tensor in tensors}
    state = module.state_dict()
    expected = {name: value.shape for name, value in state.items() if name in copied or name not in tied}
    problems = check_tensors(expected, copied, values=not mapped)
    if problems:
        raise CheckpointError(weights_file(source), rename_problems(problems, name_in_file))
    module.load_state_dict(copied, strict=not tied, assign=True)
    module.requires_grad_(True)


def settle_weights(
    module: nn.Module,
    dtype_of: Callable[[str], torch.dtype],
    source: Path | str,
    prefix: str = "",
    name_in_file: Callable[[str], str] = str,
) -> None:
    """Replace weights that `fill_module` left mapped by copies of the type that `dtype_of` gives for `prefix` and name.

    Raises CheckpointError for those that are not finite.
    """
    for name, parameter in module.named_parameters():
        parameter.data = _converted(parameter.data, dtype_of(prefix + name))
    refuse_broken(module, source, lambda name: name_in_file(prefix + name))


def refuse_broken(module: nn.Module, source: Path | str, name_in_file: Callable[[str], str] = str) -> None:
    """Raise CheckpointError that lists the weights with NaN or infinity."""
    names = [name for name, value in module.named_parameters() if not is_finite(value)]
    if names:
        raise CheckpointError(source, [f"broken: {name_in_file(name)} holds NaN or infinity" for name in names])
