from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import omniavatar.pipeline
from common.errors import ExistingFileError, InputError
from common.media.audio import read_audio
from common.media.index import probe
from common.media.marks import read_marks
from common.runs import read_json
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from omniavatar.pipeline import OmniAvatarPipeline

SETTINGS = {"steps": 2, "shift": 1.5, "text_guidance": 1.0, "audio_guidance": 2.5, "chunk_frames": 17, "overlap": 5,
    "blend": 0,
}  # fmt: skip
CLIP = draw_clip(HELD_OUT_SEED + 5, 0.8)
SHORT = CLIP.audio[:5120]
PICTURE = CLIP.frames[0]


@pytest.fixture(scope="module")
def pipeline() -> OmniAvatarPipeline:
    return OmniAvatarPipeline.from_pretrained(
        model_paths(), device="cpu", dtype=torch.float32, longest_side=64, **SETTINGS
    )


def test_a_call_makes_a_video_that_is_saved_with_its_audio(pipeline: OmniAvatarPipeline, tmp_path: Path) -> None:
    output = pipeline(Image.fromarray(PICTURE), CLIP.audio, CLIP.caption, num_inference_steps=3, seed=5)
    assert output.frames.shape == (20, 64, 64, 3) and output.frames.dtype == np.uint8
    # The person, not noise: every frame is near the image.
    assert np.abs(output.frames.astype(int) - PICTURE).mean() < 25
    output.save(tmp_path / "x.mp4")
    facts = probe(tmp_path / "x.mp4")
    assert (facts.duration, facts.width, facts.has_audio) == (pytest.approx(0.8), 64, True)
    assert np.corrcoef(read_audio(tmp_path / "x.mp4")[1000:12_000], CLIP.audio[1000:12_000])[0, 1] > 0.9
    facts = read_json(tmp_path / "x.json")
    assert (facts["settings"]["steps"], facts["settings"]["seed"], facts["chunk_starts"]) == (3, 5, [0, 16])
    assert '"seed":5,"software":"omniavatar-stack","steps":3' in read_marks(tmp_path / "x.mp4")["generator"]
    (tmp_path / "mine.json").write_text("mine")
    with pytest.raises(ExistingFileError, match=r"mine\.json"):
        output.save(tmp_path / "mine.mp4")
    assert not (tmp_path / "mine.mp4").exists()


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Path(omniavatar.pipeline.__file__).with_name("README.md").read_text("utf-8")
    example = readme.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert probe("avatar.mp4").duration == pytest.approx(1.0) and Path("avatar.json").exists()


def test_images_and_audio_come_as_files_arrays_or_pillow(pipeline: OmniAvatarPipeline, tmp_path: Path) -> None:
    import scipy.io.wavfile

    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    scipy.io.wavfile.write(tmp_path / "a.wav", 16_000, SHORT)
    by_name = {"num_inference_steps": 1}
    first = pipeline(PICTURE, SHORT, "a man", **by_name).frames
    assert np.array_equal(pipeline(str(tmp_path / "a.png"), str(tmp_path / "a.wav"), "a man", **by_name).frames, first)
    assert np.array_equal(pipeline(tmp_path / "a.png", SHORT.astype(float), "a man", **by_name).frames, first)


def test_arguments_reach_the_sampler(pipeline: OmniAvatarPipeline) -> None:
    generator = torch.Generator().manual_seed(11)
    output = pipeline(
        PICTURE,
        SHORT,
        "a man",
        negative_prompt="a hat",
        guidance_scale=2.0,
        audio_guidance_scale=3.0,
        generator=generator,
        preset="official",
        overlap=5,
        num_inference_steps=1,
        guidance_to=0.5,
    )
    config = output.config
    assert (config.negative_prompt, config.text_guidance, config.audio_guidance) == ("a hat", 2.0, 3.0)
    assert (config.seed, config.steps, config.guidance_to, config.lead_in) == (11, 1, 0.5, 0.3)
    assert len(output.frames) == 1 + 16 and not output.wave[:5440].any() and len(output.wave) == 5440 + len(SHORT)


def test_without_an_image_one_is_drawn_and_without_audio_it_is_silent(pipeline: OmniAvatarPipeline) -> None:
    output = pipeline(prompt=CLIP.caption, seconds=0.4, num_inference_steps=2, portrait_frames=5)
    assert len(output.frames) == 10 and len(output.wave) == 6400 and not output.wave.any()
    with pytest.raises(InputError, match="Neither an image nor a prompt"):
        pipeline(seconds=0.4)
    with pytest.raises(InputError, match="seconds is 0"):
        pipeline(PICTURE)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="transformer, vae, .*adapter"):
        OmniAvatarPipeline.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"adapter \(not named\)"):
        OmniAvatarPipeline.from_pretrained({k: v for k, v in model_paths().items() if k != "adapter"})
    with pytest.raises(ValueError, match="float16"):
        OmniAvatarPipeline.from_pretrained(model_paths(), dtype=torch.float16)


def test_a_folder_with_a_subfolder_per_role_is_enough(tmp_path: Path) -> None:
    paths = model_paths()
    for role in ("transformer", "vae", "text_encoder", "tokenizer", "audio_encoder", "adapter"):
        (tmp_path / role).symlink_to(paths[role])
    assert OmniAvatarPipeline.from_pretrained(tmp_path).models.transformer.has_audio
