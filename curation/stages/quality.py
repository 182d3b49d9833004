"""Quality stage: Q-Align's image task on some frames of a clip, averaged."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.constants import FPS
from common.executors.stage import Stage, Weights, loaded, no_effect
from common.ledger.store import Outcome
from common.media.index import index_video
from common.media.video import read_frames
from curation.config import QualityConfig
from curation.rows import ClipRow

if TYPE_CHECKING:
    from perception.quality.qalign import QAlign


@dataclass(frozen=True)
class QualityStage(Stage[ClipRow]):
    """Over cut clip rows. Outputs: clip fields iqa_1to5, ase_1to5 (means, 1 to 5) and iqa_variant."""

    name = "quality"
    pool = "gpu"
    version = "2"
    reads = ("unit", "source_sha256", "t_start", "t_end", "crop", "size")
    config: QualityConfig
    quality_scorer: Weights
    folder: Path = no_effect()
    scorer: "QAlign" = loaded()

    def load(self) -> None:
        """Load Q-Align, on a GPU where there is one."""
        import torch

        from perception.quality.qalign import load_qalign

        torch.set_num_threads(1)  # the executor's processes are the parallelism
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.hold(scorer=load_qalign(self.quality_scorer.file, device))

    def __call__(self, row: ClipRow) -> Outcome:
        """Mean quality and aesthetics of the chosen frames, all of them in one batch."""
        config, file = self.config, self.folder / f"{row['unit']}.mp4"
        frames = list(read_frames(file, _chosen(config, file, row["duration"])))
        ratings = self.scorer.rate(frames, variant=config.variant)
        quality, aesthetics = (round(float(np.mean(ratings[task].scores)), 4) for task in ("quality", "aesthetics"))
        kind = "key frames" if config.frames == "key" else "frames"
        variant = f"{config.variant}, mean of {kind} at {config.frames_per_second:g} per second"
        outputs = {"iqa_1to5": quality, "ase_1to5": aesthetics, "iqa_variant": variant}
        return Outcome(row["unit"], "kept", outputs=outputs)


def _chosen(config: QualityConfig, file: Path, duration: float) -> list[int]:
    """Frames int(25 i / frames_per_second), or the key frames nearest to them, each once."""
    count = max(1, int(duration * config.frames_per_second))
    frames = [int(number * FPS / config.frames_per_second) for number in range(count)]
    if config.frames == "even":
        return frames
    keys = np.asarray(index_video(file).keys)
    return sorted({int(keys[np.abs(keys - frame).argmin()]) for frame in frames})
