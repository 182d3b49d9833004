"""Is the picture good? Q-Align's image task on some frames of a clip, averaged."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.constants import FPS
from common.executors.stage import Stage
from common.ledger.store import Outcome
from common.media.index import index_video
from common.media.video import read_frames
from curation.config import QualityConfig
from perception.quality.qalign import QAlign, load_qalign


def quality_stage(config: QualityConfig, folder: Path, model: Path, model_hash: str) -> Stage:
    """The stage over cut clip rows. Outputs: clip fields iqa_1to5, ase_1to5 (means, 1 to 5) and iqa_variant."""
    make = partial(_make, config, folder, model)
    reads = ("unit", "source_sha256", "t_start", "t_end", "crop", "size")
    return Stage("quality", "2", asdict(config), {"quality_scorer": model_hash}, make, reads=reads)


def _make(config: QualityConfig, folder: Path, model: Path) -> Callable[[dict[str, Any]], Outcome]:
    torch.set_num_threads(1)  # the executor's processes are the parallelism
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return partial(score_quality, config, folder, load_qalign(model, device))


def score_quality(config: QualityConfig, folder: Path, scorer: QAlign, row: dict[str, Any]) -> Outcome:
    """Mean quality and aesthetics of the chosen frames, all of them in one batch."""
    file = folder / f"{row['unit']}.mp4"
    ratings = scorer.rate(list(read_frames(file, _chosen(config, file, row["duration"]))), variant=config.variant)
    quality, aesthetics = (round(float(np.mean(ratings[task].scores)), 4) for task in ("quality", "aesthetics"))
    kind = "key frames" if config.frames == "key" else "frames"
    variant = f"{config.variant}, mean of {kind} at {config.frames_per_second:g} per second"
    return Outcome(row["unit"], "kept", outputs={"iqa_1to5": quality, "ase_1to5": aesthetics, "iqa_variant": variant})


def _chosen(config: QualityConfig, file: Path, duration: float) -> list[int]:
    """Frames int(25 i / frames_per_second), or the key frames nearest to them, each once."""
    count = max(1, int(duration * config.frames_per_second))
    wanted = [int(number * FPS / config.frames_per_second) for number in range(count)]
    if config.frames == "even":
        return wanted
    keys = np.asarray(index_video(file).keys)
    return sorted({int(keys[np.abs(keys - frame).argmin()]) for frame in wanted})
