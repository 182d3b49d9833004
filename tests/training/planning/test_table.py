import re
from dataclasses import replace
from pathlib import Path

from training.config import EngineConfig, ModelConfig, TrainConfig
from training.planning.devices import named_device
from training.planning.plan import plan
from training.planning.table import plan_lines

CONFIG = TrainConfig(
    model=ModelConfig(base=Path("wan2.1-t2v-14b"), gradient_checkpointing="full"),
    engine=EngineConfig(stage=3, autocast="bf16", frozen_dtype="bf16"),
)


def words(config: TrainConfig, ranks: int) -> str:
    return "\n".join(plan_lines(plan(config, ranks, named_device("A100-80GB"))))


def test_the_lines_hold_the_figures() -> None:
    said = words(CONFIG, 64)
    for figure in (
        "14.91 billion weights, 618.7 million trained",
        "64 x A100-80GB: 312 TFLOP/s",
        "774,207",
        "480 x 832, 73",
        "29,640",
        "5.18",
        "5.17 days an epoch of 12,097 steps",
        "planned with data.micro_batches=64, not 1",
        "79.0 GB usable: fits",
        "faster, and still fits: model.gradient_checkpointing=selective",
        "checkpoint 7.42 GB, 2 are kept",
    ):
        assert figure in said


def test_what_does_not_fit_is_said_with_the_remedy() -> None:
    keeping = replace(CONFIG, model=replace(CONFIG.model, gradient_checkpointing="none"))
    assert "DOES NOT FIT" in words(keeping, 8)
    assert "the smallest change with which it fits: model.gradient_checkpointing=selective" in words(keeping, 8)


def test_sharing_and_offload_are_listed() -> None:
    engine = replace(CONFIG.engine, sequence_parallel=2, hpz_ranks=8, offload_optimizer=True, offload_parameters=True)
    said = words(replace(CONFIG, engine=engine), 64)
    assert (
        "2 ranks share each sample, a second copy of the weights among 8 ranks, optimizer and weights in host" in said
    )
    # 31.1 GB of weights / 64, and / 8 once more; gradients, two moments and master copy of 2.47 GB each / 64.
    assert re.search(r"plus 4\.5\d GB of host memory per rank", said)
    assert "faster, and still fits: engine.offload_parameters=false, engine.offload_optimizer=false" in said


def test_a_time_in_float32_is_said_to_be_too_short() -> None:
    assert "without autocast" in words(replace(CONFIG, engine=EngineConfig()), 64)
    assert "without autocast" not in words(CONFIG, 64)
