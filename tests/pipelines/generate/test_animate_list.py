import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
from PIL import Image

from common.executors.config import ExecutorConfig
from common.media.index import probe
from common.runs import read_json
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from omniavatar.config import Request
from omniavatar.video import inputs
from omniavatar.video.isolated import DecoderStoppedError, decode
from pipelines.generate.animate_list import RESULTS, AnimateStage, _unit, animate_list
from pipelines.generate.sample_list import Sample, read_samples
from pipelines.recipe import read_recipe

RECIPE = read_recipe(
    "demo", ("generate.steps=1", "generate.portrait_frames=5", "generate.chunk_frames=17", "generate.overlap=5")
)


def weights():
    return RECIPE.model_paths(("transformer", "vae", "text_encoder", "tokenizer", "audio_encoder", "adapter"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("list")
    clip = draw_clip(HELD_OUT_SEED + 9, 0.6)
    Image.fromarray(clip.frames[0]).save(folder / "face.png")
    scipy.io.wavfile.write(folder / "voice.wav", 16_000, clip.audio)
    (folder / "broken.png").write_text("no picture")
    lines = ("a man@@face.png@@voice.wav", "a man@@broken.png@@voice.wav", "a woman", "a@@b@@c@@d", "a@@no.png@@v.wav")
    (folder / "list.txt").write_text("\n".join(lines))
    return folder


def run(folder: Path, samples: list[Sample]):
    return animate_list(samples, RECIPE.generate, weights(), folder / "out", RECIPE.executor, "default")


def test_good_lines_are_made_and_bad_ones_told(folder):
    samples = read_samples(folder / "list.txt", seconds=0.4)
    outcomes = run(folder, samples)
    assert [end.state for end in outcomes] == ["kept", "rejected", "kept", "rejected", "rejected"]
    rows = list(csv.DictReader((folder / "out" / RESULTS).open()))
    assert [row["name"] for row in rows] == [sample.name for sample in samples]
    assert rows[0]["video"] == "000_face.mp4" and not rows[1]["video"]
    for number, words in ((1, "not an image"), (3, "4 fields"), (4, "no image at")):
        assert words in rows[number]["message"]
    assert probe(folder / "out" / "000_face.mp4").duration == pytest.approx(0.6)
    facts = read_json(folder / "out" / "002_a_woman.json")
    assert (facts["frames"], facts["preset"]) == (10, "default")
    assert np.asarray(Image.open(folder / "out" / "002_a_woman.png")).shape == (64, 64, 3)  # the portrait it drew


def test_run_again_only_what_is_mended_or_lost_is_done(folder):
    samples = read_samples(folder / "list.txt", seconds=0.4)[:3]
    run(folder, samples)
    drawn, first = (folder / "out" / f"{samples[number].name}.mp4" for number in (2, 0))
    before, content = drawn.stat().st_mtime_ns, first.read_bytes()
    first.unlink()
    Image.new("RGB", (64, 64)).save(folder / "broken.png")
    assert [end.state for end in run(folder, samples)] == ["kept"] * 3
    assert drawn.stat().st_mtime_ns == before and first.read_bytes() == content
    assert (folder / "out" / "001_broken.mp4").exists()
    again = first.stat().st_mtime_ns
    run(folder, samples)
    assert first.stat().st_mtime_ns == again


def test_a_decoder_that_crashes_ends_its_sample_alone(folder, tmp_path, monkeypatch):
    def crashing(function: str, path: Path) -> list[object]:
        return decode("tests.omniavatar.video.test_isolated:crash", path) if str(path).startswith("SIG") else [0]

    monkeypatch.setattr(inputs, "decode", crashing)
    monkeypatch.setattr(inputs, "_check_file", lambda kind, path: None)
    stage = AnimateStage(RECIPE.generate, "", False, (), tmp_path)
    for name, words in (("SIGSEGV", "crashed (SIGSEGV)"), ("SIGABRT", "crashed (SIGABRT)")):
        unit = _unit(Sample(name, Request(Path(name), None, "a man", 1.0)))
        end = stage(unit)
        assert (end.state, end.reason) == ("rejected", "bad_input") and words in end.message
    with pytest.raises(DecoderStoppedError, match="killed"):  # which the executor records as failed, to be retried
        stage(_unit(Sample("c", Request(Path("SIGKILL"), None, "a man", 1.0))))


def test_weights_that_do_not_load_fail_their_sample_alone(folder, tmp_path):
    samples = [Sample("bad", error="no use"), replace(read_samples(folder / "list.txt")[0], name="good")]
    wrong = weights() | {"vae": folder / "face.png"}
    once = ExecutorConfig(retry_failed=0)
    outcomes = animate_list(samples, RECIPE.generate, wrong, tmp_path, once)
    assert [end.state for end in outcomes] == ["rejected", "failed"]
