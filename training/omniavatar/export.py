"""What a training hands to others: folders that inference loads, written beside, read back, then renamed.

`adapter/` is in the official layout and holds `diffusers/`, the same LoRA for diffusers' own loader; `base/` is the
plain model of variant "base". A reader sees a folder as it was or as it is, never half of each.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from common.runs import disk_guard, read_json, sync, write_json
from omniavatar.model.transformer import AvatarTransformer
from omniavatar.weights.checkpoints import WEIGHTS_FILE, AdapterConfig, save_adapter, save_base, to_our_name
from omniavatar.weights.loras import read_diffusers_lora, save_diffusers_lora
from omniavatar.weights.tensor_files import CheckpointError, read_tensors
from training.config import ModelConfig
from training.engine.zero import Engine

DIFFUSERS = "diffusers"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(
    engine: Engine,
    folder: Path,
    config: ModelConfig,
    dtype: Literal["fp32", "bf16"],
    notes: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Put the weights as they are now into `folder`, in place of what was there; called by all ranks.

    `notes`: file name -> JSON object, written beside the weights. Raises CheckpointError when what is read back is not
    what was trained (rounded to `dtype`), DiskFullError; `folder` is then as it was.
    """
    model, kind = engine.module, DTYPES[dtype]
    assert isinstance(model, AvatarTransformer)
    if config.plain:
        with engine.gathered(list(model.parameters())):
            if engine.rank == 0:
                with replaced(folder) as beside:
                    save_base(model, beside, kind)
                    confirm(beside, model.dit.state_dict(), read_tensors(beside), kind)
                    _write_notes(beside, notes)
        return
    # Gathered one at a time and kept by the first rank alone: the others never hold more than one.
    tensors = {name: tensor for name, tensor in engine.trained_tensors() if engine.rank == 0}
    if engine.rank == 0:
        with replaced(folder) as beside:
            _write_adapter(tensors, beside, adapter_config(config), kind)
            _write_notes(beside, notes)


def _write_adapter(tensors: Mapping[str, Tensor], folder: Path, config: AdapterConfig, kind: torch.dtype) -> None:
    save_adapter(tensors, folder, config, kind)
    official = ((to_our_name(name), tensor) for name, tensor in read_tensors(folder / WEIGHTS_FILE))
    confirm(folder / WEIGHTS_FILE, tensors, official, kind)
    if config.architecture == "lora":
        (folder / DIFFUSERS).mkdir()
        save_diffusers_lora(tensors, folder / DIFFUSERS, config, kind)
        confirm(folder / DIFFUSERS, tensors, read_diffusers_lora(folder / DIFFUSERS), kind)


def _write_notes(folder: Path, notes: Mapping[str, Mapping[str, Any]] | None) -> None:
    for name, note in (notes or {}).items():
        write_json(folder / name, note)


def confirm(
    source: Path, trained: Mapping[str, Tensor], found: Iterable[tuple[str, Tensor]], kind: torch.dtype
) -> None:
    """Raise CheckpointError unless `found` is exactly `trained` in names, shapes and values, rounded to `kind`."""
    left, problems = dict(trained), []
    for name, tensor in found:
        if name not in left:
            problems.append(f"unexpected: {name} was written and never trained")
        elif not torch.equal(tensor, left.pop(name).to("cpu", kind)):
            problems.append(f"value: {name} {tuple(tensor.shape)} is not what was trained")
    problems += [f"missing: {name} was trained and not written" for name in left]
    if problems:
        raise CheckpointError(source, problems)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which takes its place when the block ends well; otherwise nothing changes.

    Between two renames there is no `folder` for an instant; a kill right then leaves the old one for the next call.
    Raises DiskFullError.
    """
    beside, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    for left in (beside, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        with disk_guard(folder):
            beside.mkdir(parents=True)
            yield beside
            for path in (*beside.rglob("*"), beside):
                sync(path)
        if folder.exists():
            os.replace(folder, old)
        os.replace(beside, folder)
        sync(folder.parent)
    finally:
        for left in (beside, old):
            shutil.rmtree(left, ignore_errors=True)


def adapter_config(config: ModelConfig) -> AdapterConfig:
    """What the adapter's `config.json` says; an adapter that was continued keeps its own rank and alpha."""
    assert config.variant != "base"
    if config.adapter:
        source = config.adapter / "config.json"
        return AdapterConfig.from_json(read_json(source), source)
    return AdapterConfig(config.variant, config.lora_rank, config.lora_alpha, audio_entry=config.audio_entry)
