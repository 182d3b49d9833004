"""Is the picture good? Q-Align's image task on one frame per second, averaged over the clip."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.executors import Stage
from common.ledger import Outcome
from common.media import FPS, read_frames
from perception.qalign import QAlign, load_qalign


@dataclass(frozen=True)
class QualityConfig:
    """`frames_per_second` looked at, the whole picture each: a face crop scores far lower (paper, table 1)."""

    frames_per_second: float = 1.0


def quality_stage(config: QualityConfig, folder: Path, model: Path, model_hash: str) -> Stage:
    """The stage over cut clip rows. Outputs: clip fields iqa_1to5, ase_1to5 (means, 1 to 5) and iqa_variant."""
    make = partial(_make, config, folder, model)
    reads = ("unit", "source_sha256", "t_start", "t_end")
    return Stage("quality", "1", asdict(config), {"quality_scorer": model_hash}, make, reads=reads)


def _make(config: QualityConfig, folder: Path, model: Path) -> Callable[[dict[str, Any]], Outcome]:
    torch.set_num_threads(1)  # the executor's processes are the parallelism
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return partial(score_quality, config, folder, load_qalign(model, device))


def score_quality(config: QualityConfig, folder: Path, scorer: QAlign, row: dict[str, Any]) -> Outcome:
    """Mean quality and aesthetics of frames int(25 i / frames_per_second)."""
    count = max(1, int(row["duration"] * config.frames_per_second))
    wanted = [int(number * FPS / config.frames_per_second) for number in range(count)]
    ratings = scorer.rate(list(read_frames(folder / f"{row['unit']}.mp4", wanted)))
    quality, aesthetics = (round(float(np.mean(ratings[task].scores)), 4) for task in ("quality", "aesthetics"))
    variant = "scorer, mean of frames"
    return Outcome(row["unit"], "kept", outputs={"iqa_1to5": quality, "ase_1to5": aesthetics, "iqa_variant": variant})
