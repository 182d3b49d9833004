from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.clips import write_clips
from common.runs import RunFolder, write_json
from miniature.world.planted import Truth
from miniature.world.truth import score_truth


def _clip(video: str, start=0.0, end=3.6, decision="kept", reasons=(), applied=0, offset=None, framing=None):
    return {
        "clip_id": f"{video}-{start}", "video_id": video, "t_start": start, "t_end": end, "duration": end - start,
        "decision": decision, "reasons": list(reasons), "sync_offset_applied": applied,
        "sync_offset": applied if offset is None else offset, "framing": framing,
    }  # fmt: skip


@pytest.fixture
def judge(tmp_path):
    def run(cases):
        """cases: [(Truth, reason of the source or "", clip rows)]"""
        folder, rows, clips = tmp_path / "sources", [], []
        for number, (truth, reason, own) in enumerate(cases):
            name = f"s{number}.mp4"
            write_json((folder / name).with_suffix(".json"), {"caption": "", "truth": asdict(truth)})
            state = "rejected" if reason else "kept"
            rows.append(
                {
                    "video_id": name,
                    "state": state,
                    "reason": reason,
                    "variable_frame_rate": truth.kind == "variable_rate",
                }
            )
            clips += [_clip(name, **clip) for clip in own]
        run = RunFolder(tmp_path)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "sources.parquet")
        write_clips(run.clips_parquet, clips)
        return score_truth(run, folder)

    return run


def _only(table):
    (row,) = table["faults"]
    return row["cases"], row["found"], row["wrong_reason"]


def test_refused_for_the_right_reason_for_a_wrong_one_or_not_at_all(judge):
    refused = {"decision": "rejected"}
    cases = [
        (Truth("blur", 1), "", [refused | {"reasons": ["low_quality", "low_sync"]}]),
        (Truth("blur", 2), "", [refused | {"reasons": ["low_sync"]}]),
        (Truth("blur", 3), "", [{}]),
    ]
    assert _only(judge(cases)) == (3, 1, 1)


def test_a_source_refused_before_it_became_a_clip_counts(judge):
    assert _only(judge([(Truth("not_a_video", 1), "not_a_video", [])])) == (1, 1, 0)


@pytest.mark.parametrize(
    ("applied", "offset", "exact", "zero"),
    [(-4, -4, 1, 1), (4, -4, 0, 0), (0, -4, 0, 0), (-3, -3, 0, 1), (-4, -5, 1, 0)],
)
def test_late_sound_must_be_moved_back_by_as_much(judge, applied, offset, exact, zero):
    table = judge([(Truth("offset", 1, shift=4), "", [{"applied": applied, "offset": offset}])])
    assert table["offsets"] == {"cases": 1, "exact": exact, "zero": zero}


def _rates(table):
    return {row["kind"]: (row["recall"], row["precision"]) for row in table["faults"]}


def test_precision_counts_what_was_taken_for_a_fault(judge):
    def refused(*reasons):
        return [{"decision": "rejected", "reasons": list(reasons)}]

    cases = [
        (Truth("dubbed", 1), "", refused("dubbed")),
        (Truth("dubbed", 2), "", refused("drift")),
        (Truth("drift", 3), "", refused("drift")),
        (Truth("clean", 4), "", refused("dubbed", "duplicate")),
        (Truth("blur", 5), "", refused("low_quality")),
        (Truth("noise", 6), "", refused("low_quality", "low_sync")),  # both are low quality
        (Truth("second_face", 7), "", refused("several_faces")),
        (Truth("wrong_person", 8), "", refused("several_faces", "wrong_person")),  # two people are seen there, too
        (Truth("silence", 9), "", refused("no_speech")),
        (Truth("music", 10), "", refused("music")),
        (Truth("duplicate", 11), "", [{}]),
    ]
    assert _rates(judge(cases)) == {
        "dubbed": (0.5, 0.5), "drift": (1.0, 0.5), "blur": (1.0, 1.0), "noise": (1.0, 1.0), "second_face": (1.0, 1.0),
        "wrong_person": (1.0, 1.0), "silence": (1.0, 1.0), "music": (1.0, 1.0), "duplicate": (0.0, 0.0),
    }  # fmt: skip


def test_precision_of_what_is_put_right(judge):
    pieces = [{"start": 0.0, "end": 2.0}, {"start": 2.0, "end": 3.6}]
    cases = [
        (Truth("offset", 1, shift=4), "", [{"applied": -4}]),
        (Truth("clean", 2), "", [{"applied": 3}]),  # moved for nothing
        (Truth("clean", 3), "", pieces),  # cut for nothing
        (Truth("shot_cut", 4, seconds=3.6), "", [{"end": 3.6}, {"start": 3.6, "end": 7.2}]),
        (Truth("variable_rate", 5, seconds=3.6), "", [{}]),
        (Truth("dubbed", 6), "", [{"decision": "rejected", "reasons": ["dubbed"], "applied": 5}]),
    ]
    rates = _rates(judge(cases))
    assert rates["offset"] == rates["shot_cut"] == (1.0, 0.5) and rates["variable_rate"] == (1.0, 1.0)


def test_framing_of_clean_clips(judge):
    cases = [
        (Truth("clean", 1), "", [{"framing": "head"}]),
        (Truth("clean", 2, "half"), "", [{"framing": "semi"}]),
        (Truth("clean", 3, "half"), "", [{"framing": "head"}]),
        (Truth("clean", 4), "", [{}]),
    ]
    assert judge(cases)["framing"] == {"cases": 3, "right": 2}


def test_a_clean_clip_that_is_refused_is_a_false_refusal(judge):
    table = judge(
        [(Truth("clean", 1), "", [{}]), (Truth("clean", 2), "", [{"decision": "rejected", "reasons": ["music"]}])]
    )
    assert (table["unfaulted"], table["false_refusals"], table["false_reasons"]) == (2, 1, {"music": 1})


@pytest.mark.parametrize(("border", "found"), [(3.6, 1), (3.64, 1), (3.0, 0)])
def test_a_cut_is_found_where_it_is(judge, border, found):
    pieces = [{"start": 0.0, "end": border}, {"start": border, "end": 7.2}]
    assert _only(judge([(Truth("shot_cut", 1, seconds=3.6), "", pieces)]))[1] == found


def test_a_clip_over_the_cut_is_no_find(judge):
    assert _only(judge([(Truth("shot_cut", 1, seconds=3.6), "", [{"start": 0.0, "end": 7.2}])]))[1] == 0


def test_long_sources_end_in_pieces_and_a_short_rest_is_rightly_refused(judge):
    rest = {"start": 20.0, "end": 22.0, "decision": "rejected", "reasons": ["too_short"]}
    table = judge([(Truth("too_long", 1), "", [{"start": 0.0, "end": 20.0}, rest])])
    assert _only(table) == (1, 1, 0) and table["false_refusals"] == 0
