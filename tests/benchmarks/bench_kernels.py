"""What may be switched on: compiled blocks, packed text, AdamW as one kernel; each against the same without it.

On a CPU, where torch's kernels and the compiler's are other ones than on a GPU: `make gpu` measures those.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from omniavatar.model.cache import CachedAudio, CachedText
from omniavatar.model.compiled import compile_blocks
from omniavatar.model.transformer import AvatarTransformer, build_condition, new_base, to_avatar
from tests.benchmarks.measure import Row, compare
from training.config import OptimizerConfig
from training.engine.optimizer import build_optimizer

SIZES = {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 1024, "num_layers": 4, "text_dim": 64}
AUDIO, FRAMES, TEXT, WORDS = 64, 3, 512, 100
SIDES = (60, 104)  # of a latent frame, 480 x 832: 4,680 tokens


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    condition = build_condition(torch.randn(1, 16, 1, *SIDES), FRAMES, 1)
    text = torch.zeros(1, TEXT, 64)
    text[:, :WORDS] = torch.randn(1, WORDS, 64)
    audio = torch.randn(1, 4 * FRAMES - 3, AUDIO)
    return torch.randn(1, 16, FRAMES, *SIDES), torch.tensor([700.0]), text, condition, audio


def model() -> AvatarTransformer:
    torch.manual_seed(0)
    return to_avatar(new_base(SIZES), AUDIO).eval().requires_grad_(False)


def sampling(model: AvatarTransformer, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    """A forward pass as in a step of sampling, with text and audio in their caches."""
    latents, timestep, text, condition, audio = inputs
    cached, packed = CachedText(text), CachedAudio(audio)

    @torch.inference_mode()
    def run() -> Tensor:
        return model(latents, timestep, cached, condition, packed)

    return run


def test_compiled_blocks(report: Callable[[Row], None], inputs: tuple[Tensor, ...]) -> None:
    """After the compilation. On a CPU most of the time is in libraries that the compiler calls too; what it fuses are
    norms, modulation and rotary embedding."""
    compiled = model()
    assert compile_blocks(compiled, "inductor", torch.device("cpu"))
    ours, peer = sampling(compiled, inputs), sampling(model(), inputs)
    torch.testing.assert_close(ours(), peer(), rtol=1e-4, atol=1e-4)
    report(compare("forward pass, 4,680 tokens, compiled blocks", "eager", ours, peer, aim=1.0))


def test_packed_text(report: Callable[[Row], None], inputs: tuple[Tensor, ...]) -> None:
    """100 tokens of text in 512. The gain shrinks with the share of cross-attention: one part in a hundred of the
    forward pass at 30,000 tokens."""
    packing = model()
    packing.dit.packs_text = True
    ours, peer = sampling(packing, inputs), sampling(model(), inputs)
    torch.testing.assert_close(ours(), peer(), rtol=1e-4, atol=1e-4)
    report(compare("forward pass, 4,680 tokens, packed text", "padded text", ours, peer, aim=1.0))


def test_adamw_as_one_kernel(report: Callable[[Row], None]) -> None:
    """20 million parameters in 32 matrices."""

    def step(fused: bool) -> tuple[nn.Module, Callable[[], None]]:
        torch.manual_seed(0)
        layers = nn.Sequential(*(nn.Linear(800, 800) for _ in range(32)))
        for parameter in layers.parameters():
            parameter.grad = torch.randn_like(parameter)
        return layers, build_optimizer(layers, OptimizerConfig(), "on" if fused else "off").step

    (one, ours), (other, peer) = step(True), step(False)
    ours()
    peer()
    torch.testing.assert_close(list(one.parameters()), list(other.parameters()), rtol=1e-5, atol=1e-7)
    report(compare("AdamW, 20 M parameters, one kernel", "a loop of kernels", ours, peer, aim=0.5))
