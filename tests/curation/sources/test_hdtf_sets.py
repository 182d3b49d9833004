"""Both HDTF sets from drawn files of HDTF's form."""

from pathlib import Path

import pytest

from curation.config import CutConfig
from curation.sources.hdtf import SUBSETS
from curation.sources.hdtf_sets import list_hdtf_set
from curation.sources.remote import WATCH, SourcesError
from curation.stages.cut import clip_rows

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
    probed = {"path": "x", "sha256": "s", "duration": 300.0, "cuts": [25.0], "motion": [9] * 300, "faces": []}
    probed |= {"fps": 25.0, "width": 1280, "height": 720, "codec": "h264", "audio_rate": 44100}
    clips = clip_rows(CutConfig(use_segments="exact"), row | probed | {"video_start": 0.0, "audio_start": 0.0})
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
