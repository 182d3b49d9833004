"""Takedown of a video from a run, from its files to its latents; a killed one is completed by the same call."""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from common.runs import RunFolder
from curation.config import SelectConfig
from curation.dataset.takedown import begin, finish, forget_clips, left_outside, still_named, tombstone
from training.launch.hang_detection import LONGEST_INTERVAL

ALIVE = 4 * LONGEST_INTERVAL  # seconds since the last heartbeat of a training that is taken to go on


@dataclass(frozen=True)
class Takedown:
    """What a takedown touched. `named` are files of the run that still name the video as text, `outside` its source
    files outside the run; both are the user's to deal with. `trained`: there are checkpoints, which may have learnt
    from it. `pages` were deleted since a command writes them again; `notes` are sentences for the user."""

    removed: dict[str, Any]
    shards_version: int
    named: list[str]
    outside: list[str]
    trained: bool
    pages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for a person."""
        lines = [f"removed: {_counted(self.removed)}; the shards are at version {self.shards_version}"]
        lists = self.removed["lists"].items()
        lines += [f"list {name}: {count} clips became tombstones; publish it again" for name, count in lists]
        lines += [f"{page} named it and was deleted; the command that wrote it writes it again" for page in self.pages]
        lines += [f"{file} still names it; edit or delete this file" for file in self.named]
        lines += [f"{file} is outside of the run and was left; delete it yourself" for file in self.outside]
        if self.trained:
            lines.append("checkpoints may have learnt from it: train again from the shards as they are now")
        return lines + self.notes


def plan_lines(run: RunFolder, entry: dict[str, Any], every_file: bool = False) -> list[str]:
    """What `take_down` would remove by a `curation.dataset.takedown.plan`, for a person, counted by folder or file by
    file."""
    video_id = entry["video"]
    if not entry["pages"] and not any(entry["counts"].values()):
        return [f"'{video_id}' was taken down on {entry['taken_down']}; nothing of it is left to remove"]
    files = [*entry["files"], *entry["pages"]]
    folders = Counter(Path(file).parent.as_posix() for file in files)
    lines = [f"to remove of '{video_id}': {_counted(entry['counts'])}"]
    lines += [f"clips: {', '.join(entry['clips'])}"] if entry["clips"] else []
    lines += [f"list {name}: {count} clips become tombstones" for name, count in entry["counts"]["lists"].items()]
    lines += files if every_file else [f"{folder}: {count} files" for folder, count in sorted(folders.items())]
    return lines + [f"{file} is outside of the run and stays" for file in left_outside(run, entry)] + _training(run)


def take_down(run: RunFolder, video_id: str, select: SelectConfig, entry: dict[str, Any] | None = None) -> Takedown:
    """Remove every trace of a video from a run but the SHA-256 of its id, by which later runs refuse it.

    `entry` is its plan when one was made before. `select` are the run's thresholds (clips refused as duplicates of its
    clips are decided again). Raises ValueError for a video the run does not know, RuntimeError when a run is at work,
    DiskFullError.
    """
    from latents.takedown import forget_latents, shards_version  # imports torch, which a plan does without

    entry = begin(run, video_id, entry)
    notes = _training(run) + _swapped(run, entry)
    # The shards first: what they hold is told by the clip table.
    forget_latents(run, entry["clips"], tombstone(video_id))
    forget_clips(select, run, video_id, entry)
    named, outside = still_named(run, entry), left_outside(run, entry)
    trained = any(run.checkpoints.rglob("*.safetensors"))
    # The counts of the plan: a takedown that was killed reports all that went, not what was left of it.
    report = Takedown(entry["counts"], shards_version(run.shards), named, outside, trained, entry["pages"], notes)
    finish(run, video_id, entry["counts"])
    return report


def _counted(counts: dict[str, Any]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if name != "lists")


def _training(run: RunFolder) -> list[str]:
    """A sentence when a training of this run has written a heartbeat a moment ago: it holds the old index of the shards
    in memory."""
    beats = [time.time() - file.stat().st_mtime for file in (run.root / "logs").glob("heartbeat-*.json")]
    if not beats or min(beats) > ALIVE:
        return []
    return [
        f"a training of this run is alive (heartbeat {max(min(beats), 0):.0f} s ago) and reads these shards: stop it "
        "and train again from the shards as they are after the takedown; samples have moved under it"
    ]


def _swapped(run: RunFolder, entry: dict[str, Any]) -> list[str]:
    """A sentence when videos of other clips may have been made with the voice of this one."""
    file = run.root / "videos" / "manifest.parquet"
    if not file.exists() or not {"role", "method", "clip_id"} <= set(pq.read_schema(file).names):
        return []
    rows = pq.read_table(file, columns=["method", "role", "clip_id"]).to_pylist()
    methods = sorted({row["method"] for row in rows if row["role"] == "swapped" and row["clip_id"] in entry["clips"]})
    return [
        f"videos/{method} is driven by the audio of other clips, and one may have its voice; generate them again"
        for method in methods
    ]
