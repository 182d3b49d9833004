import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from omniavatar.config import Compile, Recompute
from omniavatar.model.cache import CachedAudio, CachedText
from omniavatar.model.compiled import GRAPHS, _Graphs, compile_blocks
from omniavatar.model.transformer import AvatarTransformer
from omniavatar.parallel.block_offload import stream_blocks
from tests.omniavatar.conftest import make_avatar

CPU = torch.device("cpu")
Given = tuple[Tensor, ...]


@pytest.fixture(autouse=True)
def _fresh_graphs() -> None:
    torch._dynamo.reset()
    counters.clear()


@torch.inference_mode()
def sampled(model: AvatarTransformer, given: Given) -> Tensor:
    """As the sampler calls it, twice with the same caches."""
    noisy, timestep, text, condition, audio = given
    cached, sound = CachedText(text), CachedAudio(audio)
    return torch.stack([model(noisy, timestep * step, cached, condition, sound) for step in (1, 0.5)])


def gradient(model: AvatarTransformer, given: Given) -> Tensor:
    model(*given).pow(2).mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_one_graph_serves_all_blocks_with_caches_and_offload(
    avatar: AvatarTransformer, given: Given, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    avatar.requires_grad_(False)
    avatar.dit.packs_text = True
    expected = sampled(avatar, given)
    stream_blocks(avatar, avatar.dit.blocks, CPU)
    assert compile_blocks(avatar, "eager", CPU)
    torch.testing.assert_close(sampled(avatar, given), expected, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert caplog.text.count("compiling the block for 1 x 12 tokens, graph 1 of 4") == 1


def test_gradients_are_the_same_with_the_recomputation_inside_the_graph(given: Given) -> None:
    expected = gradient(make_avatar().train(), given)
    model = make_avatar().train()
    model.set_gradient_checkpointing("full")
    assert compile_blocks(model, "eager", CPU)
    torch.testing.assert_close(gradient(model, given), expected, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_second_call_compiles_the_plain_blocks_with_the_checkpointing_set_since(given: Given) -> None:
    expected = gradient(make_avatar().train(), given)
    model = make_avatar().train()
    plain = model.dit.blocks[0].forward
    model.set_gradient_checkpointing("full")
    assert compile_blocks(model, "eager", CPU) and not model.dit.gradient_checkpointing
    first = model.dit.blocks[0].forward
    for mode in ("none", "full"):
        model.set_gradient_checkpointing(mode)
        assert compile_blocks(model, "eager", CPU)
        assert model.dit.blocks[0].forward.plain == plain and model.dit.blocks[0].forward is not first
    torch.testing.assert_close(gradient(model, given), expected, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1  # nothing of the earlier calls is left around the block


def test_the_number_of_graphs_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    graphs, text = _Graphs("eager", whole=True), torch.zeros(1, 5, 8)
    static = [graphs.is_static(torch.zeros(1, tokens, 8), text) for tokens in (*range(1, GRAPHS + 4), 1, GRAPHS + 1)]
    assert static == [True] * GRAPHS + [False] * 3 + [True, False]
    assert caplog.text.count("compiling the block") == GRAPHS + 1


@pytest.mark.parametrize("setting", ["off", "auto", "inductor"])
def test_without_a_compiler_only_a_wish_is_dropped(
    avatar: AvatarTransformer,
    given: Given,
    setting: Compile,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    if setting == "inductor":
        with pytest.raises(ValueError, match=r"compile is .inductor., but torch.compile needs the compiler g\+\+"):
            compile_blocks(avatar, setting, CPU)
    else:
        assert not compile_blocks(avatar, setting, CPU)
    assert ("the blocks are not compiled: torch.compile needs the compiler g++" in caplog.text) == (setting == "auto")
    assert "forward" not in vars(avatar.dit.blocks[0])


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["none", "full", "selective", "offload"])
def test_compiled_kernels_compute_the_same_and_are_kept(
    given: Given, mode: Recompute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real kernels, half a minute of the C++ compiler each; float32 within 1e-5 of outputs of about 2."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    expected, model = make_avatar(), make_avatar()
    model.set_gradient_checkpointing(mode)
    assert compile_blocks(model, "inductor", CPU)
    torch.testing.assert_close(sampled(model, given), sampled(expected, given), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(model.train(), given), gradient(expected.train(), given), rtol=1e-4, atol=1e-6)
    assert list(tmp_path.rglob("*.so"))
