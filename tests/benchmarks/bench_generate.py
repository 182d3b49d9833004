"""A long video: how much of the released loop's arithmetic is needed.

The peer is that loop on the same networks: LoRA beside the weights, the caption encoded in each chunk and projected in
each forward, three passes at any scales, and the prefix decoded in each chunk for nobody. The transformer is small but
carries the weight; rank, caption and tokens stand to its width about as they do at 14B.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from common.constants import AUDIO_RATE
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from omniavatar.config import GENERATION_ROLES, GenerateConfig, LoadConfig
from omniavatar.encoders.audio import AudioEncoder
from omniavatar.encoders.text import TextEncoder
from omniavatar.encoders.vae import WanVAE
from omniavatar.generate import generate_video
from omniavatar.model.adapter import inject_lora, merge_lora
from omniavatar.model.flow import euler_step, sigma_schedule
from omniavatar.model.residual_cache import modulation_changes, plan_steps
from omniavatar.model.transformer import AvatarTransformer, build_condition, new_base, to_avatar
from omniavatar.models import AvatarModels, ModelPaths, load_models
from omniavatar.video.chunks import Chunk, ClipRequest, plan_chunks
from omniavatar.video.images import to_frames
from omniavatar.video.scene import Scene, chunk_noise, frames_of, prepare
from tests.benchmarks.measure import Row, compare
from tests.omniavatar.conftest import AUDIO_DIM, DIT_CONFIG, make_umt5, make_vae, make_wav2vec2, randomise

TRANSFORMER = {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 1024, "num_layers": 6}
RANK, WORDS = 8, 64
CONFIG = GenerateConfig(
    steps=3, shift=3.0, text_guidance=4.0, audio_guidance=2.5, overlap=5, chunk_frames=13, height=256, width=256,
    blend=0, colour_match="none",
)  # fmt: skip
REQUEST = ClipRequest(
    np.random.default_rng(1).integers(0, 256, (256, 256, 3)).astype(np.uint8),
    (np.random.default_rng(2).standard_normal(20 * 640) * 0.1).astype(np.float32),
    "a man speaks",
)
AS_IT_IS = (1.0, 0.0)  # changes foretell themselves: the weights are random


@pytest.fixture(scope="module")
def networks() -> tuple[AvatarModels, AvatarModels]:
    """Ours, LoRA merged, and the peer's with the same weights and LoRA beside them."""
    torch.manual_seed(0)
    transformer = inject_lora(to_avatar(new_base(DIT_CONFIG | TRANSFORMER), AUDIO_DIM), RANK, RANK / 2)
    randomise(transformer, 1)
    vae = make_vae(
        dim_mult=[1, 2, 4], temperal_downsample=[True, True], patch_size=2, in_channels=12, out_channels=12,
        num_res_blocks=1,
    )  # fmt: skip
    words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *REQUEST.prompt.split()])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=WORDS, **special)
    peer = AvatarModels(
        transformer.eval().requires_grad_(False), WanVAE(vae), TextEncoder(make_umt5(), fast),
        AudioEncoder(make_wav2vec2()),
    )  # fmt: skip
    merged = deepcopy(transformer)
    merge_lora(merged)
    return replace(peer, transformer=merged), peer


@torch.inference_mode()
def released_loop(models: AvatarModels, config: GenerateConfig, request: ClipRequest = REQUEST) -> np.ndarray:
    """The video as scripts/inference.py and wan_video.py make it, three passes a step."""
    frames = frames_of(request.wave)
    chunks = plan_chunks(frames, config.chunk_frames, config.overlap, full_last_chunk=config.full_last_chunk)
    made: list[np.ndarray] = []
    prefix: Tensor | None = None
    for chunk in chunks:
        scene = prepare(models, [request], config, chunks[-1].audio_stop)
        video = models.vae.decode(_sampled(models.transformer, scene, chunk, prefix, config))
        models.vae.decode(torch.zeros(1, 16, chunk.latent_frames, *scene.reference.shape[3:]))
        prefix = models.vae.encode(video[:, :, -config.overlap :])
        made.append(to_frames(video[0, :, chunk.prefix_frames :]))
    return np.concatenate(made)[:frames]


def _sampled(
    model: AvatarTransformer, scene: Scene, chunk: Chunk, prefix: Tensor | None, config: GenerateConfig
) -> Tensor:
    given = scene.reference if prefix is None else prefix
    first = chunk.audio_start - chunk.prefix_frames + 1
    assert scene.audio is not None
    audio = scene.audio[:, first : first + chunk.frames]
    condition = build_condition(scene.reference, chunk.latent_frames, chunk.prefix_latents)
    x = chunk_noise(config.seed, chunk.index, (16, chunk.latent_frames, *given.shape[3:]))[None]
    sigmas = sigma_schedule(config.steps, config.shift).tolist()
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        x[:, :, : given.shape[2]] = given
        timestep = torch.tensor([1000 * now])
        a = model(x, timestep, scene.negative_text, condition, torch.zeros_like(audio))
        b = model(x, timestep, scene.text, condition, torch.zeros_like(audio))
        c = model(x, timestep, scene.text, condition, audio)
        x = euler_step(x, a + config.text_guidance * (b - a) + config.audio_guidance * (c - b), now, then)
    x[:, :, : given.shape[2]] = given
    return x


def ours(models: AvatarModels, config: GenerateConfig, request: ClipRequest = REQUEST) -> np.ndarray:
    return generate_video(models, request.image, request.wave, request.prompt, config)


@pytest.mark.parametrize(("audio_guidance", "what", "aim"), [(2.5, "two scales", 0.90), (4.0, "equal scales", 0.70)])
def test_same_video(
    report: Callable[[Row], None],
    networks: tuple[AvatarModels, AvatarModels],
    audio_guidance: float,
    what: str,
    aim: float,
) -> None:
    """Equal frames: what is saved is work nobody needs. Equal scales take two passes for three."""
    mine, peer = networks
    config = replace(CONFIG, audio_guidance=audio_guidance)
    assert np.abs(ours(mine, config).astype(int) - released_loop(peer, config)).max() <= 1
    report(
        compare(
            f"video, {what}", "released loop", lambda: ours(mine, config), lambda: released_loop(peer, config), aim, 3
        )
    )


def test_residual_caching(report: Callable[[Row], None], networks: tuple[AvatarModels, AvatarModels]) -> None:
    """Three of six steps computed; the picture is another one, by as much as the row says."""
    mine, peer = networks
    config = replace(CONFIG, steps=6)
    changes = modulation_changes(mine.transformer, 6, CONFIG.shift)
    fitting = [t for t in np.linspace(0.01, 2, 400) if sum(plan_steps(changes, t, AS_IT_IS)) == 3]
    cached = replace(config, cache_threshold=float(fitting[0]), cache_polynomial=AS_IT_IS)
    error = (ours(mine, cached).astype(float) - released_loop(peer, config)) ** 2
    what = f"video, 3 of 6 steps ({10 * np.log10(255**2 / error.mean()):.0f} dB)"
    report(compare(what, "released loop", lambda: ours(mine, cached), lambda: released_loop(peer, config), 0.55, 2))


@pytest.mark.parametrize(("seconds", "aim"), [(1, 0.75), (6, 0.75)])
def test_the_miniature(report: Callable[[Row], None], seconds: int, aim: float) -> None:
    """A face and its voice from the small world, by its trained weights and the guidance of its recipe: one chunk, and
    four. Two of the three passes of a step are needed where the text does not guide; what encodes and decodes is paid
    by both."""
    mine, peer = (load_models(ModelPaths(**_miniature()), LoadConfig(merge=merge)) for merge in (True, False))
    clip = draw_clip(HELD_OUT_SEED, seconds)
    request = ClipRequest(clip.frames[0], clip.audio[: seconds * AUDIO_RATE], clip.caption)
    config = GenerateConfig(
        steps=5, shift=1.5, text_guidance=1.0, audio_guidance=2.5, chunk_frames=49, longest_side=64, blend=0,
        colour_match="none", full_last_chunk=True,
    )  # fmt: skip
    assert np.abs(ours(mine, config, request).astype(int) - released_loop(peer, config, request)).max() <= 1
    what = f"video of {seconds} s of voice, the miniature"
    report(
        compare(
            what,
            "released loop",
            lambda: ours(mine, config, request),
            lambda: released_loop(peer, config, request),
            aim,
            2,
        )
    )


def _miniature() -> dict[str, Path]:
    return {role: path for role, path in model_paths().items() if role in GENERATION_ROLES}
