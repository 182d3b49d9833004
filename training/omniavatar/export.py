"""Export of trained weights as folders that inference loads: written to a temporary folder, verified, then renamed.

`adapter/` is in the official layout and holds the same LoRA twice more: `diffusers/` for diffusers' own loader,
`comfyui/` for readers that take the strength from the tensors. `base/` is the plain model of variant "base". Readers
see the old or the new folder, never a mixture.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from common.errors import InputError
from common.runs import disk_guard, follow_umask, read_json, sync, write_json
from omniavatar.model.transformer import AvatarTransformer
from omniavatar.weights.checkpoints import WEIGHTS_FILE, AdapterConfig, save_adapter, save_base, to_our_name
from omniavatar.weights.loras import (
    COMFYUI_FILE,
    read_comfyui_lora,
    read_diffusers_lora,
    save_comfyui_lora,
    save_diffusers_lora,
)
from omniavatar.weights.tensor_files import CheckpointError, read_tensors
from training.config import LORA_ALPHA, LORA_RANK, ModelConfig
from training.engine.zero import Engine

DIFFUSERS, COMFYUI = "diffusers", "comfyui"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(
    engine: Engine,
    folder: Path,
    config: ModelConfig,
    dtype: Literal["fp32", "bf16"],
    notes: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Replace `folder` by the current weights; called by all ranks.

    `notes`: file name -> JSON object, written next to the weights. Raises CheckpointError when the weights read back
    differ from the trained ones (rounded to `dtype`), DiskFullError; `folder` is then unchanged.
    """
    model, torch_dtype = engine.module, DTYPES[dtype]
    assert isinstance(model, AvatarTransformer)
    if config.plain:
        with engine.gathered(list(model.parameters())):
            if engine.rank == 0:
                with replaced(folder) as beside:
                    save_base(model, beside, torch_dtype)
                    confirm(beside, model.dit.state_dict(), read_tensors(beside), torch_dtype)
                    _write_notes(beside, notes)
        return
    # Gathered one at a time and kept by the first rank only: the others never hold more than one.
    tensors = {name: tensor for name, tensor in engine.trained_tensors() if engine.rank == 0}
    if engine.rank == 0:
        with replaced(folder) as beside:
            _write_adapter(tensors, beside, adapter_config(config), torch_dtype)
            _write_notes(beside, notes)


def _write_adapter(tensors: Mapping[str, Tensor], folder: Path, config: AdapterConfig, dtype: torch.dtype) -> None:
    save_adapter(tensors, folder, config, dtype)
    official = ((to_our_name(name), tensor) for name, tensor in read_tensors(folder / WEIGHTS_FILE))
    confirm(folder / WEIGHTS_FILE, tensors, official, dtype)
    if config.architecture == "lora":
        (folder / DIFFUSERS).mkdir()
        save_diffusers_lora(tensors, folder / DIFFUSERS, config.rank, config.alpha, dtype)
        confirm(folder / DIFFUSERS, tensors, read_diffusers_lora(folder / DIFFUSERS), dtype)
        (folder / COMFYUI).mkdir()
        file = folder / COMFYUI / COMFYUI_FILE
        save_comfyui_lora(tensors, file, config.alpha, dtype)
        matrices = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
        confirm(file, matrices, read_comfyui_lora(file), dtype)


def _write_notes(folder: Path, notes: Mapping[str, Mapping[str, Any]] | None) -> None:
    for name, note in (notes or {}).items():
        write_json(folder / name, note)


def confirm(
    source: Path, trained: Mapping[str, Tensor], found: Iterable[tuple[str, Tensor]], dtype: torch.dtype
) -> None:
    """Raise CheckpointError unless `found` is exactly `trained` in names, shapes and values, rounded to `dtype`."""
    missing, problems = dict(trained), []
    for name, tensor in found:
        if name not in missing:
            problems.append(f"unexpected: {name} was written and never trained")
        elif not torch.equal(tensor, missing.pop(name).to("cpu", dtype)):
            problems.append(f"value: {name} {tuple(tensor.shape)} differs from the trained one")
    problems += [f"missing: {name} was trained and not written" for name in missing]
    if problems:
        raise CheckpointError(source, problems)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Context with an empty temporary folder, which replaces `folder` unless the block raises.

    Between two renames `folder` does not exist for an instant; after a kill right then the next call restores the old
    one. Raises DiskFullError.
    """
    beside, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with disk_guard(folder):
            beside.mkdir(parents=True)
            yield beside
            for path in (*beside.rglob("*"), beside):
                follow_umask(path)
                sync(path)
        if folder.exists():
            os.replace(folder, old)
        os.replace(beside, folder)
        sync(folder.parent)
    finally:
        for leftover in (beside, old):
            shutil.rmtree(leftover, ignore_errors=True)


def adapter_config(config: ModelConfig) -> AdapterConfig:
    """Content of the adapter's `config.json`; a continued adapter keeps its own rank, alpha and audio entry.

    Raises InputError when `config` asks for others.
    """
    assert config.variant != "base"
    if not config.adapter:
        rank, alpha = config.lora_rank or LORA_RANK, config.lora_alpha or LORA_ALPHA
        return AdapterConfig(config.variant, rank, alpha, audio_entry=config.audio_entry)
    source = config.adapter / "config.json"
    found = AdapterConfig.from_json(read_json(source), source)
    lora = found.architecture == "lora"
    asked = {
        "lora_rank": (config.lora_rank if lora else None, found.rank),
        "lora_alpha": (config.lora_alpha if lora else None, found.alpha),
        # "multi" is what nobody asked for: the entry of an adapter that has another one is taken over.
        "audio_entry": (None if config.audio_entry == "multi" else config.audio_entry, found.audio_entry),
    }
    for name, (setting, present) in asked.items():
        if setting not in (None, present):
            raise InputError(
                f"train.model.{name} is {setting}, but the adapter {config.adapter} that the training goes on from has "
                f"{present}; leave the setting out, or set models.adapter= to start a new adapter."
            )
    return found
