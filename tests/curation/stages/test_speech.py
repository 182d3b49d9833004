"""The speech stage listens to the piece of the source that the clip is."""

from pathlib import Path

from curation.stages.speech import SpeechStage
from tests.curation.conftest import Talk, clip_row, draw_talk, write_talk


def test_the_piece_decides_not_the_whole(tmp_path: Path) -> None:
    talk = draw_talk(2, 6.0)
    sound = talk.audio.copy()
    sound[3 * 16_000 :] = 0
    row = clip_row(write_talk(tmp_path / "half.mp4", Talk(talk.frames, sound, talk.loudness)), talk)
    spoken = SpeechStage()(row | {"t_end": 3.0}).outputs
    silent = SpeechStage()(row | {"t_start": 3.04}).outputs
    assert spoken["speech_pct"] > 80 and spoken["music_ratio"] < 0.2 and spoken["clipping_pct"] == 0
    assert silent["speech_pct"] == 0
    assert silent["loudness_lufs"] is None and -40 < spoken["loudness_lufs"] < -5
    assert silent["silence_start"] == silent["silence_end"] == 2.96 and spoken["silence_start"] < 0.1
    assert set(spoken) == {
        "speech_judge", "speech_pct", "voice_certainty", "snr_db", "music_ratio", "clipping_pct", "loudness_lufs",
        "silence_start", "silence_end",
    }  # fmt: skip


def test_silent_ends_are_measured_on_the_piece(tmp_path: Path) -> None:
    talk = draw_talk(2, 6.0)
    sound = talk.audio.copy()
    sound[: 2 * 16_000], sound[5 * 16_000 :] = 0, 0
    row = clip_row(write_talk(tmp_path / "ends.mp4", Talk(talk.frames, sound, talk.loudness)), talk)
    ends = SpeechStage()(row | {"t_start": 1.0, "t_end": 5.4}).outputs
    assert abs(ends["silence_start"] - 1.0) < 0.1 and abs(ends["silence_end"] - 0.4) < 0.1


def test_a_file_that_lost_its_sound_is_refused(tmp_path: Path) -> None:
    talk = draw_talk(2, 3.0)
    row = clip_row(write_talk(tmp_path / "mute.mp4", Talk(talk.frames, None, talk.loudness)), talk)  # type: ignore
    assert SpeechStage()(row).reason == "no_audio"
