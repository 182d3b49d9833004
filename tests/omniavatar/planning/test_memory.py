"""The arithmetic against the bytes of the tensors that the real modules make."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from omniavatar.config import GenerateConfig, LoadConfig
from omniavatar.encoders.vae import WanVAE
from omniavatar.model.adapter import inject_lora, merge_lora
from omniavatar.model.int8 import quantize_linears
from omniavatar.model.transformer import AvatarTransformer, build_condition, new_base, stored_type_of, to_avatar
from omniavatar.planning.memory import (
    Job,
    decode_working,
    encode_working,
    forecast,
    job_of,
    sampling_working,
    transformer_bytes,
)
from omniavatar.planning.network import network_of
from omniavatar.planning.sizes import AudioSizes, Networks, TextSizes
from omniavatar.video.sampler import Guidance, denoise

SHAPE = {"num_attention_heads": 2, "attention_head_dim": 64, "ffn_dim": 512, "num_layers": 4, "text_dim": 32}
NET = network_of(SHAPE, "lora", 8, "multi", 12)


class Height(TorchDispatchMode):
    """The most bytes held at a time by tensors that operations made."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.most = dict[StorageWeakRef, int](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.held[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        self.held = {storage: size for storage, size in self.held.items() if not storage.expired()}
        self.most = max(self.most, sum(self.held.values()))
        return result


def height(call: Callable[[], object]) -> int:
    with torch.inference_mode(), Height() as measured:
        call()
    return measured.most


def avatar(dtype: torch.dtype) -> AvatarTransformer:
    torch.manual_seed(0)
    model = inject_lora(to_avatar(new_base(SHAPE), 12), 8).eval().requires_grad_(False)
    merge_lora(model)
    kind = stored_type_of(model.dit, dtype)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(kind(name))
    return model


def held(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


@pytest.mark.parametrize(
    ("quantize", "dtype"), [("none", torch.bfloat16), ("none", torch.float32), ("int8", torch.bfloat16)]
)
def test_weights_of_the_transformer(quantize: Literal["none", "int8"], dtype: torch.dtype) -> None:
    model = avatar(dtype)
    if quantize == "int8":
        for block in model.dit.blocks:
            quantize_linears(block)
    expected = transformer_bytes(NET, LoadConfig(quantize=quantize), dtype.itemsize)
    assert held(model.dit.blocks[0]) == expected.block
    assert held(model) == expected.outside + 4 * expected.block


@pytest.mark.parametrize(("dtype", "batched"), [(torch.bfloat16, False), (torch.float32, True)])
def test_sampling(dtype: torch.dtype, batched: bool) -> None:
    side, frames = 24, 5
    config = GenerateConfig(audio_guidance=2.0, batched_guidance=batched)
    job = job_of(config, 8 * side, 8 * side, 4 * frames - 3)
    assert (job.branches, job.texts, job.batched) == (3, 2, 3 if batched else 1)
    model, text = avatar(dtype), torch.randn(1, 512, 32)

    def sample() -> None:
        condition = build_condition(torch.randn(1, 16, 1, side, side), frames, 1)
        states = torch.randn(1, 4 * frames - 3, 12)
        noise = torch.randn(1, 16, frames, side, side)
        prefix = noise[:, :, :1]
        denoise(model, noise, text, text, condition, states, prefix, 1, 1.0, Guidance(4.5, 2.0, batched=batched))

    assert height(sample) == pytest.approx(sampling_working(NET, job, dtype.itemsize), rel=0.1)


def test_the_vae() -> None:
    """At full size, without values: float32 encodes, bf16 decodes."""
    networks, job = Networks(NET), Job(480, 832, 5, 5)
    with torch.device("meta"):
        vae = WanVAE(AutoencoderKLWan()).eval()
        latents, video = torch.empty(1, 16, 2, 60, 104), torch.empty(1, 3, 5, 480, 832)
    encoded = encode_working(networks, LoadConfig(), job, 4, gpu=True)
    assert height(lambda: vae.encode(video)) == pytest.approx(encoded, rel=0.04)
    decoded = decode_working(networks, LoadConfig(), job, 2, gpu=True)
    vae = vae.bfloat16()
    assert height(lambda: vae.decode(latents)) == pytest.approx(decoded, rel=0.04)


BIG = Networks(network_of({}, "lora", 128, "multi"))


def peaks(load: LoadConfig, gpu: bool = True) -> dict[str, tuple[int, int]]:
    return {stage.name: (stage.device, stage.host) for stage in forecast(BIG, load, Job(), gpu=gpu, half=True)}


def test_published_sizes_and_what_a_mode_moves_where() -> None:
    resident = peaks(LoadConfig())
    assert resident["load audio encoder"][0] == pytest.approx(40.6e9, rel=0.01)  # as in the README
    streamed = peaks(LoadConfig(text_encoder="streamed"))
    assert resident["sample"][0] - streamed["sample"][0] == 2 * TextSizes().weights
    offloaded = peaks(LoadConfig(text_encoder="streamed", offload="blocks"))
    assert offloaded["sample"][0] < 8e9 and offloaded["sample"][1] > 28e9
    eight = peaks(LoadConfig(text_encoder="streamed", quantize="int8"))
    assert streamed["sample"][0] - eight["sample"][0] == pytest.approx(13.6e9, rel=0.02)
    on_cpu = peaks(LoadConfig(), gpu=False)
    assert on_cpu["sample"][0] == 0 and on_cpu["sample"][1] - resident["sample"][0] == pytest.approx(0.45e9, rel=0.1)


def test_guidance_decides_branches_and_texts() -> None:
    equal, none = GenerateConfig(), GenerateConfig(text_guidance=1.0, audio_guidance=1.0)
    cases = [job_of(config, 480, 832, 73) for config in (equal, none)]
    assert [(job.branches, job.texts) for job in cases] == [(2, 2), (1, 1)]
    assert job_of(GenerateConfig(audio_guidance=1.0), 480, 832, 73, audio=False).branches == 2
    assert AudioSizes().states == 10_752
