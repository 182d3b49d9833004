"""Ablations at the smallest sizes: every row is scored, what rows share is made once, what there is gets reported."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from audioavatar.config import (
    DistilConfig,
    EmbeddingConfig,
    FitConfig,
    GeneratorConfig,
    JointConfig,
    RefinementConfig,
)
from training.audioavatar.ablations.run import ROWS, run_ablations
from training.audioavatar.ablations.world import AblationConfig
from training.audioavatar.config import AvatarTrainConfig, PeopleConfig, ScoreConfig, VoicesConfig

TINY = AblationConfig(
    train=AvatarTrainConfig(
        people=PeopleConfig(train=2),
        voices=VoicesConfig(each=1, seconds=0.64),
        fit=FitConfig(field_steps=1, particle_stages=()),
        generator=GeneratorConfig(width=16, layers=1, heads=2, window=16, overlap=4, steps=2, sampling_steps=2),
        score=ScoreConfig(people=0, voices=1),
    ),
    embedding=EmbeddingConfig(embedding=4, width=8, audio_width=8, steps=2, clips=1, particles=16),
    refinement=RefinementConfig(width=16, layers=1, heads=2, window=16, steps=1),
    joint=JointConfig(steps=1, distil=DistilConfig(warm_up=1, critic_steps=1, rank=2)),
)


@pytest.mark.soak
def test_every_row_is_scored_and_what_they_share_is_made_once(tmp_path: Path) -> None:
    run_ablations(tmp_path / "out", tmp_path / "results", TINY, 1)
    table = pq.read_table(tmp_path / "results" / "table.parquet").to_pylist()
    assert {entry["row"] for entry in table} == set(ROWS)
    names = {entry["metric"] for entry in table if entry["row"] == "full"}
    assert {"track_error", "sync_c", "lip_gap_r", "arap", "retrieval", "refinement_gain", "pull_vsd"} <= names
    assert (tmp_path / "results" / "plots" / "rows.png").stat().st_size > 1000
    parts = [file.name for file in (tmp_path / "out" / "parts").iterdir()]
    # Of eight rows: embeddings whole, without patches, of one person; generators of these and of the components.
    assert (
        sum(name.startswith("embed") for name in parts) == 3 and sum(name.startswith("motion") for name in parts) == 4
    )
    assert sum(name.startswith("joint") for name in parts) == len(ROWS)
    made = [file for file in (tmp_path / "out").rglob("*") if file.is_file() and "ledger" not in file.parts]
    written = {file: file.stat().st_mtime_ns for file in made}  # the ledger says when a stage was last looked at
    run_ablations(tmp_path / "out", None, TINY, 1)
    assert {file: file.stat().st_mtime_ns for file in made} == written
