"""Conversion of a model to another published layout, or of base and adapter to one merged file; read back to verify."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.errors import ExistingFileError, InputError
from common.runs import read_json
from miniature.weights import model_paths
from omniavatar.encoders.text import load_text_encoder, save_text_encoder
from omniavatar.encoders.vae import load_vae, save_vae
from omniavatar.model.adapter import merge_lora
from omniavatar.model.transformer import load_base
from omniavatar.weights.checkpoints import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterConfig,
    load_adapter,
    save_adapter,
    save_base,
    to_our_name,
)
from omniavatar.weights.tensor_files import read_tensors
from pipelines.models.check import Finding, check

Paths = Mapping[str, Path | None]


@dataclass(frozen=True)
class Job:
    """Arguments of a conversion: write `source` to `to` in `layout` as `dtype`; `paths` are the recipe's models."""

    source: Path
    to: Path
    layout: Any
    dtype: torch.dtype
    paths: Paths


def export(role: str, layout: str, paths: Paths, to: Path, dtype: torch.dtype | None = None) -> Finding:
    """Write the weights of `role` in `layout` to `to`, a folder or file that does not exist yet. Returns the finding of
    a check of the result.

    `dtype` None keeps the stored type (the widest of several). Raises ValueError for a layout that the role does not
    have or that cannot represent this model, FileExistsError, what the loaders raise, DiskFullError.
    """
    if layout not in LAYOUTS.get(role, {}):
        choices = "; ".join(f"{name} as {' or '.join(writers)}" for name, writers in LAYOUTS.items())
        raise InputError(f"{role} cannot be exported as {layout!r}; expected {choices}.")
    source = paths.get(role)
    if source is None:
        raise InputError(f"The recipe has no weights for {role}; name them with --set models.{role}=PATH.")
    if to.exists():
        raise ExistingFileError(f"{to} exists; nothing is overwritten, choose another --to.")
    beside = to.with_name(f".exporting-{to.name}")
    _remove(beside)
    try:
        LAYOUTS[role][layout](Job(source, beside, layout, dtype or stored_type(source), paths))
        finding = _read_back(role, beside, paths)
        beside.rename(to)
    finally:
        _remove(beside)
    return replace(finding, path=to)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_back(role: str, written: Path, paths: Paths) -> Finding:
    """The finding of `check` for the written weights. Raises RuntimeError when they cannot be loaded."""
    beside = {"transformer": paths.get("transformer")} if role == "adapter" else {}
    finding = next(finding for finding in check({**beside, role: written}) if finding.role == role)
    if finding.problems:
        raise RuntimeError(f"The exported {role} cannot be loaded, and is removed: {finding.problems[0]}")
    return finding


def stored_type(path: Path) -> torch.dtype:
    """The widest floating-point type among the tensors of a weight file or folder."""
    file = path / WEIGHTS_FILE if (path / WEIGHTS_FILE).exists() else path
    types = {tensor.dtype for _, tensor in read_tensors(file, device="meta") if tensor.is_floating_point()}
    return _wider(*types) if types else torch.float32


def _wider(*types: torch.dtype) -> torch.dtype:
    return max(types, key=lambda each: torch.finfo(each).bits)


def _transformer(job: Job) -> None:
    save_base(load_base(job.source, job.dtype), job.to, job.dtype, job.layout)


def _vae(job: Job) -> None:
    save_vae(load_vae(job.source, job.dtype), job.to, job.dtype, job.layout)


def _text_encoder(job: Job) -> None:
    # Loading needs a tokenizer, any will do; none is written.
    encoder = load_text_encoder(job.source, model_paths()["tokenizer"], job.dtype)
    save_text_encoder(encoder, job.to, job.dtype, job.layout)


def _adapter(job: Job) -> None:
    """The same tensors; needs no base."""
    tensors = {to_our_name(name): tensor for name, tensor in read_tensors(job.source / WEIGHTS_FILE)}
    save_adapter(tensors, job.to, _adapter_config(job.source), job.dtype)


def _merged(job: Job) -> None:
    """Base and adapter as one full file, as the official code loads it with another `train_architecture` than lora."""
    base = job.paths.get("transformer")
    if base is None:
        raise InputError("Merging needs the transformer too; name it with --set models.transformer=PATH.")
    # Merged in the wider of the two types: updates are small compared with the weights they are added to.
    model = load_adapter(load_base(base, _wider(stored_type(base), job.dtype)), job.source)
    merge_lora(model)
    save_adapter(model, job.to, replace(_adapter_config(job.source), architecture="full"), job.dtype)


def _adapter_config(folder: Path) -> AdapterConfig:
    return AdapterConfig.from_json(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)


LAYOUTS: Mapping[str, Mapping[str, Callable[[Job], None]]] = {
    "transformer": {"diffusers": _transformer, "original": _transformer},
    "vae": {"diffusers": _vae, "original": _vae},
    "text_encoder": {"transformers": _text_encoder, "original": _text_encoder},
    "adapter": {"official": _adapter, "merged": _merged},
}
