"""Takedown of a video from a run, from its files to its latents; a killed one is completed by the same call."""

from dataclasses import dataclass
from typing import Any

from common.runs import RunFolder
from curation.config import SelectConfig
from curation.dataset.takedown import begin, finish, forget_clips, left_outside, still_named, tombstone
from latents.takedown import forget_latents, shards_version


@dataclass(frozen=True)
class Takedown:
    """What a takedown touched. `named` are files of the run that still name the video as text, `outside` its source
    files outside the run; both are the user's to deal with. `trained`: there are checkpoints, which may have learnt
    from it."""

    removed: dict[str, Any]
    shards_version: int
    named: list[str]
    outside: list[str]
    trained: bool

    def lines(self) -> list[str]:
        """The report for a person."""
        counts, lists = dict(self.removed), self.removed["lists"]
        removed = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if name != "lists")
        lines = [f"removed: {removed}; the shards are at version {self.shards_version}"]
        lines += [f"list {name}: {count} clips became tombstones; publish it again" for name, count in lists.items()]
        lines += [f"{file} still names it; edit or delete this file" for file in self.named]
        lines += [f"{file} is outside of the run and was left; delete it yourself" for file in self.outside]
        if self.trained:
            lines.append("checkpoints may have learnt from it: train again from the shards as they are now")
        return lines


def take_down(run: RunFolder, video_id: str, select: SelectConfig) -> Takedown:
    """Remove every trace of a video from a run but the SHA-256 of its id, by which later runs refuse it.

    `select` are the run's thresholds (clips refused as duplicates of its clips are decided again). Raises ValueError
    for a video the run does not know, RuntimeError when a run is at work, DiskFullError.
    """
    entry = begin(run, video_id)
    # The shards first: what they hold is told by the clip table.
    latents = forget_latents(run, entry["clips"], tombstone(video_id))
    removed = forget_clips(select, run, video_id, entry)
    named = still_named(run, entry)
    counts = removed | {"clip_rows": len(entry["clips"]), "samples": latents["samples"]}
    counts["files"] += latents["files"]
    trained = any(run.checkpoints.rglob("*.safetensors"))
    report = Takedown(counts, shards_version(run.shards), named, left_outside(run, entry), trained)
    finish(run, video_id, counts)
    return report
