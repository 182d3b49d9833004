import hashlib
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image, ImageCms, PngImagePlugin

from common.errors import InputError
from common.media.open import MediaError
from common.media.write import write_video
from omniavatar.config import GenerateConfig, Request
from omniavatar.video.inputs import (
    _image_and_hash,
    read_audio_input,
    read_image,
    read_request,
    silent_audio,
    with_lead_in,
)

RED = (200, 20, 30)


def two_colours(width: int = 48, height: int = 64) -> Image.Image:
    """Red above, blue below: what is up can be told."""
    image = Image.new("RGB", (width, height), RED)
    image.paste((20, 30, 200), (0, height // 2, width, height))
    return image


def near(found: np.ndarray, expected: tuple[int, int, int], by: int = 3) -> bool:
    return bool(np.abs(found.reshape(-1, 3).astype(int) - expected).max() <= by)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = two_colours()
    upright.paste((0, 255, 0), (0, 0, 9, 9))  # left is not right
    stored = upright.transpose(turns[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(upright))


def test_transparent_parts_lie_on_white(tmp_path: Path) -> None:
    layer = two_colours().convert("RGBA")
    layer.putalpha(Image.new("L", layer.size, 0))
    layer.save(tmp_path / "clear.png")
    assert near(read_image(tmp_path / "clear.png"), (255, 255, 255), 0)
    layer.putalpha(Image.new("L", layer.size, 128))
    layer.save(tmp_path / "half.webp", lossless=True)
    assert near(read_image(tmp_path / "half.webp")[:16], (227, 137, 142))
    palette = two_colours().quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    found = read_image(tmp_path / "palette.png")
    assert near(found[:16], (255, 255, 255)) and near(found[-16:], (20, 30, 200))


@pytest.mark.parametrize("mode", ["L", "LA", "1", "CMYK", "YCbCr", "P"])
def test_every_image_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    kind = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    image = two_colours().convert(mode)
    image.save(tmp_path / f"a.{kind}")
    found = read_image(tmp_path / f"a.{kind}")
    expected = np.asarray(image.convert("RGB"))
    assert found.shape == (64, 48, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected)[4:28].max() <= 4


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path, kind: str) -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{kind}")
    assert np.abs(read_image(tmp_path / f"a.{kind}")[..., 1].astype(float) - values / 257).max() <= 1


def test_a_colour_profile_is_applied(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    two_colours().save(tmp_path / "same.png", icc_profile=profile)
    assert near(read_image(tmp_path / "same.png")[:16], RED)
    two_colours().save(tmp_path / "broken.png", icc_profile=b"no profile")
    assert near(read_image(tmp_path / "broken.png")[:16], RED)


def test_the_first_frame_of_what_moves_is_taken(tmp_path: Path) -> None:
    frames = [two_colours(), Image.new("RGB", (48, 64), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    write_video(tmp_path / "a.mp4", [np.asarray(frame) for frame in frames], None)
    for name in ("a.gif", "a.mp4"):
        assert near(read_image(tmp_path / name)[4:16, 4:-4], RED, 12), name


def test_a_huge_image_is_averaged_down(tmp_path: Path) -> None:
    two_colours(5000, 9000).save(tmp_path / "huge.jpg")
    found = read_image(tmp_path / "huge.jpg")
    assert found.shape == (3000, 1667, 3) and near(found[:1000:50, 100:-100:50], RED, 4)


def damaged(folder: Path) -> dict[str, Path]:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(buffer, "PNG")
    contents = {"cut.png": buffer.getvalue()[:3000], "text.png": b"no picture", "empty.jpg": b""}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    Image.new("RGB", (31, 200)).save(folder / "tiny.png")
    Image.new("RGB", (900, 100)).save(folder / "strip.png")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut", "damaged"),
        ("text", "not an image"),
        ("empty", "not an image"),
        ("tiny", "31x200 px; expected at least 32"),
        ("strip", "900x100 px, a strip"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(tmp_path: Path, name: str, words: str) -> None:
    path = damaged(tmp_path)[name]
    with pytest.raises(InputError, match=words) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def write_audio(path: Path, codec: str, rate: int, layout: str = "stereo") -> None:
    tone = np.sin(np.arange(rate) * 2 * np.pi * 440 / rate) * 0.5
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        channels = len(stream.layout.channels)
        whole = av.AudioFrame.from_ndarray(np.tile(tone, (channels, 1)).astype(np.float32), "fltp", layout)
        whole.sample_rate, whole.pts, whole.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.frame_size)
        for frame in [*resampler.resample(whole), *resampler.resample(None)]:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "codec", "rate", "played"),
    [
        ("a.wav", "pcm_s16le", 8_000, 48_000),
        ("a.mp3", "libmp3lame", 44_100, 44_100),
        ("a.flac", "flac", 96_000, 48_000),
        ("a.m4a", "aac", 48_000, 48_000),
        ("a.mp4", "aac", 16_000, 16_000),
        ("a.ogg", "libopus", 48_000, 48_000),
    ],
)
def test_every_audio_format_is_read(tmp_path: Path, name: str, codec: str, rate: int, played: int) -> None:
    write_audio(tmp_path / name, codec, rate)
    audio = read_audio_input(tmp_path / name)
    assert audio.rate == played and abs(len(audio.wave) / 16_000 - 1) < 0.08
    assert abs(len(audio.track) / played - len(audio.wave) / 16_000) < 0.01
    spectrum = np.abs(np.fft.rfft(audio.wave[2000:14_000]))
    assert abs(spectrum.argmax() * 16_000 / 12_000 - 440) < 2


def talk(path: Path, pictures: int, fps: float, seconds: float, codec: str = "aac", late: float = 0.0) -> Path:
    """A video of `pictures` images with a tone of `seconds` that begins `late` seconds after the first."""
    with av.open(str(path), "w") as container:
        shown = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        shown.width, shown.height, shown.pix_fmt = 48, 64, "yuv420p"
        stream = container.add_stream(codec, rate=16_000, layout="mono")
        for _ in range(pictures):
            container.mux(shown.encode(av.VideoFrame.from_ndarray(np.asarray(two_colours()), "rgb24")))
        container.mux(shown.encode(None))
        tone = np.sin(np.arange(round(seconds * 16_000)) * 0.3).astype(np.float32)[None] * 0.5
        whole = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
        whole.sample_rate, whole.pts, whole.time_base = 16_000, round(late * 16_000), Fraction(1, 16_000)
        resampler = av.AudioResampler(stream.format, "mono", 16_000, frame_size=stream.frame_size or 1024)
        for frame in [*resampler.resample(whole), *resampler.resample(None)]:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "pictures", "fps", "seconds", "late", "expected"),
    [
        ("still.mp4", 1, 25, 2, 0, 2.0),  # one picture and a voice
        ("short.mp4", 10, 25, 2, 0, 2.0),  # the picture ends first
        ("slides.mp4", 3, 0.25, 2, 0, 2.0),  # fewer pictures than any camera makes
        ("slides.mkv", 2, 1, 2, 0, 2.0),
        ("long.mp4", 50, 25, 1, 0, 1.0),  # the sound ends first
        ("late.mp4", 50, 25, 1, 0.5, 1.5),  # silence, then sound: what is heard stays where it is seen
        ("exact.mp4", 25, 25, 1, 0, 1.0),  # without the last block's silence
        ("fast.mkv", 60, 60, 1, 0, 1.0),
    ],
)
def test_pictures_do_not_decide_how_long_the_sound_is(
    tmp_path: Path, name: str, pictures: int, fps: float, seconds: float, late: float, expected: float
) -> None:
    audio = read_audio_input(talk(tmp_path / name, pictures, fps, seconds, late=late))
    assert len(audio.wave) / 16_000 == pytest.approx(expected, abs=0.07 if name == "slides.mkv" else 0.001)
    assert np.flatnonzero(np.abs(audio.wave) > 0.2)[0] / 16_000 == pytest.approx(late, abs=0.002)
    assert np.abs(audio.wave[-1600:-800]).max() > 0.2


def test_uncompressed_sound_is_kept_to_the_last_sample(tmp_path: Path) -> None:
    path = talk(tmp_path / "a.mkv", 24, 25, 1.0, "pcm_s16le")
    assert len(read_audio_input(path).wave) == 16_000  # the picture ends 0.04 s earlier


@pytest.mark.parametrize(("pictures", "fps"), [(1, 60), (1, 0.1), (3, 0.25), (2, 120)])
def test_a_portrait_from_a_video_of_any_length_and_rate(tmp_path: Path, pictures: int, fps: float) -> None:
    path = talk(tmp_path / "a.mp4", pictures, fps, 0.5).rename(tmp_path / "a.bin")  # whatever the suffix
    assert near(read_image(path)[4:16, 4:-4], RED, 12)


def test_a_picture_with_a_large_text_is_read(tmp_path: Path) -> None:
    """As tools write it that store their whole graph."""
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", '{"id":1},' * 200_000, zip=True)
    two_colours().save(tmp_path / "a.png", pnginfo=info)
    assert near(read_image(tmp_path / "a.png")[:16], RED)


def test_a_cover_is_no_video_beside_the_sound(tmp_path: Path) -> None:
    two_colours().save(tmp_path / "cover.jpg")
    with av.open(str(tmp_path / "a.mp3"), "w") as container, av.open(str(tmp_path / "cover.jpg")) as cover:
        stream = container.add_stream("libmp3lame", rate=16_000, layout="mono")
        shown = container.add_stream_from_template(cover.streams.video[0])
        shown.disposition = Disposition.attached_pic
        packet = next(cover.demux())
        packet.stream = shown
        tone = av.AudioFrame.from_ndarray(np.sin(np.arange(32_000) * 0.3).astype(np.float32)[None], "fltp", "mono")
        tone.sample_rate, tone.pts, tone.time_base = 16_000, 0, Fraction(1, 16_000)
        resampler = av.AudioResampler(stream.format, "mono", 16_000, frame_size=stream.frame_size)
        container.mux(packet)
        for frame in [*resampler.resample(tone), None]:
            container.mux(stream.encode(frame))
    assert len(read_audio_input(tmp_path / "a.mp3").wave) / 16_000 == pytest.approx(2.0, abs=0.1)


def test_hashes_are_of_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_colours().save(tmp_path / "a.png")
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    inputs = read_request(Request(tmp_path / "a.png", None, "a man", 1.0))
    (tmp_path / "a.png").write_text("replaced while the video was generated")
    assert inputs.sha256 == {"image": digest}

    def replacing(path: str) -> np.ndarray:
        Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
        (tmp_path / "b.png").replace(path)
        return np.asarray(two_colours())

    monkeypatch.setattr("omniavatar.video.inputs.read_image", replacing)
    with pytest.raises(InputError, match=r"a\.png was written to while it was read"):
        _image_and_hash(str(tmp_path / "a.png"))


def test_silence_lasts_whole_frames() -> None:
    assert len(silent_audio(2.0).wave) == 32_000 and not silent_audio(2.0).track.any()
    for seconds in (0.0, -1.0, 1e6, float("nan")):
        with pytest.raises(InputError, match="seconds is"):
            silent_audio(seconds)


def test_a_request_is_read_whole(tmp_path: Path) -> None:
    two_colours().save(tmp_path / "a.png")
    write_audio(tmp_path / "a.wav", "pcm_s16le", 16_000, "mono")
    inputs = read_request(Request(tmp_path / "a.png", tmp_path / "a.wav", "a man"))
    assert inputs.image is not None and inputs.image.shape == (64, 48, 3) and len(inputs.audio.wave) == 16_000
    assert read_request(Request(None, None, "a man", 1.0)).image is None


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        (Request(audio=Path("a.wav")), InputError, "Neither an image nor a prompt"),
        (Request(prompt="a man"), InputError, "--audio, or --seconds"),
        (Request(audio=Path("a.wav"), prompt="a man", seconds=3), InputError, "Both audio and seconds=3"),
        (Request(Path("none.png"), prompt="a", seconds=1), FileNotFoundError, "no image at none.png"),
        (Request(audio=Path("none.wav"), prompt="a"), FileNotFoundError, "none.wav"),
    ],
)
def test_a_request_that_lacks_something_says_what(request_: Request, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        read_request(request_)


def test_a_file_without_audio_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "mute.mp4", [np.asarray(two_colours())] * 3, None)
    (tmp_path / "text.wav").write_text("no sound")
    for name, words in (("mute.mp4", "has no sound"), ("text.wav", "text.wav")):
        with pytest.raises(MediaError, match=words):
            read_audio_input(tmp_path / name)


def test_the_lead_in_is_silence_at_any_rate() -> None:
    led = with_lead_in(np.ones(100, np.float32), GenerateConfig(lead_in=0.3), 44_100)
    assert len(led) == 100 + 13_230 and not led[:13_230].any() and led[13_230:].all()
