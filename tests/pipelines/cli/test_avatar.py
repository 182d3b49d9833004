"""The commands of the second system, in the test's own process."""

from pathlib import Path

import pytest
import scipy.io.wavfile
from PIL import Image

from common.media.index import probe
from miniature.world.clips import draw_clip
from tests.pipelines.command_line import run_here


def test_build_and_say(tmp_path: Path) -> None:
    clip = draw_clip(1_000_001, 0.4)
    Image.fromarray(clip.frames[0]).save(tmp_path / "face.png")
    scipy.io.wavfile.write(tmp_path / "voice.wav", 16000, clip.audio)
    built = run_here("avatar", "build", "--image", tmp_path / "face.png", "--out", tmp_path / "A")
    assert built.returncode == 0 and "particles" in built.stdout, built
    assert (tmp_path / "A" / "canonical.ply").stat().st_size > 50_000
    files = ["--avatar", tmp_path / "A", "--audio", tmp_path / "voice.wav", "--out", tmp_path / "talk.mp4"]
    done = run_here("avatar", "say", *files, "--turntable", 10, "--ply", tmp_path / "ply", "--ply-frames", "--size", 64)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == str(tmp_path / "talk.mp4"), done
    assert probe(tmp_path / "talk.mp4").width == 64
    assert (
        len(list((tmp_path / "ply" / "frames").glob("*.ply"))) == 10 and (tmp_path / "ply/motion.safetensors").exists()
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("build", "--image", "no.png"), "no file at no.png"),
        (("say", "--avatar", "nowhere", "--audio", "VOICE"), "omniavatar avatar build"),
        (("say", "--avatar", "nowhere", "--audio", "VOICE", "--ply-frames"), "belongs to --ply"),
        (("say", "--avatar", "nowhere", "--audio", "VOICE", "--turntable", "-3"), "expected"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    scipy.io.wavfile.write(tmp_path / "voice.wav", 16000, draw_clip(1_000_001, 0.2).audio)
    named = [str(tmp_path / "voice.wav") if argument == "VOICE" else argument for argument in arguments]
    out = ["--out", str(tmp_path / ("A" if arguments[0] == "build" else "talk.mp4"))]
    done = run_here("avatar", *named, *out)
    assert done.returncode in (1, 2) and sentence in done.stderr
