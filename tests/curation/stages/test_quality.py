"""The clip's score is the mean of Q-Align's over one frame per second, asked of the whole picture."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Weights
from common.ledger.store import Ledger
from common.media.index import index_video
from common.media.video import read_frames
from curation.config import QualityConfig
from curation.stages.cut import cut_row
from curation.stages.quality import QualityStage
from miniature.train.qalign import CONFIG, new_model, write_folder, write_tokenizer
from perception.quality.qalign import QAlign, load_qalign
from tests.curation.conftest import clip_row, draw_talk, write_talk


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Q-Align folder with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("one-align")
    write_tokenizer(folder / "tokenizer.model", CONFIG["vocab_size"])
    write_folder(folder, new_model())
    return folder


@pytest.fixture
def row(tmp_path: Path) -> dict:
    talk = draw_talk(4, 3.6)
    row = clip_row(write_talk(tmp_path / "source.mp4", talk), talk)
    cut_row(tmp_path / "clips", row)
    return row


def scored(config: QualityConfig, folder: Path, scorer: QAlign, row: dict) -> dict:
    stage = QualityStage(config, Weights("quality_scorer", None, ""), folder)
    stage.hold(scorer=scorer)
    return stage(row).outputs


def test_one_frame_per_second_is_averaged(judge: Path, row: dict, tmp_path: Path) -> None:
    scorer = load_qalign(judge)
    outputs = scored(QualityConfig(), tmp_path / "clips", scorer, row)
    frames = list(read_frames(tmp_path / "clips" / "clip.mp4", [0, 25, 50]))
    assert outputs["iqa_1to5"] == pytest.approx(np.mean(scorer.score(frames, "quality")), abs=1e-4)
    assert outputs["ase_1to5"] == pytest.approx(np.mean(scorer.score(frames, "aesthetics")), abs=1e-4)
    assert 1 <= outputs["iqa_1to5"] <= 5


def test_a_clip_below_a_second_still_has_a_score(judge: Path, row: dict, tmp_path: Path) -> None:
    outputs = scored(QualityConfig(), tmp_path / "clips", load_qalign(judge), row | {"duration": 0.5})
    assert 1 <= outputs["iqa_1to5"] <= 5


def test_the_stage_loads_its_own_model_and_names_it(judge: Path, row: dict, tmp_path: Path) -> None:
    stage = QualityStage(QualityConfig(), Weights("quality_scorer", judge, "abc"), tmp_path / "clips")
    (outcome,) = run_stage(stage, [row], Ledger(tmp_path / "ledger"), ExecutorConfig(workers=1))
    assert outcome.state == "kept" and outcome.outputs["iqa_variant"] == "scorer, mean of frames at 1 per second"
    assert (
        stage.fingerprint
        != QualityStage(QualityConfig(), Weights("quality_scorer", judge, "def"), tmp_path / "clips").fingerprint
    )


def test_key_frames_and_another_prompt_are_the_recipe_s_choice(judge: Path, row: dict, tmp_path: Path) -> None:
    """A clip of 90 frames has its key frames at 0 and 50; three looks, at 0, 25 and 50, need no others."""
    scorer, file = load_qalign(judge), tmp_path / "clips" / "clip.mp4"
    config = QualityConfig(frames="key", variant="automodel")
    outputs = scored(config, tmp_path / "clips", scorer, row)
    assert index_video(file).keys.tolist() == [0, 50]
    expected = np.mean(scorer.score(list(read_frames(file, [0, 50])), "quality", "automodel"))
    assert outputs["iqa_1to5"] == pytest.approx(expected, abs=1e-4)
    assert outputs["iqa_variant"] == "automodel, mean of key frames at 1 per second"
