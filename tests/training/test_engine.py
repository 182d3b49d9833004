from collections.abc import Callable
from dataclasses import replace

import deepspeed
import pytest
import torch
from torch import Tensor

from omniavatar.audio_entry import AudioEntry
from omniavatar.recompute import Recompute
from training.data import ClipWindows
from training.engine import Engine, EngineConfig, join_group
from training.model import build_model
from training.objective import Batch, draw, make_batch, sample_losses
from training.optimizer import build_optimizer
from training.train import TrainConfig

STEPS, LR = 3, 1e-2


@pytest.fixture
def group() -> None:
    join_group(threads=1)


def batches_of(config: TrainConfig) -> list[list[Batch]]:
    """The micro-batches of the first steps, as the trainer makes them."""
    windows = ClipWindows(config.shards, config.data, config.seed)
    constants = windows.constants
    made = []
    for index in range(STEPS * config.data.micro_batches):
        micro = windows.micro_batch(index)
        pairs = zip(micro.samples, micro.positions, strict=True)
        draws = [draw(config.objective, config.seed, position, sample) for sample, position in pairs]
        made.append(make_batch(micro, draws, constants.empty_text, constants.text_length))
    return [made[i : i + config.data.micro_batches] for i in range(0, len(made), config.data.micro_batches)]


def build(config: TrainConfig) -> tuple[torch.nn.Module, torch.optim.AdamW]:
    model = build_model(config.model, 24, config.engine.frozen_dtype, config.seed)
    return model, build_optimizer(model, config.optimizer)


def plain_torch(config: TrainConfig) -> tuple[list[float], dict[str, Tensor]]:
    """The reference: a loop without any engine. Losses of the steps, trained weights."""
    model, optimizer = build(config)
    trained = [p for p in model.parameters() if p.requires_grad]
    losses = []
    for step in batches_of(config):
        total = torch.stack([sample_losses(model, batch, config.objective).mean() for batch in step]).mean()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.engine.clip)
        for group in optimizer.param_groups:
            group["lr"] = LR
        optimizer.step()
        losses.append(total.item())
    return losses, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def with_engine(config: TrainConfig) -> tuple[list[float], dict[str, Tensor]]:
    engine = Engine(*build(config), config.data.micro_batches, config.engine)
    losses = []
    for step in batches_of(config):
        values = []
        for batch in step:
            loss = sample_losses(engine, batch, config.objective).mean()
            engine.backward(loss)
            engine.step(LR)
            values.append(loss.item())
        losses.append(sum(values) / len(values))
    return losses, dict(engine.trained_tensors())


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_stage_trains_as_plain_torch_does(
    at_stage: Callable[[int], TrainConfig], group: None, stage: int
) -> None:
    losses, weights = with_engine(at_stage(stage))
    expected, expected_weights = plain_torch(at_stage(stage))
    assert losses == pytest.approx(expected, rel=1e-6)
    assert weights.keys() == expected_weights.keys()
    moved = max((weights[name] - value).abs().max().item() for name, value in expected_weights.items())
    assert moved < 1e-5
    assert expected_weights["audio_cond_projs.0.weight"].abs().max() > 1e-3


@pytest.mark.parametrize(("entry", "mode"), [("multi", "full"), ("cross_attention", "selective")])
def test_recomputed_audio_layers_train_sharded_as_whole(
    at_stage: Callable[[int], TrainConfig], group: None, entry: AudioEntry, mode: Recompute
) -> None:
    config = at_stage(3)
    kept = replace(config, model=replace(config.model, audio_entry=entry))
    losses, weights = with_engine(replace(kept, model=replace(kept.model, gradient_checkpointing=mode)))
    expected, expected_weights = plain_torch(kept)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert weights.keys() == expected_weights.keys()
    differences = torch.cat([(weights[name] - value).abs().flatten() for name, value in expected_weights.items()])
    # AdamW divides a gradient by its own size: a few whose gradient is rounding alone move by rounding.
    assert (differences > 1e-5).float().mean() < 1e-4
    assert differences.max() < LR / 10


def test_lora_starts_at_zero_under_sharding(at_stage: Callable[[int], TrainConfig], group: None) -> None:
    config = at_stage(3)
    engine = Engine(*build(config), 1, config.engine)
    starts = {name: value for name, value in engine.trained_tensors() if "lora_B" in name}
    assert len(starts) == 40
    assert all(not value.any() and value.numel() for value in starts.values())


def test_precision_survives_the_engine(config: TrainConfig, group: None) -> None:
    mixed = replace(config, engine=EngineConfig(stage=3, autocast="bf16", frozen_dtype="bf16"))
    engine = Engine(*build(mixed), 1, mixed.engine)
    types = {name: p.dtype for name, p in engine.module.named_parameters()}
    assert types["dit.blocks.0.attn1.to_q.base_layer.weight"] == torch.bfloat16
    assert types["dit.condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert {types[name] for name, p in engine.module.named_parameters() if p.requires_grad} == {torch.float32}
    batch = batches_of(mixed)[0][0]
    half = sample_losses(engine, batch, mixed.objective)
    full = sample_losses(build(config)[0], batch, config.objective)
    assert torch.allclose(half, full, rtol=2e-2)
    assert not torch.equal(half, full)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_step_that_is_not_finite_changes_nothing_and_says_so(
    at_stage: Callable[[int], TrainConfig], group: None, stage: int
) -> None:
    config = at_stage(stage)
    engine = Engine(*build(config), 1, config.engine)
    good = batches_of(config)[0][0]
    bad = replace(good, clean=torch.full_like(good.clean, float("nan")))
    skips = []
    for batch in (good, bad, good):
        before = dict(engine.trained_tensors())
        engine.backward(sample_losses(engine, batch, config.objective).mean())
        skips.append(engine.step(LR).skipped)
        after = dict(engine.trained_tensors())
        assert all(value.isfinite().all() for value in after.values())
        assert all(torch.equal(before[name], after[name]) for name in after) == skips[-1]
    assert skips == [False, True, False]


def test_no_compiler_is_needed(group: None) -> None:
    # The op whose build would end a run on a machine without one is not taken for available.
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False


def test_micro_batches_that_cannot_be_dealt_are_refused(config: TrainConfig, group: None) -> None:
    engine = Engine.__new__(Engine)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="multiple of the number of ranks, 4"):
        patch.setattr("training.engine.dist.get_world_size", lambda: 4)
        engine.__init__(*build(config), 6, config.engine)
