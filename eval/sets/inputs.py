"""Inputs of a test set, cut from a run that holds its clips: what a system is given and what it is compared with.

The first frame of every clip is the input image and the audio begins with the second, as in training: a system that
makes one frame for each 40 ms of audio pairs with the rest of the clip, which is the real video.

    pictures/<clip_id>.png  sounds/<clip_id>.wav  real/<clip_id>.mp4
    samples.jsonl           for `generate --list`: name, image, audio, prompt
    clips.csv               for `eval import`: clip_id, image, audio, reference, group
    test_set.csv            the list itself, which the result card names
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scipy.io.wavfile

from common.clips import stream_clips
from common.constants import AUDIO_RATE, FPS
from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Stage, Weights, loaded, no_effect
from common.ledger.store import Ledger, Outcome
from common.media.audio import read_audio
from common.media.index import index_video
from common.media.open import MediaError
from common.media.video import decode_video
from common.media.write import write_video
from common.runs import RunFolder, atomic_write, sha256_file
from common.tracks import TRACKS_FILE
from curation.config import PeopleConfig
from eval.sets.catalog import (
    FACE_RULE,
    FACE_SIDE,
    HDTF_RULE,
    TEST_SET_FILE,
    ListError,
    TestSet,
    crop_face,
    face_square,
    read_test_set,
    write_test_set,
)
from eval.sets.faces import speaker_boxes, stored_boxes
from perception.faces.detect import FaceDetector, load_face_detector

Row = dict[str, Any]
SAMPLES, CLIPS = "samples.jsonl", "clips.csv"
FILES = IMAGE, AUDIO, REAL = "pictures/{}.png", "sounds/{}.wav", "real/{}.mp4"
FIELDS = (
    "clip_id", "video_id", "t_start", "t_end", "duration", "crop", "caption", "bytes_uri",
)  # fmt: skip


def write_inputs(
    chosen: TestSet,
    run: RunFolder,
    out: Path,
    people: PeopleConfig,
    face_detector: Path | None,
    executor: ExecutorConfig,
) -> list[Outcome]:
    """Write the folder `out` from the clips of `run`, kept or rejected there; finished ones stay. One outcome per clip.

    A clip that the run lacks, that cannot be read, or that the set's rule does not fit (no face, no crop of HDTF) is
    rejected, left out of both lists, and removed where an earlier call has written it. For a set of faces these are
    looked for by `face_detector` (None: OpenCV's cascade) where curation has left no boxes; `people` is how the run
    joins boxes to people. Raises ListError when the run has none of the clips or `out` is of another list,
    FileNotFoundError for a run without clips, StageError, DiskFullError.
    """
    faces, out = chosen.rule == FACE_RULE, out.resolve()  # workers may have another current folder
    units = plan_units(chosen, run)
    _claim(out, chosen)
    stage = InputsStage(
        rule=chosen.rule,
        people=people if faces else None,
        face_detector=Weights.of("face_detector", face_detector if faces else None),
        out=out,
    )
    outcomes = run_stage(stage, units, Ledger(out / "ledger"), executor)
    for outcome in outcomes:
        if outcome.state != "kept":
            for form in FILES:
                (out / form.format(outcome.unit)).unlink(missing_ok=True)
    _write_lists(out, [unit for unit, end in zip(units, outcomes, strict=True) if end.state == "kept"])
    return outcomes


def plan_units(chosen: TestSet, run: RunFolder) -> list[Row]:
    """A unit of work for each clip of the list, in its order: a run has a clip when it cut the same span of the same
    video, whatever it calls it. Raises as `write_inputs` does of the run."""
    spans = {(clip.video_id, *_milliseconds(clip.start, clip.end)) for clip in chosen.clips}
    by_span: dict[tuple[str, int, int], Row] = {}
    for row in stream_clips(run.clips_parquet, FIELDS):
        span = (row["video_id"], *_milliseconds(row["t_start"], row["t_end"]))
        if span in spans and row["bytes_uri"]:
            by_span[span] = row
    if not by_span:
        raise ListError(
            f"{run.root} has none of the {len(chosen.clips)} clips of {chosen.name}; curate their videos first (those "
            "of HDTF with sources.kind of the set's name and curation.cut.use_segments=exact)."
        )
    boxes = stored_boxes(run, list(by_span.values())) if chosen.rule == FACE_RULE else {}
    units = []
    for clip in chosen.clips:
        clip_row = by_span.get((clip.video_id, *_milliseconds(clip.start, clip.end)))
        units.append(_unit(chosen.rule, run, clip.clip_id, clip.video_id, clip_row, boxes))
    return units


def _unit(rule: str, run: RunFolder, name: str, video: str, row: Row | None, boxes: Mapping[str, str]) -> Row:
    """What a worker needs of one clip, with the reason in `refused` when it cannot be used."""
    unit: Row = {"unit": name, "group": video, "path": "", "sha256": "", "caption": ""}
    unit |= {"clip_id": "", "tracks": "", "boxes_sha256": "", "duration": 0.0, "refused": ""}
    if row is None or not (path := run.root / row["bytes_uri"]).is_file():
        return unit | {"refused": "not_in_run"}
    digest = boxes.get(row["clip_id"], "")
    stored = {"clip_id": row["clip_id"], "boxes_sha256": digest, "duration": row["duration"]}
    stored |= {"tracks": str((run.root / TRACKS_FILE).resolve()) if digest else ""}
    unit |= stored | {"path": str(path.resolve()), "sha256": sha256_file(path), "caption": row["caption"] or ""}
    return unit | {"refused": "no_crop" if rule == HDTF_RULE and not row["crop"] else ""}


@dataclass(frozen=True)
class InputsStage(Stage[dict[str, Any]]):
    """Over the units of `plan_units`: writes input image, audio and real video of one clip into `out`."""

    name = "set_inputs"
    version = "2"
    reads = ("unit", "sha256", "boxes_sha256", "refused")
    rule: str
    people: PeopleConfig | None
    face_detector: Weights
    out: Path = no_effect()
    detector: Callable[[], FaceDetector] = loaded()

    def load(self) -> None:
        """Make the folders; the detector is loaded when the first clip needs it."""
        for form in FILES:
            (self.out / form).parent.mkdir(parents=True, exist_ok=True)
        self.hold(detector=cache(partial(load_face_detector, self.face_detector.path)))

    def __call__(self, row: dict[str, Any]) -> Outcome:
        """Write the files of one clip, or reject it with a reason."""
        name, path = row["unit"], row["path"]
        if row["refused"]:
            reasons = {"not_in_run": f"no clip of this span of {row['group']}", "no_crop": "no crop of HDTF for it"}
            return Outcome(name, "rejected", row["refused"], f"The run has {reasons[row['refused']]}.")
        try:
            index = index_video(path)
            count = len(index.sample(FPS))
            square = None
            if self.people is not None:
                boxes = speaker_boxes(self.people, row, self.detector)
                if boxes is None:
                    return Outcome(name, "rejected", "no_face", f"No face was found through {path}.")
                square = face_square(boxes, index.probe.height, index.probe.width)
            if count < 2:
                return Outcome(name, "rejected", "too_short", f"{path} has {count} frame; expected 2 and more.")
            _write_clip(self.out, name, Path(path), square)
        except MediaError as error:
            return Outcome(name, "rejected", error.kind, str(error))
        return Outcome(name, "kept", outputs={"real_sha256": sha256_file(self.out / REAL.format(name))})

    def product_exists(self, row: dict[str, Any], outcome: Outcome) -> bool:
        """Whether the three files are still there, the real video unchanged."""
        image, audio, real = (self.out / form.format(row["unit"]) for form in FILES)
        present = image.exists() and audio.exists() and real.exists()
        return present and sha256_file(real) == outcome.outputs["real_sha256"]


def _write_clip(out: Path, name: str, clip: Path, square: tuple[int, int, int] | None) -> None:
    frames = _shown(clip, square)
    with atomic_write(out / IMAGE.format(name)) as temporary:
        cv2.imwrite(str(temporary), cv2.cvtColor(next(frames), cv2.COLOR_RGB2BGR))
    audio = read_audio(clip)[round(AUDIO_RATE / FPS) :]
    with atomic_write(out / AUDIO.format(name)) as temporary:
        scipy.io.wavfile.write(temporary, AUDIO_RATE, np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16))
    write_video(out / REAL.format(name), frames, audio)


def _shown(clip: Path, square: tuple[int, int, int] | None) -> Iterator[np.ndarray]:
    for frame in decode_video(clip):
        yield frame if square is None else crop_face(frame, square, FACE_SIDE)


def _claim(out: Path, chosen: TestSet) -> None:
    """Reserve the folder for one list: under another rule the same clip has other files."""
    path = out / TEST_SET_FILE
    if path.exists() and (other := read_test_set(path)) != chosen:
        raise ListError(
            f"{out} holds {other.name} with the hash {other.sha256[:12]}, and not {chosen.name} with "
            f"{chosen.sha256[:12]}; give another folder, or delete this one."
        )
    write_test_set(path, chosen)


def _write_lists(out: Path, units: Sequence[Row]) -> None:
    """Paths in both lists are relative to their folder, so that it can be moved."""
    with atomic_write(out / SAMPLES) as temporary, temporary.open("w", encoding="utf-8") as file:
        for unit in units:
            name = unit["unit"]
            sample = {"name": name, "image": IMAGE.format(name), "audio": AUDIO.format(name)}
            file.write(json.dumps(sample | {"prompt": unit["caption"]}, ensure_ascii=False) + "\n")
    with atomic_write(out / CLIPS) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("clip_id", "image", "audio", "reference", "group"))
        for unit in units:
            name = unit["unit"]
            table.writerow((name, *(form.format(name) for form in FILES), unit["group"]))


def _milliseconds(start: float, end: float) -> tuple[int, int]:
    return round(start * 1000), round(end * 1000)
