from dataclasses import replace

from omniavatar.planning.network import network_of
from training.config import DataConfig, EngineConfig
from training.planning.fit import Setting, faster_and_fits, smallest_change

BIG = network_of({}, "lora", 128, "multi")
EASY = Setting(EngineConfig(stage=0, autocast="bf16", frozen_dtype="bf16"), "full", 1, 8, 19, 1560)
DATA = DataConfig()


def total(setting: Setting) -> int:
    return setting.memory(BIG).total


def test_the_change_leads_to_what_fits_and_costs_least() -> None:
    first = replace(EASY, engine=replace(EASY.engine, stage=1))
    assert smallest_change(BIG, EASY, total(first), DATA) == "engine.stage=1"
    assert smallest_change(BIG, replace(EASY, mode="none"), total(EASY), DATA) == "model.gradient_checkpointing=full"
    stage_3 = replace(EASY, engine=replace(EASY.engine, stage=3))
    assert smallest_change(BIG, replace(stage_3, batch=3), total(stage_3), DATA) == "data.batch=1"
    assert smallest_change(BIG, replace(stage_3, batch=3), total(replace(stage_3, batch=2)), DATA) == "data.batch=2"


def test_the_host_comes_before_sharing_samples_and_that_before_more_ranks() -> None:
    stage_3 = replace(EASY, engine=replace(EASY.engine, stage=3))
    inputs = replace(stage_3, mode="offload")
    assert smallest_change(BIG, stage_3, total(inputs), DATA) == "model.gradient_checkpointing=offload"
    optimizer = replace(inputs, engine=replace(inputs.engine, offload_optimizer=True))
    said = "model.gradient_checkpointing=offload, engine.offload_optimizer=true"
    assert smallest_change(BIG, stage_3, total(optimizer), DATA) == said
    weights = replace(optimizer, engine=replace(optimizer.engine, offload_parameters=True))
    less = total(weights) - 1
    shared = "model.gradient_checkpointing=offload, engine.sequence_parallel=2"
    assert smallest_change(BIG, stage_3, less, DATA) == shared
    assert smallest_change(BIG, replace(stage_3, ranks=1), less, DATA).endswith(", 2 ranks")


def test_bfloat16_comes_before_more_ranks() -> None:
    full = replace(EASY, engine=EngineConfig(stage=3))
    half = replace(full, engine=replace(EASY.engine, stage=3))
    assert smallest_change(BIG, full, total(half), DATA) == "engine.autocast=bf16, engine.frozen_dtype=bf16"


def test_shorter_windows_come_last_and_then_nothing() -> None:
    smallest = replace(EASY, engine=replace(EASY.engine, stage=3), ranks=1024)
    shorter = replace(smallest, frames=2)
    alone = replace(BIG, heads=37)  # that no ranks can share
    assert smallest_change(alone, smallest, total(shorter), DATA) == f"data.max_tokens={2 * 1560}"
    assert smallest_change(alone, smallest, 1e6, DATA) == ""


def test_faster_changes_fit_each_alone() -> None:
    sharded = replace(EASY, engine=replace(EASY.engine, stage=3))
    assert list(faster_and_fits(BIG, sharded, total(sharded), DATA)) == []
    first = replace(EASY, engine=replace(EASY.engine, stage=1))
    assert list(faster_and_fits(BIG, sharded, total(first), DATA))[-1] == "engine.stage=1"
    assert list(faster_and_fits(BIG, replace(sharded, ranks=1), 1e15, DATA)) == ["model.gradient_checkpointing=none"]


def test_what_was_asked_of_the_host_or_of_other_ranks_in_vain_is_said() -> None:
    alone = replace(EASY, mode="none", ranks=16, engine=replace(EASY.engine, stage=2))
    shared = replace(alone, engine=replace(alone.engine, sequence_parallel=2, offload_optimizer=True))
    assert list(faster_and_fits(BIG, shared, 1e15, DATA)) == [
        "engine.offload_optimizer=false",
        "engine.sequence_parallel=1",
    ]
    assert list(faster_and_fits(BIG, shared, total(shared), DATA)) == []
    several = replace(alone, engine=replace(alone.engine, stage=3))
    assert list(faster_and_fits(BIG, several, total(several) + 6e9, DATA)) == ["engine.hpz_ranks=8"]
