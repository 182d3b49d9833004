"""Models without weights, and settings of foreign ones: `config.json`, checked against the weights beside it."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig

from common.errors import shorten
from common.runs import read_json
from common.untrusted.weight_files import CheckpointError, Shapes, check_config

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C", bound=PreTrainedConfig)
# What classes of diffusers and transformers raise for settings they were not written for.
_NO_MODEL = (
    TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError,
    StrictDataclassError,
)  # fmt: skip


def build_empty(build: Callable[[], M]) -> M:
    """A module whose parameters take no memory (meta device); buffers, such as RoPE tables, are real."""
    with init_empty_weights(include_buffers=False):
        return build()


def build_described(file: Path, build: Callable[[], M]) -> M:
    """`build_empty` of a model that a `config.json` describes. Raises CheckpointError where it describes none."""
    try:
        return build_empty(build)
    except _NO_MODEL as error:
        reason = shorten(str(error).strip().partition("\n")[0])
        raise CheckpointError(
            file,
            [f"describes no model ({type(error).__name__}: {reason}); take the one published with these weights"],
        ) from error


def config_defaults(kind: type) -> dict[str, Any]:
    """The settings of a model class of diffusers with their defaults, of which its `config.json` may leave some out."""
    parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def read_config(
    kind: type[C], folder: Path, shapes: Shapes, sizes: Callable[[Shapes], Mapping[str, Any]], **settings: Any
) -> C:
    """A model's settings of transformers from `config.json` in a folder, compared with the shapes of its weights.

    `sizes` derives from shapes what settings must be; `settings` replace those of the file. Raises CheckpointError.
    """
    file = folder / "config.json"
    raw = read_json(file)
    check_config(file, raw, shapes)  # before any object of transformers: some settings make lists of their length
    check_config(file, raw, {}, defaults=kind().to_dict())
    try:
        config = kind.from_dict(raw, **settings)
    except _NO_MODEL as error:
        raise CheckpointError(file, [f"is no {kind.__name__} ({shorten(' '.join(str(error).split()))})"]) from error
    # Once more with defaults, and with settings that have a second name.
    check_config(file, config.to_dict(), shapes, sizes(shapes))
    return config
