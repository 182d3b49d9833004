"""Two processes over gloo, forked by one that imports for both: weights in pieces, and passes of guidance in turn. A
whole video of two is compared in tests/pipelines/cli/test_generate.py."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from omniavatar.config import LoadConfig
from training.launch.local import free_port

TWO = """
import json, os, sys, time
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from omniavatar.model.adapter import inject_lora
from omniavatar.parallel.ranks import in_turn, join_ranks
from omniavatar.video.sampler import Guidance, denoise
from omniavatar.parallel.sharding import shard_blocks
from omniavatar.model.transformer import build_condition
from tests.omniavatar.conftest import make_avatar, make_umt5, randomise

child = os.fork()
os.environ["RANK"] = "0" if child else "1"
torch.set_num_threads(1)
ranks = join_ranks(torch.device("cpu"))


def held(model):
    local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(p.numel() * p.element_size() for p in local)


def sharded(model, blocks, call, on_host=False):
    call, before, whole = torch.inference_mode()(call), held(model), []
    expected = call()
    with in_turn(ranks):
        begun = time.monotonic()
        shard_blocks(model, blocks, ranks, torch.device("cpu"), on_host)
        time.sleep(0.2)
        turn = begun, time.monotonic()
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: whole.append(
            sum(not isinstance(next(each.parameters()), DTensor) for each in blocks)
        ))
    worst = max((call() - expected).abs().max().item() for _ in range(2))
    return {"worst": worst, "share": held(model) / before, "whole": whole, "turn": turn}


def avatar(half=False, together=False, lora=False, on_host=False):
    model = make_avatar()
    if lora:
        inject_lora(model, 4, 2.0)
        randomise(model, 9)
    for name, parameter in model.named_parameters():
        if half and not set(name.split(".")) & set(model.dit._keep_in_fp32_modules):
            parameter.data = parameter.data.bfloat16()
    if together:
        model.share_sequence(ranks)
    return sharded(model.requires_grad_(False), model.dit.blocks, lambda: model(*given), on_host)


torch.manual_seed(0)
condition = build_condition(torch.randn(1, 16, 1, 4, 4), 3, 1)
noisy, text, sound = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 5, 24), torch.randn(1, 9, 64)
given = noisy, torch.tensor([500.0]), text, condition, sound
umt5 = make_umt5().requires_grad_(False)
umt5.set_input_embeddings(umt5.shared)
ids = torch.tensor([[3, 4, 5, 6]])
def guided(guidance, computed):
    model, calls = make_avatar().requires_grad_(False), []
    model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    sampled = dict(noise=noisy, text=text, negative_text=text.flip(1), condition=condition, audio=sound, prefix=picture)
    settings = dict(steps=4, shift=2.0, guidance=guidance, computed=computed)
    expected = denoise(model, **sampled, **settings)
    calls.clear()
    worst = (denoise(model, **sampled, **settings, branch_group=ranks) - expected).abs().max().item()
    return {"worst": worst, "calls": calls}


picture = torch.randn(1, 16, 1, 4, 4)
turns = {
    "three, then one": guided(Guidance(4.0, 2.5, stop=0.5), None),
    "two, steps left out": guided(Guidance(4.0, 4.0), [True, False, True, False]),
    "batched": guided(Guidance(4.0, 2.5, batched=True), None),
}
found = {
    "plain": avatar(),
    "half precision, LoRA beside": avatar(half=True, together=True, lora=True),
    "on the host": avatar(together=True, on_host=True),
    "text": sharded(umt5, [umt5.shared, *umt5.encoder.block], lambda: umt5(input_ids=ids)[0]),
}
with open(f"{sys.argv[1]}/{ranks.rank}.json", "w") as file:
    json.dump({"sharded": found, "guided": turns}, file)
dist.barrier()
dist.destroy_process_group()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("two")
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    # A training in this process may have set its own local rank.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCAL_")} | meeting
    subprocess.run([sys.executable, "-c", TWO, str(folder)], env=environment, check=True, timeout=300)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def found(two: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of weights in pieces, by kind of model."""
    return [seen["sharded"] for seen in two]


def test_branches_shared_by_ranks_give_the_same(two: list[dict[str, Any]]) -> None:
    one, other = (seen["guided"] for seen in two)
    assert max(each["worst"] for seen in (one, other) for each in seen.values()) < 1e-5
    # Three passes: one process has the last and the first, the other what is between; one pass: the other waits.
    assert [len(seen["three, then one"]["calls"]) for seen in (one, other)] == [2 + 2 + 1 + 1, 1 + 1]
    assert [len(seen["two, steps left out"]["calls"]) for seen in (one, other)] == [4, 4]
    assert [seen["batched"]["calls"] for seen in (one, other)] == [[2] * 4, [1] * 4]


def test_tokens_or_branches_are_shared_and_not_both() -> None:
    with pytest.raises(ValueError, match=r"share_sequence and load\.share_branches are both set"):
        LoadConfig(share_sequence=True, share_branches=True)


def test_blocks_in_pieces_compute_the_same(found: list[dict[str, Any]]) -> None:
    assert [seen["worst"] for rank in found for seen in rank.values()] == [0.0] * 8


def test_each_process_keeps_half_and_one_block_is_whole_as_it_runs(found: list[dict[str, Any]]) -> None:
    """Half of the blocks, that is; the rest of the tiny transformer is a third of it."""
    for kind, (one, other) in {kind: (found[0][kind], found[1][kind]) for kind in found[0]}.items():
        assert one["whole"] == other["whole"] == [1] * (6 if kind == "text" else 12)
        total = one["share"] + other["share"]
        assert abs(one["share"] - other["share"]) < 0.03 and total == pytest.approx(
            1.0 if kind == "text" else 1.3, abs=0.2
        )


def test_processes_of_one_machine_take_turns(found: list[dict[str, Any]]) -> None:
    for kind in found[0]:
        assert found[0][kind]["turn"][1] <= found[1][kind]["turn"][0]


def test_parts_lie_with_those_who_share_a_video() -> None:
    with pytest.raises(ValueError, match=r"load\.share_sequence.*torchrun.*offload=blocks"):
        LoadConfig(shard=True)
    assert LoadConfig(shard=True, share_sequence=True, offload="blocks").shard
