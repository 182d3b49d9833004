"""Check of a training state's pickles before DeepSpeed reads them, which it does without torch's safe loader."""

import pickle
import zipfile
from pathlib import Path

import torch.serialization

from common.errors import UserError

# Classes that DeepSpeed itself stores in the state of an optimizer, beside those that torch takes for safe.
DEEPSPEED_CLASSES = frozenset(
    (
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.utils.tensor_fragment.fragment_address",  # stages 1 and 2
    )
)


class ForeignStateError(UserError, ValueError):
    """A file of a training state names code that no training of ours writes; loading it would run that code."""


def refuse_code(checkpoint: Path) -> None:
    """Raises ForeignStateError when a `.pt` file below a checkpoint folder would import more than a state needs.

    Nothing is unpickled: only the names in the pickles are read. A file that is damaged is left to the reader.
    """
    for file in sorted(checkpoint.rglob("*.pt")):
        if not zipfile.is_zipfile(file):
            if file.read_bytes()[:1] == b"\x80":
                raise ForeignStateError(f"{file} is a bare pickle, which no training state is; remove this checkpoint.")
            continue
        try:
            names = set(torch.serialization.get_unsafe_globals_in_checkpoint(str(file))) - DEEPSPEED_CLASSES
        except (pickle.UnpicklingError, ValueError, KeyError) as error:
            raise ForeignStateError(f"{file} is not a file of a training state; remove this checkpoint.") from error
        except RuntimeError:
            continue
        if names:
            raise ForeignStateError(
                f"{file} would run {sorted(names)[0]} when it is read, which no training state does; it is not loaded. "
                "Resume from a checkpoint folder of your own."
            )
