"""Each kind of unusable file is refused by its own name."""

from pathlib import Path

import av
import pytest

from common.media.marks import SOURCE_TYPE
from common.media.write import write_video
from curation.stages.cut import CutStage
from curation.stages.probe import ProbeStage
from curation.stages.scan import ScanStage
from tests.common.media.test_display import write_tape
from tests.common.media.test_marks import copied
from tests.curation.conftest import draw_talk, write_talk


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_talk(tmp_path / "good.mp4", draw_talk(1, 1.0))


def probed(path: Path):
    return ProbeStage()({"unit": path.name, "path": str(path)})


def test_a_good_file_is_described(good: Path) -> None:
    outcome = probed(good)
    assert outcome.state == "kept"
    assert outcome.outputs["frames"] == 25 and outcome.outputs["fps"] == pytest.approx(25)
    assert outcome.outputs["audio_rate"] == 16000 and len(outcome.outputs["sha256"]) == 64


def test_unusable_files_are_refused_for_what_they_are(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.mp4").write_text("<html>This video is gone.</html>" * 20)
    talk = draw_talk(1, 1.0)
    write_talk(tmp_path / "mute.mp4", type(talk)(talk.frames, None, talk.loudness))  # type: ignore[arg-type]
    outcomes = {name: probed(tmp_path / f"{name}.mp4") for name in ("cut", "page", "mute")}
    assert {name: (outcome.state, outcome.reason) for name, outcome in outcomes.items()} == {
        "cut": ("rejected", "truncated"),
        "page": ("rejected", "not_a_video"),
        "mute": ("rejected", "no_audio"),
    }
    assert all(f"{name}.mp4" in outcome.message for name, outcome in outcomes.items())


@pytest.mark.parametrize(("suffix", "kind"), [("mp4", SOURCE_TYPE), ("mkv", SOURCE_TYPE), ("mp4", "")])
def test_a_source_that_a_model_made_is_kept_here_and_told(tmp_path: Path, suffix: str, kind: str) -> None:
    talk = draw_talk(1, 0.2)
    tags = {"digitalSourceType": kind} if kind else {"comment": "filmed"}
    write_video(tmp_path / "a.mp4", talk.frames, talk.audio, tags=tags)
    outcome = probed(copied(tmp_path / "a.mp4", tmp_path / f"b.{suffix}", movflags="use_metadata_tags"))
    assert outcome.state == "kept"
    assert outcome.outputs.get("digital_source_type") == ("trainedAlgorithmicMedia" if kind else None)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    import scipy.io.wavfile

    scipy.io.wavfile.write(tmp_path / "voice.wav", 16000, draw_talk(1, 1.0).audio)
    (tmp_path / "voice.wav").rename(tmp_path / "voice.mp4")
    assert probed(tmp_path / "voice.mp4").reason == "not_a_video"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
@pytest.mark.parametrize(("share", "audio_span"), [(1.0, None), (0.8, None), (0.3, [0.0, 0.6])])
def test_sound_that_ends_long_before_the_picture_is_told(
    tmp_path: Path, name: str, share: float, audio_span: list[float] | None
) -> None:
    talk = draw_talk(1, 2.0)
    source = write_talk(
        tmp_path / "talk.mp4", type(talk)(talk.frames, talk.audio[: int(share * 32_000)], talk.loudness)
    )
    with av.open(str(source)) as old, av.open(str(tmp_path / name), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                new.mux(packet)
    assert probed(tmp_path / name).outputs.get("audio_span") == (audio_span and pytest.approx(audio_span, abs=0.07))


def test_how_a_source_is_shown_is_told_and_only_that_is_done_again(good: Path, tmp_path: Path) -> None:
    tape = write_tape(tmp_path / "tape.mkv")
    outcome = probed(tape)
    assert outcome.state == "kept" and "scaled to square" in outcome.message
    assert outcome.outputs["presentation"] == outcome.message
    plain = probed(good)
    assert plain.message == "" and plain.outputs["color_transfer"] == "bt709"
    row = {"unit": "a", "sha256": "b"}
    for stage in (ScanStage, CutStage):
        earlier = stage.input_hash(stage, row)  # type: ignore[arg-type]
        assert stage.input_hash(stage, row | {"presentation": ""}) == earlier  # type: ignore[arg-type]
        assert stage.input_hash(stage, row | {"presentation": "x"}) != earlier  # type: ignore[arg-type]
