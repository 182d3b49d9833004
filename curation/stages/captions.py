"""Captions stage: the caption that came with the video, else a captioning model's, else the recipe's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.constants import FPS
from common.executors.stage import Stage, Weights, loaded, no_effect
from common.ledger.store import Outcome
from common.media.video import read_frames
from curation.config import CaptionConfig
from curation.rows import ClipRow

if TYPE_CHECKING:
    from perception.captions import Captioner


def caption_fields(config: CaptionConfig, source: Mapping[str, Any], captioner: bool = False) -> dict[str, Any]:
    """Clip fields caption and caption_model before any model is asked: "sidecar", or "recipe" unless a `captioner` is
    going to write it; null when there is neither."""
    if source["caption"]:
        return {"caption": source["caption"], "caption_model": "sidecar"}
    if config.default and not captioner:
        return {"caption": config.default, "caption_model": "recipe"}
    return {"caption": None, "caption_model": None}


@dataclass(frozen=True)
class CaptionsStage(Stage[ClipRow]):
    """Over cut clip rows that have no caption yet.

    Outputs: clip fields caption, caption_model (folder and the hash of its files), caption_prompt, caption_decoding. An
    empty answer leaves the caption null, and the clip pending.
    """

    name = "captions"
    pool = "gpu"
    version = "1"
    reads = ("unit", "source_sha256", "t_start", "t_end", "crop", "size")
    config: CaptionConfig
    captioner: Weights
    folder: Path = no_effect()
    model: "Captioner" = loaded()

    @property
    def params(self) -> dict[str, Any]:
        """The settings but for `default`, which is of clips that no model is asked about."""
        return {name: value for name, value in super().params.items() if name != "default"}

    def load(self) -> None:
        """Load the captioner, on a GPU where there is one."""
        import torch

        from perception.captions import load_captioner

        torch.set_num_threads(1)  # the executor's processes are the parallelism
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.hold(model=load_captioner(self.captioner.file, device))

    def __call__(self, row: ClipRow) -> Outcome:
        """Ask the captioner about some frames of one clip."""
        config = self.config
        numbers = np.linspace(0, round(row["duration"] * FPS) - 1, config.frames).astype(int).tolist()
        frames = list(read_frames(self.folder / f"{row['unit']}.mp4", numbers))
        text = self.model.describe(frames, config.prompt, config.max_tokens)
        fields = {
            "caption": text or None,
            "caption_model": f"{self.model.name}@{self.captioner.sha256[:12]}",
            "caption_prompt": config.prompt,
            "caption_decoding": f"greedy, at most {config.max_tokens} tokens, {config.frames} frames",
        }
        return Outcome(row["unit"], "kept", outputs=fields)
