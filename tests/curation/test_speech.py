"""The speech stage listens to the piece of the source that the clip is."""

from pathlib import Path

from curation.speech import measure_speech
from tests.curation.conftest import Talk, clip_row, draw_talk, write_talk


def test_the_piece_decides_not_the_whole(tmp_path: Path) -> None:
    talk = draw_talk(2, 6.0)
    sound = talk.audio.copy()
    sound[3 * 16_000 :] = 0
    row = clip_row(write_talk(tmp_path / "half.mp4", Talk(talk.frames, sound, talk.loudness)), talk)
    spoken = measure_speech(row | {"t_end": 3.0}).outputs
    silent = measure_speech(row | {"t_start": 3.04}).outputs
    assert spoken["speech_pct"] > 80 and spoken["music_ratio"] < 0.2 and spoken["clipping_pct"] == 0
    assert silent["speech_pct"] == 0
    assert set(spoken) == {"speech_pct", "snr_db", "music_ratio", "clipping_pct"}


def test_a_file_that_lost_its_sound_is_refused(tmp_path: Path) -> None:
    talk = draw_talk(2, 3.0)
    row = clip_row(write_talk(tmp_path / "mute.mp4", Talk(talk.frames, None, talk.loudness)), talk)  # type: ignore
    assert measure_speech(row).reason == "no_audio"
