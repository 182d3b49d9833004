from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import deepspeed
import pytest
import torch

from omniavatar.config import AudioEntry, Recompute
from tests.training.short_runs import LR, ShortConfig, ShortRun, batches, build, by_engine, by_plain_torch, by_ranks
from training.config import EngineConfig, ModelConfig, ObjectiveConfig
from training.engine.zero import Engine, join_group
from training.omniavatar.objective import sample_losses


@pytest.fixture
def group() -> None:
    join_group(threads=1)


def short(
    base: Path, stage: int, entry: AudioEntry = "multi", mode: Recompute = "none", **engine: object
) -> ShortConfig:
    model = ModelConfig(base=base, lora_rank=4, lora_alpha=2.0, audio_entry=entry, gradient_checkpointing=mode)
    return ShortConfig(model, EngineConfig(stage=stage, **engine))


@pytest.fixture
def at_stage(base_folder: Path) -> Callable[[int], ShortConfig]:
    return lambda stage: short(base_folder, stage)


@pytest.fixture(scope="module")
def by_two_ranks(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShortRun]:
    """What two ranks make of it, once for all tests."""
    on_host = {"offload_parameters": True, "offload_optimizer": True}
    small = {"reduce_bucket": 1000, "prefetch_bucket": 10, "live_parameters": 10, "persistent_below": 0}
    configs = {
        "sharded": short(base_folder, 3),
        "built in shards, on host": short(base_folder, 3, build="sharded", hpz_ranks=2, **on_host, **small),
        "multi": short(base_folder, 3, mode="full", sequence_parallel=2),
        "cross_attention": short(base_folder, 3, "cross_attention", "selective", sequence_parallel=2),
        "single": short(base_folder, 0, "single", sequence_parallel=2),
    }
    return by_ranks(tmp_path_factory.mktemp("ranks"), configs)


def assert_equal(found: ShortRun, expected: ShortRun) -> None:
    assert found.losses == pytest.approx(expected.losses, rel=1e-6)
    assert found.norms == pytest.approx(expected.norms, rel=1e-6)
    assert found.weights.keys() == expected.weights.keys()
    differences = torch.cat([(found.weights[n] - value).abs().flatten() for n, value in expected.weights.items()])
    # AdamW divides a gradient by its own size: a few whose gradient is rounding alone move by rounding.
    assert (differences > 1e-5).float().mean() < 1e-4
    assert differences.max() < LR / 10


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_stage_trains_as_plain_torch_does(
    at_stage: Callable[[int], ShortConfig], group: None, stage: int
) -> None:
    expected = by_plain_torch(at_stage(stage))
    assert_equal(by_engine(at_stage(stage)), expected)
    moved = {name: value for name, value in expected.weights.items() if "audio_cond_projs" in name}
    assert all(value.abs().max() > 1e-3 for value in moved.values())


@pytest.mark.parametrize(("entry", "mode"), [("multi", "offload"), ("cross_attention", "selective")])
def test_recomputed_audio_layers_train_sharded_as_whole(
    base_folder: Path, group: None, entry: AudioEntry, mode: Recompute
) -> None:
    found = by_engine(short(base_folder, 3, entry, mode, live_parameters=1000))
    assert_equal(found, by_plain_torch(short(base_folder, 0, entry)))


@pytest.mark.soak
def test_compiled_blocks_train_as_plain_torch_does(base_folder: Path, tmp_path: Path) -> None:
    """Traced, not compiled: what graphs could break is what hooks and collectives do around and within them."""
    gathers = {"persistent_below": 0, "live_parameters": 10, "compile": "eager"}
    configs = {
        "inside": short(base_folder, 3, mode="selective", **gathers),  # recomputation within the graph
        "around": short(base_folder, 3, mode="full", sequence_parallel=2, **gathers),
    }
    for run in by_ranks(tmp_path, configs).values():
        assert_equal(run, by_plain_torch(short(base_folder, 0)))


@pytest.mark.parametrize("name", ["sharded", "built in shards, on host"])
def test_two_ranks_train_as_plain_torch_does(base_folder: Path, by_two_ranks: dict[str, ShortRun], name: str) -> None:
    assert_equal(by_two_ranks[name], by_plain_torch(short(base_folder, 0)))


def test_how_it_was_built_and_where_it_waits_changes_no_bit(by_two_ranks: dict[str, ShortRun]) -> None:
    found, expected = by_two_ranks["built in shards, on host"], by_two_ranks["sharded"]
    assert found.losses == expected.losses
    assert all(torch.equal(found.weights[key], value) for key, value in expected.weights.items())


@pytest.mark.parametrize("entry", ["multi", "cross_attention", "single"])
def test_two_ranks_hold_a_sample_together_as_one_alone(
    base_folder: Path, by_two_ranks: dict[str, ShortRun], entry: AudioEntry
) -> None:
    assert_equal(by_two_ranks[entry], by_plain_torch(short(base_folder, 0, entry)))


def test_lora_starts_at_zero_under_sharding(at_stage: Callable[[int], ShortConfig], group: None) -> None:
    config = at_stage(3)
    engine = Engine(*build(config), 1, config.engine)
    starts = {name: value for name, value in engine.trained_tensors() if "lora_B" in name}
    assert len(starts) == 40
    assert all(not value.any() and value.numel() for value in starts.values())


def test_precision_survives_the_engine(at_stage: Callable[[int], ShortConfig], group: None) -> None:
    full = at_stage(3)
    mixed = replace(full, engine=EngineConfig(stage=3, autocast="bf16", frozen_dtype="bf16", build="sharded"))
    engine = Engine(*build(mixed), 1, mixed.engine)
    types = {name: p.dtype for name, p in engine.module.named_parameters()}
    assert types["dit.blocks.0.attn1.to_q.base_layer.weight"] == torch.bfloat16
    for kept in ("condition_embedder.time_embedder.linear_1.weight", "scale_shift_table", "blocks.3.norm2.weight"):
        assert types[f"dit.{kept}"] == torch.float32
    assert {types[name] for name, p in engine.module.named_parameters() if p.requires_grad} == {torch.float32}
    batch = batches(mixed)[0][0]
    half = sample_losses(engine, batch, ObjectiveConfig())
    whole = sample_losses(build(at_stage(0))[0], batch, ObjectiveConfig())
    assert torch.allclose(half, whole, rtol=2e-2)
    assert not torch.equal(half, whole)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_step_that_is_not_finite_changes_nothing_and_says_so(
    at_stage: Callable[[int], ShortConfig], group: None, stage: int
) -> None:
    config = at_stage(stage)
    engine = Engine(*build(config), 1, config.engine)
    good = batches(config)[0][0]
    bad = replace(good, clean=torch.full_like(good.clean, float("nan")))
    skips = []
    for batch in (good, bad, good):
        before = dict(engine.trained_tensors())
        engine.backward(sample_losses(engine, batch, ObjectiveConfig()).mean())
        skips.append(engine.step(LR).skipped)
        after = dict(engine.trained_tensors())
        assert all(value.isfinite().all() for value in after.values())
        assert all(torch.equal(before[name], after[name]) for name in after) == skips[-1]
    assert skips == [False, True, False]


@pytest.mark.parametrize(("persistent_below", "reuse_distance"), [(100_000, 0), (64, None)])
def test_the_next_use_is_searched_only_where_something_is_released(
    base_folder: Path, group: None, persistent_below: int, reuse_distance: int | None
) -> None:
    config = short(base_folder, 3, persistent_below=persistent_below)
    model, optimizer = build(config)
    with pytest.MonkeyPatch.context() as patch:
        initialize, seen = deepspeed.initialize, []
        patch.setattr(deepspeed, "initialize", lambda **given: seen.append(given["config"]) or initialize(**given))
        Engine(model, optimizer, 1, config.engine)
    assert seen[0]["zero_optimization"].get("stage3_max_reuse_distance") == reuse_distance
    assert all(p.ds_persist for p in model.parameters()) == (reuse_distance == 0)


def test_no_compiler_is_needed(group: None) -> None:
    # The op whose build would end a run on a machine without one is not taken for available.
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False


@pytest.mark.parametrize(
    ("ranks", "together", "message"),
    [
        (4, 1, "data.micro_batches is 6; expected a multiple of the number of ranks, 4"),
        (8, 2, "a multiple of the number of ranks by engine.sequence_parallel 2, 4"),
        (6, 4, "engine.sequence_parallel is 4; expected a divisor of the 6 ranks"),
    ],
)
def test_what_cannot_be_dealt_is_refused(
    at_stage: Callable[[int], ShortConfig], group: None, ranks: int, together: int, message: str
) -> None:
    config = at_stage(0)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=message):
        patch.setattr("training.engine.zero.dist.get_world_size", lambda: ranks)
        Engine(*build(config), 6, replace(config.engine, sequence_parallel=together))
