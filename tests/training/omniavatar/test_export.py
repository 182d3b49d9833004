from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import InputError
from common.runs import DiskFullError, RunFolder, write_json
from omniavatar.model.transformer import load_base
from omniavatar.weights.checkpoints import AdapterConfig, load_adapter
from omniavatar.weights.loras import COMFYUI_FILE, read_comfyui_lora, read_diffusers_lora
from omniavatar.weights.tensor_files import CheckpointError
from training.config import CheckpointConfig, ModelConfig, TrainConfig
from training.engine.zero import join_group
from training.omniavatar.export import adapter_config, confirm, export, replaced
from training.train import Trainer, train


@pytest.mark.parametrize("stage", [0, 3])
def test_the_export_holds_what_was_trained(at_stage: Callable[[int], TrainConfig], run: RunFolder, stage: int) -> None:
    join_group(1)
    config = replace(at_stage(stage), steps=2)
    trainer = Trainer(run, config)
    trainer.run()
    trained = dict(trainer.engine.trained_tensors())
    folder = run.checkpoints / "adapter"
    fresh = load_adapter(load_base(config.model.base), folder).state_dict()
    for read in (fresh, dict(read_diffusers_lora(folder / "diffusers"))):
        assert trained.keys() <= read.keys()
        assert all(torch.equal(read[name], value) for name, value in trained.items())
    for_comfyui = dict(read_comfyui_lora(folder / "comfyui" / COMFYUI_FILE))
    assert all(torch.equal(for_comfyui[name], value) for name, value in trained.items() if ".lora_" in name)
    assert sum(value.abs().max() > 0 for name, value in trained.items() if "lora_B" in name) == 40
    export(trainer.engine, run.checkpoints / "half", config.model, "bf16")
    half = dict(read_diffusers_lora(run.checkpoints / "half" / "diffusers"))
    assert all(torch.equal(half[name], value.bfloat16()) for name, value in trained.items())


def test_numbered_copies_of_the_adapter_are_kept(config: TrainConfig, run: RunFolder) -> None:
    train(run, replace(config, checkpoint=CheckpointConfig(export_every_steps=2, keep=1)))
    copies = sorted((run.checkpoints / "adapters").iterdir())
    assert [copy.name for copy in copies] == ["step-00000002", "step-00000004"]
    weights = [torch.load(copy / "pytorch_model.pt", weights_only=True) for copy in copies]
    assert not torch.equal(*(one["audio_cond_projs.0.weight"] for one in weights))
    last = torch.load(run.checkpoints / "adapter" / "pytorch_model.pt", weights_only=True)
    assert all(torch.equal(last[name], value) for name, value in weights[1].items())


def test_what_comes_back_otherwise_is_refused() -> None:
    trained = {name: torch.full((2,), 1 / 3) for name in "abc"}
    rounded = {name: value.bfloat16() for name, value in trained.items()}
    confirm(Path("file"), trained, rounded.items(), torch.bfloat16)
    wrong = {"a": trained["a"] + 1e-7, "b": trained["b"][:1], "d": trained["c"]}
    with pytest.raises(CheckpointError) as caught:
        confirm(Path("file"), trained, wrong.items(), torch.float32)
    kinds = [problem.split(" (")[0].split(" was")[0] for problem in caught.value.problems]
    assert kinds == ["value: a", "value: b", "unexpected: d", "missing: c"]
    with pytest.raises(CheckpointError, match="value: a"):
        confirm(Path("file"), trained, trained.items(), torch.bfloat16)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    for text in ("first", "second"):
        with replaced(folder) as beside:
            (beside / text).write_text(text)
            assert [path.name for path in folder.glob("*")] == (["first"] if text == "second" else [])
    assert [path.name for path in folder.iterdir()] == ["second"]
    with pytest.raises(DiskFullError), replaced(folder) as beside:
        (beside / "third").write_text("third")
        torch.save(torch.zeros(100_000), "/dev/full")
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [folder]
    # Killed between the two renames: the next writer, should it fail too, loses nothing.
    folder.rename(tmp_path / ".adapter.old")
    with pytest.raises(KeyError), replaced(folder):
        raise KeyError
    assert [path.name for path in folder.iterdir()] == ["second"]


def test_the_adapter_s_config_says_what_was_trained() -> None:
    config = ModelConfig(variant="frozen_dit", lora_rank=8, lora_alpha=4.0)
    assert adapter_config(config) == AdapterConfig("frozen_dit", 8, 4.0)
    assert adapter_config(ModelConfig()) == AdapterConfig("lora", 128, 64.0)


def test_settings_that_are_not_the_continued_adapter_s_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"train_architecture": "lora", "lora_rank": 32, "lora_alpha": 16})
    continued = ModelConfig(adapter=tmp_path)
    assert adapter_config(continued) == AdapterConfig("lora", 32, 16.0)
    assert adapter_config(replace(continued, lora_rank=32, lora_alpha=16.0)).rank == 32
    for name, value in (("lora_rank", 8), ("lora_alpha", 8.0), ("audio_entry", "single")):
        with pytest.raises(InputError, match=rf"train.model.{name} is {value}, but the adapter .* models.adapter="):
            adapter_config(replace(continued, **{name: value}))
