"""Stages of the second system: killed at any moment and run again they end with the same bytes."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audioavatar.config import (
    DistilConfig,
    EmbeddingConfig,
    FitConfig,
    GeneratorConfig,
    JointConfig,
    RefinementConfig,
    ReliefConfig,
    TeacherConfig,
)
from audioavatar.driven import training
from audioavatar.driven.model import load_motion_model
from common.media.images import read_image_file
from common.progress import MetricLog
from common.runs import RunFolder, hash_path, sha256_file
from miniature.weights import model_paths
from miniature.world.clips import draw_clip
from training.audioavatar import networks, stages
from training.audioavatar.config import SCORE_ROLES, AvatarTrainConfig, PeopleConfig, ScoreConfig, VoicesConfig
from training.audioavatar.score import score
from training.audioavatar.teach import read_clip

MODELS = {role: model_paths()[role] for role in SCORE_ROLES}
TINY = AvatarTrainConfig(
    people=PeopleConfig(train=2),
    voices=VoicesConfig(each=1, seconds=0.36),
    teachers={"omniavatar": TeacherConfig(steps=1, chunk_frames=17, audio_guidance=1.0)},
    relief=ReliefConfig(steps=0),
    fit=FitConfig(field_steps=1, particle_stages=((1, 1.0, 6.0, 0.25, 0.04),)),
    embedding=EmbeddingConfig(embedding=2, width=8, audio_width=8, steps=3, particles=16),
    generator=GeneratorConfig(width=8, layers=1, heads=1, window=8, overlap=2, steps=3, sampling_steps=1),
    refinement=RefinementConfig(width=8, layers=1, heads=1, window=8, steps=3, folds=2),
    joint=JointConfig(steps=3, window=4, distil=DistilConfig(rank=2, warm_up=1, critic_steps=1)),
    score=ScoreConfig(people=1, voices=2),
)


def train(root: Path) -> None:
    torch.set_num_threads(1)
    run = RunFolder(root)
    stages.teach(TINY, run, MODELS)
    stages.fit(TINY, run)
    for stage in (networks.embed, networks.motion, networks.refine, networks.joint):
        stage(TINY, run, MODELS)


def products(root: Path) -> dict[str, str]:
    """Hash of every avatar, clip, fit and model."""
    return {str(path.relative_to(root)): sha256_file(path) for path in sorted(root.rglob("[!.]*.safetensors"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing interrupted."""
    root = tmp_path_factory.mktemp("avatar")
    train(root)
    return root


def kill_when(root: Path, is_time: str) -> None:
    """Train in a process of its own, killed as soon as a file of the pattern is there."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(root,))
    process.start()
    while process.is_alive() and not any(root.glob(is_time)):
        time.sleep(0.001)
    assert process.pid and process.is_alive(), "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_a_training_killed_between_two_fits_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    kill_when(tmp_path, "fits/*/*")
    assert not (tmp_path / "motion.safetensors").exists()
    train(tmp_path)
    assert products(tmp_path) == products(whole)


@pytest.mark.soak
@pytest.mark.parametrize(
    "moment",
    ["avatars/*/avatar*", "avatars/*/person.json", "teacher/*/.*", "teacher/*/*", "fits/*/.*", ".embedding.checkpoint",
     "embedding.*", ".generator.checkpoint", "generator.*", ".refiner.checkpoint", ".joint.checkpoint", "joint.*"],
)  # fmt: skip
def test_a_training_killed_in_any_stage_ends_with_the_same_bytes(
    moment: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    kill_when(tmp_path, moment)
    train(tmp_path)
    assert products(tmp_path) == products(whole)


def test_clips_are_kept_and_made_again_only_when_something_changes(whole: Path) -> None:
    first, second = (whole / "teacher" / unit.file for unit in stages.training_units(TINY))
    clip = read_clip(first)
    assert clip.frames.shape == (9, 64, 64, 3) and np.array_equal(clip.wave.numpy(), draw_clip(101, 0.36).audio)
    content, stamps = first.read_bytes(), [path.stat().st_mtime_ns for path in (first, second)]
    stages.teach(TINY, RunFolder(whole), MODELS)
    assert [path.stat().st_mtime_ns for path in (first, second)] == stamps
    first.write_bytes(second.read_bytes())  # made of something else
    stages.teach(TINY, RunFolder(whole), MODELS)
    assert first.read_bytes() == content and second.stat().st_mtime_ns == stamps[1]


def test_every_unit_leaves_a_line_in_the_log_and_one_model_drives_everybody(whole: Path) -> None:
    rows = MetricLog(whole / "logs" / stages.LOG).rows()
    units = [row for row in rows if "losses" not in row["stage"]]
    each = ["avatars", "avatars", "teach", "teach", "fit", "fit", "embed", "motion", "refine", "joint"]
    assert list(dict.fromkeys(row["stage"] for row in units)) == list(dict.fromkeys(each))
    assert all(row["cpu_seconds"] >= 0 for row in units) and units[6]["clips"] == 2
    losses = {row["stage"]: row for row in rows if "losses" in row["stage"]}
    assert set(losses) == {f"{stage} losses" for stage in each[6:]} and losses["joint losses"]["vsd"] > 0
    model = load_motion_model(whole / "motion.safetensors")
    assert model.features == "wav2vec2" and len(model.space) > 0 and model.refiner is not None


def test_other_settings_of_a_stage_make_its_units_again(whole: Path) -> None:
    run, before = RunFolder(whole), hash_path(whole / "fits")
    stages.fit(TINY, run)
    assert hash_path(whole / "fits") == before
    stages.fit(replace(TINY, fit=replace(TINY.fit, field_steps=2)), run)
    assert hash_path(whole / "fits") != before
    stages.fit(TINY, run)
    assert hash_path(whole / "fits") == before


def test_scores_of_fits_of_known_and_of_held_out_people(whole: Path) -> None:
    means = score(TINY, RunFolder(whole), MODELS)
    assert [means[f"{kind}.clips"] for kind in ("fit", "own", "held_out")] == [2, 4, 2]
    assert set(means) >= {"own.share", "own.swapped_share", "held_out.lip_gap", "fit.arap", "held_out.delay_found"}
    assert means["own.retrieval"] >= 0 and "held_out.similarity_offset_0" in means
    losses, strips = (whole / "report" / "avatar.png").read_bytes(), read_image_file(whole / "report" / "avatar.png")
    assert losses[:4] == b"\x89PNG" and strips.std(axis=(0, 1)).min() > 10  # three talks in colour, not a blank page
    trained = {path.name for path in (whole / "teacher").iterdir()}
    scored = {path.name for path in (whole / "heldout").iterdir()}
    assert len(scored - trained) == 1
    voices = [{path.name for path in (whole / folder).rglob("*.safetensors")} for folder in ("teacher", "heldout")]
    assert not voices[0] & voices[1]
