"""HDTF's lists with the defects they are published with, and crops brought to the video that is there today."""

from pathlib import Path

import pytest

from curation.config import CutConfig
from curation.rows import Scan
from curation.sources.hdtf import SUBSETS, fit_crops, list_hdtf, list_hdtf_set
from curation.sources.remote import WATCH, SourcesError
from curation.stages.shots import split_source

RD = {
    "video_url": f"Radio1 {WATCH}aaaaaaaaaaa\nRadio2 {WATCH}bbbbbbbbbbb&t=6s\nRadio24 {WATCH}ccccccccccc\n",
    "resolution": "Radio1.mp4 720\nRadio2.mp4 1080\nRadio24.mp4 720\n",
    "annotion_time": "Radio1.mp4 00:20-01:35\nRadio2.mp4 00:30-01:00 01:30-02:30 \n",
    "crop_wh": "Radio1_0.mp4 483 390 12 390\nRadio2_1.mp4 557 478 0 478\n",
    "crop_ratio": "Radio1_0.mp4 1.0\nRadio2_1.mp4 1.2\n",
}
WDA = {
    "video_url": f"\ufeffCarolynMaloney2 {WATCH}ddddddddddd\nSecondName {WATCH}aaaaaaaaaaa\n",
    "resolution": "CarolynMaloney2.mp4 1080\nSecondName.mp4 720\n",
    "annotion_time": "CarolynMaloney2.mp4 00:05-12:40\nSecondName.mp4 03:00-03:20\nNobody.mp4 00:01-00:20\n",
    "crop_wh": "CarolynMaloney2_0.mp4 608 726 0 726\n",
    "crop_ratio": "",
}
WRA = {
    "video_url": f"KevinMcCarthy1 {WATCH}eeeeeeeeeee\nBroken {WATCH}fffffffffff",
    "resolution": "KevinMcCarthy1.mp4 0\nBroken.mp4 720",
    "annotion_time": "KevinMcCarthy1.mp4 00:05-00:25\nBroken.mp4 00:30-00:10",
    "crop_wh": "KevinMcCarthy1_0.mp4 100 200 0 200",
    "crop_ratio": "",
}


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    folder = tmp_path / "HDTF_dataset"
    folder.mkdir()
    for subset, files in (("RD", RD), ("WDA", WDA), ("WRA", WRA)):
        for kind, text in files.items():
            (folder / f"{subset}_{kind}.txt").write_text(text, "utf-8")
    return tmp_path


def test_every_interval_is_there_with_what_is_known_of_it(lists: Path) -> None:
    rows = list_hdtf(lists)
    assert rows == list_hdtf(lists / "HDTF_dataset")
    found = {row["unit"]: row["segments"] for row in rows if "refused" not in row}
    # Two names of one video are one download; the byte-order mark hides no name; &t=6s is not part of the id.
    assert list(found) == ["aaaaaaaaaaa", "bbbbbbbbbbb", "ddddddddddd", "eeeeeeeeeee"]
    assert [segment["name"] for segment in found["aaaaaaaaaaa"]] == ["Radio1_0", "SecondName_0"]
    assert found["aaaaaaaaaaa"][0] == {
        "row_index": 0, "name": "Radio1_0", "start": 20.0, "end": 95.0, "x": None, "y": None,
        "crop": [483, 12, 390, 390], "crop_height": 720,
    }  # fmt: skip
    assert [(one["start"], one["end"], one["crop"]) for one in found["bbbbbbbbbbb"]] == [
        (30.0, 60.0, None),  # no crop row
        (90.0, 150.0, [557, 0, 478, 478]),
    ]
    assert found["ddddddddddd"][0]["end"] == 760.0
    assert found["eeeeeeeeeee"][0]["crop"] is None  # of a picture 0 pixels high
    indices = [segment["row_index"] for segments in found.values() for segment in segments]
    assert sorted(indices) == list(range(6))


def test_what_names_no_clip_is_refused_by_name(lists: Path) -> None:
    refused = {row["unit"]: row["refused"] for row in list_hdtf(lists) if "refused" in row}
    assert {name: why["reason"] for name, why in refused.items()} == {
        "RD:Radio24": "no_interval", "WDA:Nobody": "malformed_row", "WRA:Broken": "malformed_row",
    }  # fmt: skip
    assert "the interval '00:30-00:10'" in refused["WRA:Broken"]["message"]


def test_missing_and_empty_lists_are_named(lists: Path) -> None:
    for subset in ("RD", "WDA", "WRA"):
        (lists / "HDTF_dataset" / f"{subset}_annotion_time.txt").write_text("")
    with pytest.raises(SourcesError, match="holds no HDTF interval"):
        list_hdtf(lists)
    (lists / "HDTF_dataset" / "WDA_crop_wh.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"WDA_crop_wh\.txt does not exist"):
        list_hdtf(lists)


def cropped(crop: list[int] | None, authors: int | None, width: int, height: int) -> list[int] | None:
    """A crop after fitting it to a picture."""
    [fitted] = fit_crops([{"name": "a_0", "crop": crop, "crop_height": authors}], width, height)
    assert "crop_height" not in fitted
    result: list[int] | None = fitted["crop"]
    return result


def test_crops_follow_the_height_of_the_video() -> None:
    assert cropped([300, 90, 600, 600], 1080, 1280, 720) == [200, 60, 400, 400]
    assert cropped([300, 90, 600, 600], 1080, 1920, 1080) == [300, 90, 600, 600]
    assert cropped([100, 40, 333, 333], 720, 1920, 1080) == [150, 60, 500, 500]  # square after rounding


def test_a_crop_of_another_picture_is_left_out() -> None:
    assert cropped([900, 0, 600, 600], 1080, 960, 1080) is None  # far outside
    assert cropped([368, 124, 600, 600], 720, 960, 720) == [360, 120, 600, 600]  # 8 pixels outside: moved back
    assert cropped(None, None, 960, 720) is None


def test_segments_without_crops_pass_unchanged() -> None:
    row = {"row_index": 1, "start": 0.0, "end": 3.0, "x": 0.5, "y": 0.5}
    assert fit_crops([row], 640, 360) == [row]


VIDEOS = 150


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """150 videos of two intervals: the first is 6 s in every fifth and lacks its crop in every seventh."""
    files: dict[str, list[str]] = {f"{s}_{k}": [] for s in SUBSETS for k in ("video_url", "resolution", "crop_wh")}
    files |= {f"{subset}_annotion_time": [] for subset in SUBSETS}
    for number in range(VIDEOS):
        name, subset = f"Name{number}", SUBSETS[number % 3]
        first = "00:20-00:26" if number % 5 == 0 else "00:20-01:20"
        files[f"{subset}_video_url"].append(f"{name} {WATCH}{number:011d}")
        files[f"{subset}_resolution"].append(f"{name}.mp4 720")
        files[f"{subset}_annotion_time"].append(f"{name}.mp4 {first} 02:00-02:11")
        crops = [f"{name}_{i}.mp4 100 400 50 400" for i in range(2) if i or number % 7]
        files[f"{subset}_crop_wh"] += crops
    for name, lines in files.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    return tmp_path


def test_hundred_videos_and_ten_seconds_of_each(folder: Path) -> None:
    rows = list_hdtf_set("hdtf100", folder)
    assert len(rows) == len({row["unit"] for row in rows}) == 100 and {row["source"] for row in rows} == {"hdtf100"}
    for row in rows:
        number, (segment,) = int(row["unit"]), row["segments"]
        later = number % 5 == 0 or number % 7 == 0
        assert (segment["start"], segment["end"]) == ((120.0, 130.0) if later else (20.0, 30.0))
        assert segment["crop"] == [100, 50, 400, 400]
    assert rows == list_hdtf_set("hdtf100", folder, 0) != list_hdtf_set("hdtf100", folder, 1)


def test_fifteen_seconds_of_every_video(folder: Path) -> None:
    rows = list_hdtf_set("hdtf400_15s", folder)
    assert len(rows) == VIDEOS
    spans = {row["unit"]: (row["segments"][0]["start"], row["segments"][0]["end"]) for row in rows}
    assert spans["00000000000"] == (20.0, 26.0) and spans["00000000001"] == (20.0, 35.0)


def test_a_span_becomes_one_clip_of_its_length(folder: Path) -> None:
    row = list_hdtf_set("hdtf100", folder)[0]
    probed = {"duration": 300.0, "cuts": [25.0], "width": 1280, "height": 720}
    pieces = split_source(CutConfig(use_segments="exact"), row | probed, Scan([], [9] * 300))
    clips = [piece.row for piece in pieces]
    (segment,) = row["segments"]
    assert [(clip["t_start"], clip["t_end"], clip["size"]) for clip in clips] == [
        (segment["start"], segment["end"], [512, 512])
    ]


def test_too_few_videos_and_other_names_are_refused(folder: Path) -> None:
    for subset in ("RD", "WDA"):
        (folder / f"{subset}_crop_wh.txt").write_text("")
    with pytest.raises(SourcesError, match="has 50 videos with a crop and 10 s; expected 100"):
        list_hdtf_set("hdtf100", folder)
    with pytest.raises(SourcesError, match="no HDTF set 'hdtf'; expected one of hdtf100, hdtf400_15s"):
        list_hdtf_set("hdtf", folder)  # type: ignore[arg-type]
