"""Conversion of a ZeRO checkpoint for another number of ranks, by way of DeepSpeed's universal format.

DeepSpeed's converter runs in a process of its own: its output stays out of our log, it may use several cores, and with
relative paths its glob patterns cannot trip over characters in the name of a run folder.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common.errors import UserError
from common.runs import disk_guard
from training.engine.pickles import refuse_code

_CONVERTER = "deepspeed.checkpoint.ds_to_universal"
_WORKERS = ("--num_extract_workers", "4", "--num_merge_workers", "2")
_SOURCE, _TARGET = "sharded", "universal"


class ConversionError(UserError, RuntimeError):
    """DeepSpeed's converter could not read a checkpoint."""


def sharded_over(checkpoint: Path) -> int:
    """Number of ranks over which the optimizer in a checkpoint folder is sharded; 0 at stage 0, where it is not."""
    return len(list(checkpoint.glob("*zero_pp_rank_*_optim_states.pt")))


def to_universal(checkpoint: Path, target: Path) -> None:
    """Write the universal form of a checkpoint folder to `target`, atomically.

    Needs about three times the checkpoint's size on disk while it runs, once its size when done. Leftovers of a killed
    conversion are removed. Raises ConversionError, ForeignStateError, DiskFullError.
    """
    refuse_code(checkpoint)
    prefix = f".{target.name}-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    # A unique name: a converter that outlived its killed parent may still be writing to its own.
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        (scratch / _SOURCE).symlink_to(checkpoint.resolve(), target_is_directory=True)
        with disk_guard(target):
            _convert(scratch, checkpoint)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(scratch / _TARGET, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _convert(scratch: Path, checkpoint: Path) -> None:
    folders = ("--input_folder", _SOURCE, "--output_folder", _TARGET)
    # Stages 1 and 2 do not store the version of the format, which the converter asks for; stage 3 does not need it.
    command = [sys.executable, "-m", _CONVERTER, *folders, *_WORKERS, "--inject_missing_state"]
    done = subprocess.run(command, cwd=scratch, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise ConversionError(
            f"{checkpoint} could not be converted for another number of ranks ({reason}); start as many as saved it, "
            "or remove this checkpoint and point the file latest beside it to an older one"
        )
