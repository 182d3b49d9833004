from pathlib import Path

from common.runs import RunFolder
from omniavatar.checkpoints import AdapterConfig
from training.checkpoint import adapter_config, adopt_origin
from training.model import ModelConfig


def test_a_run_folder_changes_between_trainings_without_losing_either(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = {"optimizer.lr": 1e-3, "optimizer.betas": (0.9, 0.98), "model.adapter": None}
    second = first | {"optimizer.lr": 1e-4}
    latest, log = run.checkpoints / "state" / "latest", run.logs / "train.jsonl"
    adopt_origin(run, first)
    latest.write_text("first")
    log.write_text("first")
    adopt_origin(run, first)
    assert latest.read_text() == log.read_text() == "first"
    adopt_origin(run, second)
    assert not latest.exists() and not log.exists()
    latest.write_text("second")
    adopt_origin(run, first)
    assert latest.read_text() == log.read_text() == "first"
    adopt_origin(run, second)
    assert latest.read_text() == "second" and not log.exists()


def test_the_adapter_s_config_says_what_was_trained() -> None:
    config = ModelConfig(variant="frozen_dit", lora_rank=8, lora_alpha=4.0)
    assert adapter_config(config) == AdapterConfig("frozen_dit", 8, 4.0)
