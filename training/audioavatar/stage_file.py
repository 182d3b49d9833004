"""File of a stage: tensors with what they were made of, there whole or not at all; the same content, the same bytes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from audioavatar.driven.training import Checkpoint
from common.progress import MetricLog
from common.runs import atomic_write, plain


def save_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write tensors and a note, one key of metadata: safetensors writes several in any order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        values = {name: value.detach().contiguous() for name, value in tensors.items()}
        save_file(values, temporary, {"about": json.dumps(plain(dict(note)), sort_keys=True)})


def about(path: Path) -> dict[str, Any]:
    """The note of a stage's file, empty where there is none."""
    if not path.is_file():
        return {}
    with safe_open(path, "pt") as file:
        return dict(json.loads((file.metadata() or {}).get("about", "{}")))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a stage's file."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def checkpoint_of(path: Path, made_of: str, stage: str, log: MetricLog | None) -> Checkpoint | None:
    """The checkpoint of what will be `path`, in a hidden file beside it; none without a log."""
    return None if log is None else Checkpoint(path.with_name(f".{path.stem}.checkpoint"), made_of, stage, log)
