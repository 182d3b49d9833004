"""Reading Q-Align weights: shard by shard into a model built without memory, strictly by name and shape."""

from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from common.untrusted.weight_files import (
    CheckpointError,
    Shapes,
    check_config,
    layers,
    read_header,
    refuse_bomb,
    refuse_odd_tensors,
    side,
)
from perception.quality.qalign_model import Owl, OwlConfig, QAlignError
from perception.quality.qalign_vision import AbstractorConfig, VisionConfig


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


def check_sizes(file: Path, content: Any) -> None:
    """Compare a parsed config.json with the shapes of the weights beside it, before a network is built from it.

    Raises CheckpointError, QAlignError.
    """
    shapes = dict(published_shapes(file.parent))
    check_config(file, content, shapes)
    check_config(file, content, {}, defaults=_defaults(OwlConfig))
    check_config(file, content, shapes, _language_sizes(shapes))
    visual = content.get("visual_config") or {}
    parts = (("visual_model", VisionConfig, _vision_sizes), ("visual_abstractor", AbstractorConfig, _abstractor_sizes))
    for name, kind, sizes in parts:
        part = visual.get(name, {}) if isinstance(visual, dict) else visual
        check_config(file, part, {}, defaults=_defaults(kind))
        check_config(file, _defaults(kind) | part, shapes, sizes(shapes))


def _defaults(kind: type) -> dict[str, Any]:
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


def _language_sizes(shapes: Shapes) -> dict[str, int | None]:
    return {
        "vocab_size": side(shapes, "model.embed_tokens.weight", 0),
        "hidden_size": side(shapes, "model.embed_tokens.weight", 1),
        "intermediate_size": side(shapes, "model.layers.0.mlp.gate_proj.weight", 0),
        "num_hidden_layers": layers(shapes, "model.layers."),
    }


def _vision_sizes(shapes: Shapes) -> dict[str, int | None]:
    return {
        "hidden_size": side(shapes, "model.vision_model.embeddings.patch_embed.weight", 0),
        "patch_size": side(shapes, "model.vision_model.embeddings.patch_embed.weight", 3),
        "intermediate_size": side(shapes, "model.vision_model.encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers": layers(shapes, "model.vision_model.encoder.layers."),
    }


def _abstractor_sizes(shapes: Shapes) -> dict[str, int | None]:
    first = "model.visual_abstractor.encoder.layers.0.crossattention"
    return {
        "hidden_size": side(shapes, "model.visual_abstractor.query_embeds", 2),
        "num_learnable_queries": side(shapes, "model.visual_abstractor.query_embeds", 1),
        "intermediate_size": side(shapes, f"{first}.output.mlp.w1.weight", 0),
        "num_hidden_layers": layers(shapes, "model.visual_abstractor.encoder.layers."),
    }


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
            yield from read_header(path).items()
        except CheckpointError as error:
            raise QAlignError(f"{path} is not a whole safetensors file ({error.problems[0]}); copy it again") from error


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise QAlignError(
            f"{folder} has no *.safetensors (or pytorch_model*.bin) file; copy the published weights there"
        )
    return files


def _binary(path: Path) -> dict[str, Tensor]:
    refuse_bomb(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise QAlignError(f"{path} is not a whole file of PyTorch tensors; copy it again") from error
    if not isinstance(content, dict) or any(not isinstance(value, Tensor) for value in content.values()):
        raise QAlignError(f"{path} holds something else than named tensors; copy it again")
    refuse_odd_tensors(path, content)
    return content
