"""Every threshold refuses for its own reason, on stored fields alone."""

import itertools
from collections import Counter
from dataclasses import replace

import duckdb
import numpy as np
import pytest

from common.clips import read_clips, write_clips
from curation.config import SelectConfig
from curation.decide.select import select, yield_sql
from tests.curation.decide.drawn_rows import draw_rows, table

CONFIG = SelectConfig(min_sync_c=4.0, min_iqa=2.6, min_side=64, min_face_px=16)
GOOD = {
    "clip_id": "c1", "video_id": "v1", "duration": 5.0, "fps_src": 25.0, "width": 640, "height": 480, "static_pct": 1.0,
    "face_px": 100.0, "face_track_id": 0, "n_faces_median": 1.0, "speech_pct": 80.0, "music_ratio": 0.05,
    "sync_c": 6.0, "sync_offset": 0, "sync_offset_applied": 0, "iqa_1to5": 3.5, "caption": "One.",
    "dup_group": None, "sync_offset_first": 0, "sync_offset_last": 0, "sync_drift": 0, "sync_drift_c": 6.0,
    "lip_motion": 0.8, "asd_speaking_pct": 90.0, "xy_agreement": 0.02, "text_area_pct": 0.0,
}  # fmt: skip
APART = {"sync_c": 1.0, "sync_drift_c": 1.5}  # at no shift and along no slope
DRIFT = {"sync_c": 2.5, "sync_offset_first": -2, "sync_offset_last": 3, "sync_drift": 7}
NO_SCORES = {"sync_c": None, "sync_offset": None, "sync_offset_applied": None, "iqa_1to5": None}


def decide(config: SelectConfig = CONFIG, **changes: object) -> tuple[str, list[str]]:
    (fields,) = select(config, [GOOD | changes])
    return fields["decision"], fields["reasons"]


def splits_of(config: SelectConfig, videos: list[str], **changes: object) -> dict[str, str]:
    decided = select(config, [GOOD | {"video_id": video} | changes for video in videos])
    return {video: fields["split"] for video, fields in zip(videos, decided, strict=True)}


def test_a_good_clip_is_kept() -> None:
    assert decide() == ("kept", [])


def test_generated_videos_are_kept_where_the_recipe_says_so() -> None:
    assert decide(replace(CONFIG, reject_generated=False), digital_source_type="trainedAlgorithmicMedia") == (
        "kept",
        [],
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"duration": 2.96}, "too_short"),
        ({"duration": 20.04}, "too_long"),
        ({"digital_source_type": "compositeSynthetic"}, "generated"),
        ({"fps_src": 15.0}, "low_frame_rate"),
        ({"static_pct": 40.0}, "low_frame_rate"),
        ({"height": 60}, "low_resolution"),
        ({"face_px": 15.0}, "low_resolution"),
        ({"static_pct": 97.0}, "still_picture"),
        ({"face_track_id": None, "n_faces_median": 0.0, "face_px": None} | NO_SCORES, "no_face"),
        ({"n_faces_median": 2.0}, "several_faces"),
        ({"speech_pct": 4.0, "sync_c": 0.4}, "no_speech"),
        ({"music_ratio": 0.7, "sync_c": 0.4}, "music"),
        ({"voice_certainty": 0.74, "sync_c": 0.4}, "music"),
        ({"voice_certainty": 0.74, "music_ratio": None}, "music"),
        ({"sync_c": 3.9}, "low_sync"),
        ({"sync_offset": 4}, "low_sync"),
        ({"sync_offset": -4, "sync_offset_applied": 4}, "low_sync"),
        ({"iqa_1to5": 2.5}, "low_quality"),
        ({"dup_group": "c0"}, "duplicate"),
        ({"text_area_pct": 0.71}, "burned_in_text"),
        ({"text_area_pct": 0.71, "text_judge": "strokes"}, "burned_in_text"),
        ({"text_area_pct": 1.01, "text_judge": "pp-ocr"}, "burned_in_text"),
        (APART, "dubbed"),
        (APART | {"sync_c": 2.1}, "low_sync"),
        (APART | {"lip_motion": 0.3}, "off_screen_speaker"),
        (APART | {"lip_motion": 0.3, "sync_c": 3.0}, "off_screen_speaker"),
        (APART | {"lip_motion": None, "asd_speaking_pct": None}, "dubbed"),
        ({"asd_speaking_pct": 10.0}, "off_screen_speaker"),
        (DRIFT, "drift"),
        (DRIFT | {"sync_c": 5.0}, "drift"),
        (DRIFT | {"sync_drift_c": 3.9}, "low_sync"),
        (DRIFT | {"sync_offset_first": 2}, "low_sync"),  # the slope may be chance when the thirds agree
        (DRIFT | {"sync_drift": -1, "sync_c": 1.0}, "dubbed"),
        (DRIFT | APART | {"iqa_1to5": 2.6}, "dubbed"),
        ({"xy_agreement": 0.16}, "wrong_person"),
    ],
)
def test_one_fault_is_refused_for_one_reason(changes: dict, reason: str) -> None:
    assert decide(**changes) == ("rejected", [reason])


@pytest.mark.parametrize(
    "changes",
    [
        {"duration": 3.0},
        {"sync_c": 4.0},
        {"iqa_1to5": 2.6},
        {"sync_offset": -7, "sync_offset_applied": -7},
        {"sync_offset": 1},
        {"dup_group": "c1"},
        {"static_pct": None},
        {"sync_offset_first": -1, "sync_drift": 4},
        {"sync_offset_first": 4, "sync_drift": -4, "sync_drift_c": 3.9},
        {"lip_motion": 0.1},
        {"asd_speaking_pct": 25.0, "xy_agreement": 0.15, "text_area_pct": 0.7},
        {"voice_certainty": 0.75, "text_area_pct": 1.0, "text_judge": "pp-ocr"},
        {"asd_speaking_pct": None, "xy_agreement": None, "text_area_pct": None, "lip_motion": None},
    ],
)
def test_what_is_just_good_enough_is_kept(changes: dict) -> None:
    assert decide(**changes) == ("kept", [])


def test_all_reasons_are_given() -> None:
    assert decide(sync_c=1.0, iqa_1to5=1.0, n_faces_median=3.0)[1] == ["several_faces", "low_sync", "low_quality"]


@pytest.mark.parametrize("poor", [{"iqa_1to5": 1.0}, {"static_pct": 97.0}, {"static_pct": 40.0}, {"fps_src": 12.0}])
@pytest.mark.parametrize("lips_and_sound", [APART, APART | {"lip_motion": 0.1}, DRIFT])
def test_a_poor_picture_says_no_more_than_that_lips_and_sound_disagree(poor: dict, lips_and_sound: dict) -> None:
    reasons = decide(**lips_and_sound, **poor)[1]
    assert "low_sync" in reasons and not {"dubbed", "drift", "off_screen_speaker"} & set(reasons)


def test_where_nobody_speaks_nobody_is_the_wrong_one() -> None:
    assert decide(speech_pct=0.0, xy_agreement=0.9, **APART)[1] == ["no_speech"]


def test_missing_scores_wait_for_their_weights() -> None:
    assert decide(**NO_SCORES) == ("pending", ["needs sync_scorer", "needs quality_scorer"])
    assert decide(caption=None) == ("pending", ["needs captioner"])


def test_only_the_scores_that_are_required_are_waited_for() -> None:
    assert decide(replace(CONFIG, require=()), **NO_SCORES, caption=None) == ("kept", [])
    assert decide(replace(CONFIG, require=("quality_scorer",)), **NO_SCORES) == ("pending", ["needs quality_scorer"])
    assert decide(replace(CONFIG, require=()), **NO_SCORES, speech_pct=3.0) == ("rejected", ["no_speech"])
    assert decide(replace(CONFIG, require=()), iqa_1to5=1.0) == ("rejected", ["low_quality"])  # where it is known
    with duckdb.connect() as connection:
        connection.register("clips", table([GOOD | NO_SCORES]))
        waiting, kept = (
            connection.sql(yield_sql(replace(CONFIG, require=require), {"max_faces": [1]})).fetchall()[0]
            for require in (CONFIG.require, ())
        )
    assert (waiting[1], waiting[3]) == (0, 1) and (kept[1], kept[3]) == (1, 0)  # clips, pending clips


def test_a_refusal_does_not_wait_for_weights() -> None:
    assert decide(**NO_SCORES, speech_pct=0.0) == ("rejected", ["no_speech"])


def test_what_a_stage_could_not_read_stays_refused_whatever_the_thresholds() -> None:
    lax = SelectConfig(min_sync_c=0, min_iqa=1, min_side=1, min_face_px=1)
    assert decide(lax, decision="rejected", reasons=["truncated"]) == ("rejected", ["truncated"])
    assert decide(lax, decision="failed", reasons=["failed sync"]) == ("failed", ["failed sync"])
    assert decide(lax, decision="rejected", reasons=["low_sync"]) == ("kept", [])


def test_deciding_again_from_the_table_gives_the_same(tmp_path) -> None:
    rows = [GOOD | {"clip_id": f"c{n}", "sync_c": float(n)} for n in range(8)]
    write_clips(
        tmp_path / "clips.parquet", [row | fields for row, fields in zip(rows, select(CONFIG, rows), strict=True)]
    )
    stored = read_clips(tmp_path / "clips.parquet")
    assert [row["decision"] for row in stored] == ["rejected"] * 4 + ["kept"] * 4
    assert [each["decision"] for each in select(CONFIG, stored)] == [row["decision"] for row in stored]
    strict = replace(CONFIG, min_sync_c=6.0)
    assert [each["decision"] for each in select(strict, stored)] == ["rejected"] * 6 + ["kept"] * 2


def test_the_split_follows_the_video_not_the_clip() -> None:
    names = [f"v{n}" for n in range(2000)]
    splits = splits_of(CONFIG, names)
    assert Counter(splits.values())["test"] == pytest.approx(200, abs=45)
    again = splits_of(CONFIG, names, clip_id="x")
    assert again == splits
    other = splits_of(replace(CONFIG, split_seed=1), names)
    assert other != splits


@pytest.mark.parametrize(
    "grid",
    [
        {"min_sync_c": (2.0, 4.0, 5.6), "min_iqa": (1.0, 2.6, 3.5)},
        {"max_offset": (0, 1, 5), "min_seconds": (3.0, 6.0), "max_static_pct": (10.0, 80.0), "max_faces": (1,)},
    ],
)
def test_every_cell_of_a_grid_counts_what_select_would_keep(grid: dict[str, tuple[float, ...]]) -> None:
    rows = draw_rows(1500, 9)
    with duckdb.connect() as connection:
        connection.register("clips", table(rows))
        found = connection.sql(yield_sql(SelectConfig(), grid)).to_arrow_table().to_pylist()
    assert len(found) == np.prod([len(values) for values in grid.values()])
    for cell, values in zip(found, itertools.product(*grid.values()), strict=True):
        thresholds = dict(zip(grid, values, strict=True))
        assert {name: cell[name] for name in grid} == thresholds
        config = replace(SelectConfig(), **thresholds)  # type: ignore[arg-type]
        decided = [
            (fields["decision"], round(1000 * row["duration"]))
            for row, fields in zip(rows, select(config, rows), strict=True)
        ]
        for state, name in (("kept", ""), ("pending", "pending_")):
            lengths = [length for decision, length in decided if decision == state]
            assert (cell[f"{name}clips"], cell[f"{name}ms"]) == (len(lengths), sum(lengths)), thresholds
    assert len({cell["clips"] for cell in found}) > 3
