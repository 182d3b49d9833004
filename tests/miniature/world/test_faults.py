from dataclasses import asdict

import numpy as np
import pytest

from common.media.audio import read_audio
from common.media.index import probe
from common.media.open import MediaError
from common.media.video import read_video
from common.runs import read_json, sha256_file
from miniature.config import SmallWorldConfig
from miniature.world.faults import draw_sources, plan, source_name
from miniature.world.planted import FAULTS

TINY = SmallWorldConfig(clean=2, offset=3, each_fault=1, seconds=2.0)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return {truth.kind: (path, truth) for path, truth in zip(draw_sources(folder, TINY), plan(TINY), strict=True)}


def test_every_kind_is_planned_and_offsets_run_through_all():
    truths = plan(SmallWorldConfig())
    assert {truth.kind for truth in truths} == set(FAULTS) and len(truths) >= 60
    assert sorted(truth.shift for truth in truths if truth.kind == "offset") == list(range(-10, 11))


def test_drifts_run_both_ways_and_far_enough_to_be_found():
    drifts = [truth.shift for truth in plan(SmallWorldConfig(each_fault=6)) if truth.kind == "drift"]
    assert min(map(abs, drifts)) >= 6 and {np.sign(shift) for shift in drifts} == {-1, 1}


def test_sidecar_holds_caption_and_truth(sources):
    path, truth = sources["blur"]
    sidecar = read_json(path.with_suffix(".json"))
    assert sidecar["truth"] == asdict(truth) and "person" in sidecar["caption"] and "segments" not in sidecar
    path, _ = sources["wrong_person"]
    (row,) = read_json(path.with_suffix(".json"))["segments"]
    assert (row["row_index"], row["start"], row["end"]) == (0, 0.0, 2.0) and 0 < row["x"] < 1 and 0 < row["y"] < 1


def test_same_plan_same_bytes(sources, tmp_path):
    again = draw_sources(tmp_path, TINY)
    first = sources["clean"][0].parent
    assert all(sha256_file(path) == sha256_file(first / path.name) for path in again)


def test_a_finished_source_is_not_drawn_again(sources):
    path = sources["clean"][0]
    before = path.stat().st_mtime_ns
    draw_sources(path.parent, TINY)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(("kind", "found"), [("not_a_video", "not_a_video"), ("truncated", "truncated")])
def test_broken_files_are_broken_as_planned(sources, kind, found):
    path, _ = sources[kind]
    with pytest.raises(MediaError) as error:
        probe(path)
        read_video(path)
    assert error.value.kind == found


def test_what_each_fault_does_to_the_file(sources):
    assert not probe(sources["no_audio"][0]).has_audio
    assert probe(sources["fps15"][0]).fps == pytest.approx(15, abs=0.1)
    assert probe(sources["variable_rate"][0]).variable_frame_rate
    assert probe(sources["too_short"][0]).duration < 3 < 20 < probe(sources["too_long"][0]).duration
    assert np.abs(read_audio(sources["silence"][0])).max() < 1e-3
    still = read_video(sources["frozen"][0]).astype(int)
    assert np.abs(still - still[0]).mean() < 1
    assert read_video(sources["second_face"][0]).shape[2] == 128


def test_a_duplicate_looks_like_its_original_but_is_another_file(sources):
    path, truth = sources["duplicate"]
    original = path.with_name(f"{truth.original}.mp4")
    assert truth.original == source_name(0) and sha256_file(path) != sha256_file(original)
    other = read_video(path.with_name(f"{source_name(1)}.mp4"))
    copied, shown = read_video(path).astype(int), read_video(original)
    # crf 23 against 18 leaves a difference, but nothing like that to another clip.
    assert np.abs(copied - shown).mean() < 5 < 20 < np.abs(other.astype(int) - shown).mean()


def test_a_shot_cut_changes_the_person_at_the_planned_second(sources):
    path, truth = sources["shot_cut"]
    frames = read_video(path).astype(int)
    jumps = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    assert jumps.argmax() + 1 == round(truth.seconds * 25) and len(frames) == 2 * round(truth.seconds * 25)
