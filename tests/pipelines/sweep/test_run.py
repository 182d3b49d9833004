"""A sweep end to end on a few drawn clips: one training for rows that only sample otherwise, and nothing done twice."""

import os
import shutil

import pyarrow.parquet as pq
import pytest

from common.executors.config import ExecutorConfig
from common.runs import RunFolder, read_json
from eval.manifest import read_manifest
from pipelines.sweep.pages import write_results
from pipelines.sweep.run import link, run_sweep
from pipelines.sweep.settings import Places, RowConfig, SweepConfig, cell_of
from training.train import train

SET = {
    "models": {"quality_scorer": "", "fvd_features": ""},
    "drawn": {"train": 4, "test": 3, "seconds": 1.2, "half_body_every": 0},
    "latents": {"buckets": [[64, 64]]},
    "ranks": 1,
    "train": {"steps": 1, "data": {"batch": 2, "micro_batches": 1}, "validation": {"every": 0},
              "checkpoint": {"export_every_steps": 0}},
    "generate": {"steps": 1, "audio_guidance": 1.0, "chunk_frames": 49, "longest_side": 64},
    "videos": {"clips": 3, "frames": 28, "batch": 3, "floor": 0, "methods": ["adapter"]},
    "eval": {"scores": {"resamples": 50, "swap_draws": 0}},
}  # fmt: skip
CONFIG = SweepConfig(
    "s", "lips", "ours",
    {
        "ours": RowConfig(),
        "guided": RowConfig(set={"generate": {"audio_guidance": 3.0}}),
        "joined": RowConfig(long=3.2, set={"generate": {"overlap": 9}}),
        "broken": RowConfig(set={"videos": {"frames": 400}}),
        "small_base": RowConfig(
            network={"num_layers": 2}, set={"train": {"model": {"variant": "base", "init": "random"}}}
        ),
    },
    set=SET, seeds=(0,), long_base="joined", long_clips=1,
)  # fmt: skip
ONE = ExecutorConfig(workers=1, retry_failed=0)


@pytest.fixture(scope="module", autouse=True)
def trains_here():
    """One rank trains in this process: to start it would be to import all again, for every training."""
    before = dict(os.environ)  # without the variables that a rank sets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.launch.local.launch", lambda run, config, ranks: train(run, config))
        yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The sweep after its first run, and what failed in it."""
    places = Places(tmp_path_factory.mktemp("sweep"))
    return places, run_sweep(CONFIG, places.out, ONE)


def times(places):
    return {
        path: path.stat().st_mtime_ns for path in places.out.rglob("*") if path.suffix in (".mp4", ".parquet", ".jsonl")
    }


def test_rows_share_the_training_and_the_data(done):
    places, _ = done
    trained = [path for path in places.out.glob("trainings/*/checkpoints/adapter")]
    assert len(trained) == 1 and len(list(places.out.glob("data/*"))) == 1
    ours, guided, joined = (RunFolder(places.row(row, 0)) for row in ("ours", "guided", "joined"))
    assert {run.checkpoints.resolve() for run in (ours, guided, joined)} == {trained[0].parent}
    assert [row["method"] for row in read_manifest(ours)].count("adapter") == 3
    videos = [(run.videos / "adapter" / "drawn_face_1000000.mp4").read_bytes() for run in (ours, guided)]
    assert videos[0] != videos[1]
    (long,) = read_manifest(joined)
    assert (long["clip_id"], long["reference"], long["image"]) == ("long-0", "", "inputs/0/portrait.png")
    scored = {
        r["metric"] for r in pq.read_table(joined.report / "metrics.parquet").to_pylist() if r["value"] is not None
    }
    assert {"seam_z", "colour_drift", "sync_c"} <= scored


def test_a_base_is_trained_in_the_size_that_its_row_asks_for(done):
    places, _ = done
    (base,) = places.out.glob("trainings/*/checkpoints/base")
    assert read_json(base / "config.json")["num_layers"] == 2
    assert base.parent.parent == places.training(cell_of(CONFIG, "small_base", 0, places).training)
    assert not (places.out / "rows" / "small_base").exists()


def test_a_row_that_cannot_be_made_fails_alone_and_is_reported(done, tmp_path):
    places, failed = done
    assert [outcome.unit for outcome in failed] == ["broken/seed-0"] and "401 frames" in failed[0].message
    page = write_results(CONFIG, places, tmp_path, "x").read_text("utf-8")
    assert "**Not finished:** broken (0 of 1 seeds)." in page
    assert "| ours |" in page and "| joined |" in page


def test_run_again_it_makes_only_what_is_gone(done):
    places, _ = done
    row = places.row("guided", 0)
    before = (row / "report" / "metrics.parquet").read_bytes()
    unchanged = times(places)
    run_sweep(CONFIG, places.out, ONE)
    ledger = {path for path in unchanged if "ledger" in path.parts}
    assert {p: t for p, t in times(places).items() if p in unchanged.keys() - ledger} == {
        path: time for path, time in unchanged.items() if path not in ledger
    }
    shutil.rmtree(row)
    run_sweep(CONFIG, places.out, ONE)
    assert (row / "report" / "metrics.parquet").read_bytes() == before
    training = places.training(cell_of(CONFIG, "guided", 0, places).training) / "logs" / "train.jsonl"
    assert training.stat().st_mtime_ns == unchanged[training]


def test_a_link_follows_its_target_and_moves_with_the_folder(tmp_path):
    for name in ("one", "two"):
        (tmp_path / "sweep" / name).mkdir(parents=True)
    at = tmp_path / "sweep" / "rows" / "here"
    link(at, tmp_path / "sweep" / "one")
    link(at, tmp_path / "sweep" / "two")
    (tmp_path / "sweep").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "rows" / "here").resolve() == tmp_path / "moved" / "two"
