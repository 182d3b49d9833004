"""Planted subtitles are measured in the clip file, and weigh more the nearer they are to the face."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.ledger.store import Ledger
from curation.config import TextConfig
from curation.stages.cut import cut_row
from curation.stages.text import TextStage
from miniature.world.clips import draw_clip
from miniature.world.planted import write_text
from tests.curation.conftest import Talk, clip_row, with_tracks, write_talk


@pytest.fixture
def measure(tmp_path: Path) -> Callable[..., dict]:
    """Measures a drawn clip with a line of text at a baseline (None: no text) over some of its frames."""

    def run(baseline: int | None, seed: int = 3, frames: slice = slice(None), face: bool = True) -> dict:
        clip = draw_clip(seed, 3.0, "half")
        pictures = clip.frames.copy()
        for picture in pictures[frames] if baseline is not None else ():
            write_text(picture, "SHE SAYS", baseline or 0)
        name = f"{baseline}-{seed}-{frames.stop}-{face}"
        row = clip_row(write_talk(tmp_path / f"{name}.mp4", Talk(pictures, clip.audio, clip.mouth)), clip, name)  # type: ignore[arg-type]
        row |= {"height": 96, "face_track_id": 0 if face else None}
        times = [(time, [clip.boxes[round(time * 25)].tolist()]) for time, _ in row["faces"]]
        row |= {"faces": times if face else []}
        cut_row(tmp_path / "clips", row)
        stage = TextStage(TextConfig(), tmp_path / "clips", tmp_path)
        (outcome,) = run_stage(stage, [with_tracks(tmp_path, row)], Ledger(tmp_path / name), ExecutorConfig(workers=1))
        return outcome.outputs

    return run


def test_subtitles_are_found_and_a_plain_picture_has_none(measure: Callable[..., dict]) -> None:
    assert measure(None) == {"text_judge": "strokes", "text_area_pct": 0.0, "text_near_face_pct": 0.0}
    assert 2 < measure(92)["text_area_pct"] < 9


def test_text_that_is_there_for_a_third_of_the_time_counts_a_third(measure: Callable[..., dict]) -> None:
    assert measure(92, frames=slice(0, 25))["text_area_pct"] == pytest.approx(measure(92)["text_area_pct"] / 3, rel=0.2)


def test_the_nearer_to_the_face_the_heavier(measure: Callable[..., dict]) -> None:
    chin, bottom = measure(66), measure(92)
    assert chin["text_area_pct"] == pytest.approx(bottom["text_area_pct"], rel=0.4)
    assert chin["text_near_face_pct"] > 1.4 * bottom["text_near_face_pct"] > 0


def test_eyes_and_glasses_are_no_text(measure: Callable[..., dict]) -> None:
    """Seeds whose glasses the bare detector takes for letters in some frames."""
    assert max(measure(None, seed)["text_area_pct"] for seed in (810_026, 810_062)) < 0.3


def test_without_a_face_only_the_area_is_known(measure: Callable[..., dict]) -> None:
    outputs = measure(92, face=False)
    assert outputs["text_near_face_pct"] is None and outputs["text_area_pct"] > 2


def test_the_shortest_clip_has_one_pair(tmp_path: Path) -> None:
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    row = clip_row(
        write_talk(tmp_path / "short.mp4", Talk(frames, np.zeros(1920, np.float32), frames)),
        Talk(frames, frames, frames),
    )
    cut_row(tmp_path / "clips", row)
    stage = TextStage(TextConfig(), tmp_path / "clips", tmp_path)
    (outcome,) = run_stage(
        stage, [with_tracks(tmp_path, row | {"faces": []})], Ledger(tmp_path / "ledger"), ExecutorConfig(workers=1)
    )
    assert outcome.state == "kept" and outcome.outputs["text_area_pct"] == 0
