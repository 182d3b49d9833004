"""A medium is opened from one local file, by a demuxer that reads nothing else, and the track that players play."""

import os
import re
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from common.media.audio import read_audio
from common.media.index import probe
from common.media.open import MediaError, open_media
from common.media.video import read_frames
from common.media.write import audio_frame

ROOT = Path(__file__).parents[3]
TONES = (0.1, 0.2, 0.4)  # loudness of each track


def wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    """16 bit samples (n,) or (n, channels) as the plainest WAV, whose channels have no names."""
    data = (np.reshape(samples, (len(samples), -1)) * 32767).astype("<i2")
    channels = data.shape[1]
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * 2 * channels, 2 * channels, 16)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", data.nbytes) + data.tobytes()
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)
    return path


FOREIGN = {
    "concat": "ffconcat version 1.0\nfile secret.wav\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>secret.wav</BaseURL></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:09,000\nsecret.wav\n\n" * 9,
    "ffmetadata": ";FFMETADATA1\ntitle=secret.wav\n",
    "picture": "P3 2 2 255 " + "9 " * 12,
    "text": "secret.wav\n" * 99,
}


@pytest.mark.parametrize("suffix", [".m4a", ".mp4", ".txt"])  # ffmpeg also looks at the name
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_stands_for_another_is_not_opened(kind: str, suffix: str, tmp_path: Path) -> None:
    wav(tmp_path / "secret.wav", np.full(16_000, 0.5))
    path = tmp_path / f"list{suffix}"
    path.write_text(FOREIGN[kind])
    with pytest.raises(MediaError) as error:
        read_audio(path)
    assert error.value.kind == "not_a_video" and "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["concat:a.wav|b.wav", "subfile,,start,0,end,9,,:a.wav", "frame%03d.wav", "data:a,b"])
def test_a_name_that_reads_as_an_address_is_a_file_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for other in ("a.wav", "b.wav", "frame001.wav"):
        wav(tmp_path / other, np.full(8000, 0.25))
    wav(tmp_path / name, np.full(16_000, 0.5))
    assert read_audio(name) == pytest.approx(np.full(16_000, 0.5), abs=1e-4)


def test_what_may_never_end_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path, tmp_path / "pipe.wav", Path("/dev/zero")):
        with pytest.raises(MediaError, match="is not a file"), open_media(path):
            pass


def tracks(path: Path, audio: Sequence[Disposition], video: Sequence[Disposition] = ()) -> Path:
    """Silent or loud tracks (`TONES`, then brightness 40, 140, ...), each with its flags."""
    with av.open(str(path), "w") as container:
        covers = [flags == COVER for flags in video]
        videos = [container.add_stream("mjpeg" if cover else "libx264", rate=25) for cover in covers]
        voices = [container.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in audio]
        for stream, flags in zip([*videos, *voices], [*video, *audio], strict=True):
            stream.disposition = flags
        for stream, cover in zip(videos, covers, strict=True):
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p" if cover else "yuv420p"
        for number, stream in enumerate(videos):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 + 100 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 0, Fraction(1, 25)
            container.mux([*stream.encode(frame), *stream.encode(None)])
        for level, stream in zip(TONES, voices, strict=False):
            container.mux(stream.encode(audio_frame(np.full(640, level, np.float32), 16_000, 0)))
    return path


NONE, DEFAULT, COMMENT = Disposition(0), Disposition.default, Disposition.comment
DESCRIBED, COVER = Disposition.visual_impaired, Disposition.attached_pic


@pytest.mark.parametrize(
    ("audio", "heard"),
    [
        ([NONE, DEFAULT], 1),
        ([NONE, NONE, DEFAULT], 2),
        ([DEFAULT, DEFAULT], 0),
        ([COMMENT, NONE], 1),
        ([DESCRIBED, COMMENT, NONE], 2),
        ([COMMENT, DESCRIBED], 0),
        ([COMMENT | DEFAULT, NONE], 0),
    ],
)
def test_the_default_track_is_heard(audio: list[Disposition], heard: int, tmp_path: Path) -> None:
    path = tracks(tmp_path / "talk.mkv", audio)
    assert read_audio(path).mean() == pytest.approx(TONES[heard], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "video", "seen", "track"),
    [
        ("talk.mkv", [NONE, DEFAULT], 1, "video track 2 of 2"),
        ("talk.mkv", [NONE, NONE], 0, ""),
        ("talk.mov", [COVER, DEFAULT], 1, ""),
    ],
)
def test_the_default_track_is_seen_and_covers_are_not(
    name: str, video: list[Disposition], seen: int, track: str, tmp_path: Path
) -> None:
    path = tracks(tmp_path / name, [NONE], video)
    assert read_frames(path, [0]).mean() == pytest.approx(40 + 100 * seen, abs=3)
    assert probe(path).presentation == track


def test_a_cover_alone_is_no_video(tmp_path: Path) -> None:
    path = tracks(tmp_path / "song.mov", [NONE], [COVER])
    assert len(read_audio(path)) == 640
    with pytest.raises(MediaError) as error:
        probe(path)
    assert error.value.kind == "no_video"


@pytest.mark.parametrize(
    ("call", "places"),
    [
        (r"\bav\.open\((?![^\n]*\"w\")", {"packages/common/media/open.py"}),
        (r"\bImage\.open\(", {"packages/common/media/images.py"}),
        (r"decord\.VideoReader\(", {"packages/common/media/decord_reader.py"}),
        (r"cv2\.(imread|VideoCapture)|\bffmpeg\b.*-i |imageio|soundfile|torchaudio", set()),
    ],
)
def test_media_are_opened_in_one_place(call: str, places: set[str]) -> None:
    folders = ("packages", "curation", "latents", "training", "eval", "pipelines", "studio")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in sources if re.search(call, path.read_text("utf-8"))}
    assert found == places
