"""Networks with random weights created directly on the device, and random inputs of one chunk.

Never zeros: a GPU multiplies them faster than real data. Nothing is read from files or sent from the host.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from common.errors import InputError
from omniavatar.model.adapter import inject_lora, lora_layers, mark_trainable, merge_lora
from omniavatar.model.attention import choose_attention
from omniavatar.model.transformer import AudioConditionedWan, AvatarTransformer, build_condition, new_base, to_avatar
from omniavatar.weights.model_configs import build_empty
from pipelines.gpu_drill.device import SEED, Device
from pipelines.gpu_drill.drill import Bench

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class ChunkInputs:
    """What the sampler is given for one chunk of one video, on the device, in float32."""

    noise: Tensor  # (1, 16, T, h, w)
    text: Tensor  # (1, n, D)
    negative: Tensor  # (1, n, D)
    condition: Tensor  # (1, 17, T, h, w)
    audio: Tensor  # (1, F, C)
    prefix: Tensor  # (1, 16, 1, h, w)


def random_module(
    build: Callable[[], M], device: Device, dtype: torch.dtype, kept: tuple[str, ...] = (), seed: int = SEED
) -> M:
    """A frozen module in eval mode whose weights were never on the host: `build` is called without memory.

    Matrices are normal with variance 1 / inputs, vectors ones (biases zeros); `kept` are parts of the names of weights
    that stay in float32. Buffers, such as rotary tables, are those that `build` computes.
    """
    module = build_empty(build)
    generator = torch.Generator(device.torch_device).manual_seed(seed)
    drawn: dict[nn.Parameter, nn.Parameter] = {}  # tied weights are one parameter in several places
    for path, part in module.named_modules():
        for name, empty in list(part.named_parameters(recurse=False)):
            if empty not in drawn:
                single = any(word in f"{path}.{name}" for word in kept)
                drawn[empty] = _drawn(name, empty, torch.float32 if single else dtype, device.torch_device, generator)
            part.register_parameter(name, drawn[empty])
    return module.to(device.torch_device).eval()


def _drawn(
    name: str, empty: Tensor, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> nn.Parameter:
    value = torch.empty(empty.shape, dtype=dtype, device=device)
    if empty.numel() == max(empty.shape, default=1):
        value.fill_(0.0 if name == "bias" else 1.0)
    else:
        value.normal_(0.0, (empty.shape[0] / empty.numel()) ** 0.5, generator=generator)
    return nn.Parameter(value, requires_grad=False)


def avatar(bench: Bench, size: str, dtype: torch.dtype = torch.bfloat16) -> AvatarTransformer:
    """The avatar model of a published size, frozen, in the types of `load_base`, with LoRA beside its weights."""
    sizes, where = bench.sizes, bench.device.torch_device
    config, network = sizes.config(size), sizes.networks[size]
    kept = tuple(AudioConditionedWan._keep_in_fp32_modules or ())
    model = random_module(lambda: to_avatar(new_base(config), network.audio_dim), bench.device, dtype, kept)
    with torch.device(where):  # peft creates its matrices where the context says, else on the host
        inject_lora(model, network.rank, network.rank / 2)
    for layer in lora_layers(model):
        for matrix in layer.lora_B.values():  # zeros in a new adapter
            nn.init.normal_(matrix.weight, std=0.02)
    return model.eval().requires_grad_(False)


def trained_avatar(bench: Bench, size: str) -> AvatarTransformer:
    """The same ready for LoRA training: what is trained is in float32 and wants gradients (`training.omniavatar`)."""
    model = avatar(bench, size)
    mark_trainable(model, "lora")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train()  # in eval mode gradient checkpointing is silently off


def as_released(model: AvatarTransformer) -> str:
    """Set the model up as the released code runs it; returns the kernel: flash-attention where installed, else torch's.

    The blocks are still ours, which is to the peer's advantage: theirs turns queries and keys in complex float64.
    """
    with torch.inference_mode(False):  # weights stay ordinary tensors
        for layer in lora_layers(model):
            if layer.merged:
                layer.unmerge()
    for kernel in ("_flash_3", "flash"):
        try:
            return choose_attention(model, kernel)
        except InputError:
            pass
    return choose_attention(model, "native")


def as_ours(model: AvatarTransformer) -> str:
    """Set the model up as `load_models` does, with LoRA in the weights; returns the kernel."""
    with torch.inference_mode(False):
        if not all(layer.merged for layer in lora_layers(model)):
            merge_lora(model)
    return choose_attention(model)


def chunk_inputs(bench: Bench, seed: int = SEED) -> ChunkInputs:
    """Random inputs of a first chunk of this bench's size."""
    sizes, where = bench.sizes, bench.device.torch_device
    network = next(iter(sizes.networks.values()))  # both take the same text and audio
    generator = torch.Generator(where).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=where)

    reference = draw(1, 16, 1, sizes.height, sizes.width)
    return ChunkInputs(
        noise=draw(1, 16, sizes.frames, sizes.height, sizes.width),
        text=draw(1, sizes.text, network.text_width),
        negative=draw(1, sizes.text, network.text_width),
        condition=build_condition(reference, sizes.frames, 1),
        audio=draw(1, sizes.pixel_frames, network.audio_dim),
        prefix=reference,
    )
