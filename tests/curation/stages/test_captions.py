"""Where a caption comes from is part of it."""

from dataclasses import replace
from pathlib import Path

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Weights
from common.ledger.store import Ledger
from common.media.video import read_frames
from curation.config import PROMPT, CaptionConfig
from curation.stages.captions import CaptionsStage, caption_fields
from curation.stages.cut import cut_row
from perception.captions import load_captioner
from tests.curation.conftest import clip_row, draw_talk, write_talk
from tests.random_captioner import write_captioner


def test_the_video_s_own_caption_wins() -> None:
    fields = caption_fields(CaptionConfig("A person."), {"caption": "A woman in red nods."})
    assert fields == {"caption": "A woman in red nods.", "caption_model": "sidecar"}


def test_the_recipe_s_words_fill_in() -> None:
    assert caption_fields(CaptionConfig("A person."), {"caption": None}) == {
        "caption": "A person.", "caption_model": "recipe",
    }  # fmt: skip


def test_without_either_a_captioner_is_waited_for() -> None:
    assert caption_fields(CaptionConfig(""), {"caption": None}) == {"caption": None, "caption_model": None}


def test_a_captioner_leaves_the_video_s_caption_and_replaces_the_recipe_s() -> None:
    brought = caption_fields(CaptionConfig("A person."), {"caption": "A woman in red nods."}, captioner=True)
    assert brought["caption_model"] == "sidecar"
    assert caption_fields(CaptionConfig("A person."), {"caption": None}, captioner=True)["caption"] is None


def test_the_stage_asks_the_captioner_about_frames_of_the_clip(tmp_path: Path) -> None:
    model = write_captioner(tmp_path / "tiny-vlm")
    talk = draw_talk(4, 3.2)
    row = clip_row(write_talk(tmp_path / "source.mp4", talk), talk)
    cut_row(tmp_path / "clips", row)
    config = CaptionConfig(frames=3, max_tokens=6)
    stage = CaptionsStage(config, Weights("captioner", model, "0123456789abcdef"), tmp_path / "clips")
    (outcome,) = run_stage(stage, [row], Ledger(tmp_path / "ledger"), ExecutorConfig(workers=1))
    frames = list(read_frames(tmp_path / "clips" / "clip.mp4", [0, 39, 79]))
    assert outcome.outputs["caption"] != load_captioner(model).describe(frames[:1], PROMPT, 6)
    assert outcome.outputs == {
        "caption": load_captioner(model).describe(frames, PROMPT, 6),
        "caption_model": "tiny-vlm@0123456789ab",
        "caption_prompt": PROMPT,
        "caption_decoding": "greedy, at most 6 tokens, 3 frames",
    }
    other = replace(stage, config=CaptionConfig(frames=3, max_tokens=6, prompt="Who?"))
    same = replace(stage, config=CaptionConfig("Other words.", 3, max_tokens=6), folder=tmp_path)
    assert stage.fingerprint != other.fingerprint and stage.fingerprint == same.fingerprint
