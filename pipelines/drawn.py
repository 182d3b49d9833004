"""Drawn clips instead of curated ones: training data of the small world without sources to judge.

The clips are files and rows as curation leaves them, so that every later step is the ordinary one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.clips import write_clips
from common.constants import AUDIO_RATE
from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Stage, no_effect
from common.ledger.store import Ledger, Outcome
from common.media.write import write_video
from common.runs import RunFolder, sha256_file
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from miniature.world.figure import Framing
from omniavatar.config import Request
from pipelines.config import HALF_BODY_EVERY, DrawnConfig


def draw_kept_clips(config: DrawnConfig, run: RunFolder, executor: ExecutorConfig) -> None:
    """Write `clips/*.mp4` and `clips.parquet`, all kept; drawn files stay."""
    counts = {"train": config.train, "test": config.test}
    rows = [row for split, count in counts.items() for row in drawn_rows(count, split, config.half_body_every)]
    units = [row | {"unit": row["clip_id"]} for row in rows]
    outcomes = run_stage(DrawStage(config, run.clips), units, Ledger(run.ledger), executor)
    write_clips(run.clips_parquet, _table(rows, outcomes, config.seconds))


@dataclass(frozen=True)
class DrawStage(Stage[dict[str, Any]]):
    """Over rows of `drawn_rows`: draws the clip into `<folder>/<clip_id>.mp4`. Outputs: sha256, height, width."""

    name = "draw"
    version = "1"
    config: DrawnConfig
    folder: Path = no_effect()

    def load(self) -> None:
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, row: dict[str, Any]) -> Outcome:
        """Draw one clip."""
        clip = draw_clip(row["seed"], self.config.seconds, row["framing"])
        path = self.folder / f"{row['clip_id']}.mp4"
        write_video(path, clip.frames, clip.audio)
        height, width = clip.frames.shape[1:3]
        return Outcome(row["unit"], "kept", outputs={"sha256": sha256_file(path), "height": height, "width": width})

    def products(self, row: dict[str, Any], outcome: Outcome) -> Mapping[Path, int | None]:
        """The file."""
        return {self.folder / f"{row['clip_id']}.mp4": None}


def drawn_rows(count: int, split: str, half_body_every: int = HALF_BODY_EVERY) -> list[dict[str, Any]]:
    """Clip rows for clips that are yet to be drawn, with their `seed` and `framing`; all but `train` are held out."""
    start = 0 if split == "train" else HELD_OUT_SEED
    return [
        _row(seed, "half" if half_body_every and seed % half_body_every == 0 else "face", split)
        for seed in range(start, start + count)
    ]


def _row(seed: int, framing: Framing, split: str) -> dict[str, Any]:
    name = f"drawn_{framing}_{seed:07d}"
    caption = draw_clip(seed, 1 / 25, framing).caption
    fixed = {"clip_id": name, "video_id": name, "split": split, "caption": caption}
    return fixed | {"seed": seed, "framing": framing}


def _table(rows: list[dict[str, Any]], outcomes: list[Outcome], seconds: float) -> Iterator[dict[str, Any]]:
    fixed = {"source": "miniature", "decision": "kept", "reasons": [], "t_start": 0.0, "t_end": seconds}
    for row, outcome in zip(rows, outcomes, strict=True):
        named = {name: row[name] for name in ("clip_id", "video_id", "split", "caption")}
        place = {"duration": seconds, "bytes_uri": f"clips/{row['clip_id']}.mp4", "fps_src": 25.0}
        yield fixed | named | place | outcome.outputs


LONG_SEED_OFFSET = 7_008  # of the seeds that nothing else draws

LONG_SECONDS = 6.0


def draw_long_input(folder: Path, number: int = 0, seconds: float = LONG_SECONDS) -> Request:
    """A face and a voice nobody trained on, as the files a user would bring: portrait.png and voice.wav.

    Each `number` is another face with another voice.
    """
    import cv2
    import numpy as np
    import scipy.io.wavfile

    from miniature.world.clips import HELD_OUT_SEED, draw_clip

    folder.mkdir(parents=True, exist_ok=True)
    seed = HELD_OUT_SEED + LONG_SEED_OFFSET + 2 * number
    person, voice = draw_clip(seed, 1.0), draw_clip(seed + 1, seconds)
    # The frame with the mouth most closed: a portrait as people take them.
    portrait = person.frames[int(person.mouth[:, 0].argmin())]
    cv2.imwrite(str(folder / "portrait.png"), cv2.cvtColor(portrait, cv2.COLOR_RGB2BGR))
    scipy.io.wavfile.write(folder / "voice.wav", AUDIO_RATE, (voice.audio * 32767).astype(np.int16))
    return Request(folder / "portrait.png", folder / "voice.wav", person.caption)
