"""Picture + sound + prompt -> video of any length, chunk by chunk.

Video frame 0 of the first chunk is the given picture and is dropped: the frames returned start together with the sound,
one per 640 samples. (The released code keeps the picture as a frame and delays the sound by 1/25 s instead.)
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.media import write_video
from common.progress import ProgressBar, progress
from common.runs import atomic_write, fingerprint
from omniavatar.adapter import merge_lora
from omniavatar.attention import choose_attention
from omniavatar.audio_encoder import SAMPLES_PER_FRAME, AudioEncoder, load_audio_encoder
from omniavatar.checkpoints import load_adapter
from omniavatar.chunks import FIRST_PREFIX, Chunk, frames_for_tokens, plan_chunks
from omniavatar.images import choose_size, fit_image, to_frames
from omniavatar.sampler import Guidance, denoise
from omniavatar.text_encoder import TextEncoder, load_text_encoder, pad_text
from omniavatar.transformer import AvatarTransformer, build_condition, load_base
from omniavatar.vae import WanVAE, load_vae

# What a talking portrait should not look like; the points of Wan's default list and of upstream's.
NEGATIVE_PROMPT = (
    "oversaturated colours, overexposure, fast moving background, fast camera movement, scene cut, subtitles, "
    "still picture, blurred details, painting, cartoon style, compression artefacts, grey cast, ugly, deformed, "
    "badly drawn hands, extra or fused fingers, badly drawn face, deformed limbs, three legs, crowded background, "
    "walking backwards"
)


@dataclass(frozen=True)
class LoadConfig:
    """Where and in which precision the networks run; wav2vec2 is always float32.

    `device` "auto" is a GPU where there is one; `dtype` "auto" is bf16 there and fp32 on a CPU. `attention`: see
    `choose_attention`; `round_timestep`: see AvatarTransformer, for the weights published by the authors; `tiled_vae`
    works on tiles: less memory, slightly other latents and pixels.
    """

    device: str = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    attention: str = "auto"
    round_timestep: bool = False
    tiled_vae: bool = False

    def resolved(self) -> tuple[torch.device, torch.dtype]:
        """Device and precision of this machine. Raises ValueError for a device that is not there."""
        gpus = torch.cuda.device_count()
        device = torch.device(("cuda" if gpus else "cpu") if self.device == "auto" else self.device)
        if device.type == "cuda" and (device.index or 0) >= gpus:
            raise ValueError(f"load.device is {self.device}, but torch sees {gpus} GPUs; set it to auto or to another.")
        kind = ("bf16" if device.type == "cuda" else "fp32") if self.dtype == "auto" else self.dtype
        return device, {"bf16": torch.bfloat16, "fp32": torch.float32}[kind]


@dataclass(frozen=True)
class GenerateConfig:
    """How to sample. Defaults are the paper's and the released code's; chunk_frames 0 means what max_tokens allows.

    height and width (both or none) replace the size chosen from the buckets of `longest_side` (720 or 1280).
    """

    load: LoadConfig = LoadConfig()
    steps: int = 25
    shift: float = 5.0
    text_guidance: float = 4.5
    audio_guidance: float = 4.5
    overlap: int = 13
    chunk_frames: int = 0
    max_tokens: int = 30_000
    longest_side: int = 720
    height: int = 0
    width: int = 0
    seed: int = 42
    negative_prompt: str = NEGATIVE_PROMPT


@dataclass(frozen=True)
class ModelPaths:
    """Where the weights of each role lie; without an adapter the transformer is the plain text-to-video base."""

    transformer: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path
    audio_encoder: Path
    adapter: Path | None = None


@dataclass(frozen=True)
class AvatarModels:
    """The four networks, on one device, and a name for these weights that keeps cached chunks of others apart."""

    transformer: AvatarTransformer
    vae: WanVAE
    text_encoder: TextEncoder
    audio_encoder: AudioEncoder
    identity: str = ""

    @property
    def device(self) -> torch.device:
        """Where the latents live."""
        return self.vae.mean.device


class ClipRequest(NamedTuple):
    """One video to make: uint8 RGB image (H, W, 3), mono 16 kHz wave (N,), prompt; `seed` None takes the config's."""

    image: np.ndarray
    wave: np.ndarray
    prompt: str
    seed: int | None = None


def load_models(paths: ModelPaths, config: LoadConfig = LoadConfig()) -> AvatarModels:
    """Load all networks for generation, LoRA merged. Errors as of each loader, of LoadConfig and `choose_attention`."""
    device, dtype = config.resolved()
    transformer = load_base(paths.transformer, dtype)
    transformer.round_timestep = config.round_timestep
    if paths.adapter is not None:
        load_adapter(transformer, paths.adapter)
        merge_lora(transformer)
    transformer.eval().requires_grad_(False).to(device)
    chosen = choose_attention(transformer, config.attention)
    vae = load_vae(paths.vae, dtype).to(device)
    vae.set_tiling(config.tiled_vae)
    text_encoder = load_text_encoder(paths.text_encoder, paths.tokenizer, dtype)
    audio_encoder = load_audio_encoder(paths.audio_encoder)
    text_encoder.model.to(device)
    audio_encoder.model.to(device)
    identity = fingerprint([*_file_marks(paths), str(dtype), config.round_timestep, chosen, config.tiled_vae])
    return AvatarModels(transformer, vae, text_encoder, audio_encoder, identity)


def _file_marks(paths: ModelPaths) -> Iterator[tuple[str, str, int, int]]:
    # Size and time of writing, not content: hashing 40 GB would take longer than sampling a chunk.
    for role, path in asdict(paths).items():
        files = sorted(path.rglob("*")) if path and path.is_dir() else [path] if path else []
        for file in files:
            if file.is_file():
                yield role, file.name, file.stat().st_size, file.stat().st_mtime_ns


@dataclass(frozen=True)
class _Scene:
    """What stays the same over the chunks of a batch of B videos."""

    text: Tensor  # (B, n, D)
    negative_text: Tensor  # (B, n, D)
    reference: Tensor  # (B, 16, 1, h, w)
    audio: Tensor | None  # (B, 1 + frames, C), the first frame zero; None for the plain base


@torch.inference_mode()
def generate_video(
    models: AvatarModels,
    image: np.ndarray,
    wave: np.ndarray,
    prompt: str,
    config: GenerateConfig,
    cache_folder: Path | None = None,
) -> np.ndarray:
    """Animate one picture to one sound of any length: uint8 RGB (ceil(N / 640), H, W, 3), 25 per second.

    With a cache folder every finished chunk is kept, and a killed run called again goes on behind the last one: same
    frames. Noise depends on (seed, chunk) alone. Each later chunk begins with the last `overlap` frames of the one
    before, encoded again (as the released code does; the paper carries the latents).
    Source: paper Algorithm 1, scripts/inference.py. Raises ValueError for unusable input or a model without audio.
    """
    if not models.transformer.hears:
        raise ValueError(
            "generate_video was given the plain base; load an adapter, or use generate_clips for the base."
        )
    request = ClipRequest(image, wave, prompt)
    height, width = _size(models, image, config)
    wanted = _frames_of(wave)
    length = config.chunk_frames or frames_for_tokens(config.max_tokens, height, width)
    chunks = plan_chunks(wanted, length, config.overlap)
    kept = _ChunkCache.of(cache_folder, models, request, config)
    scene = _prepare(models, [request], config, chunks[-1].audio_stop)
    made: list[np.ndarray] = []
    tail = torch.empty(0)
    bar: ProgressBar[None] = progress(len(chunks) * config.steps, "generate")
    with bar:
        for chunk in chunks:
            done = kept.load(chunk)
            if done is None:
                prefix = models.vae.encode(tail[None].to(models.device)) if chunk.index else scene.reference
                video = _make_chunk(models, scene, chunk, prefix, [_seed(request, config)], config, bar.update)[0]
                done = to_frames(video[:, chunk.prefix_frames :]), video[:, -config.overlap :].float().cpu()
                kept.save(chunk, *done)
            else:
                bar.update(config.steps)
            frames, tail = done
            made.append(frames)
    return np.concatenate(made)[:wanted]


@torch.inference_mode()
def generate_clips(
    models: AvatarModels,
    requests: Sequence[ClipRequest | tuple[np.ndarray, np.ndarray, str]],
    config: GenerateConfig,
) -> list[np.ndarray]:
    """Make short videos in one batch, a single chunk each: uint8 RGB (ceil(N / 640), H, W, 3) per request.

    A request gives the same video in any batch. The plain base uses the prompt only (the image for its size). Raises
    ValueError unless all sounds have the same number of frames and all pictures end in the same size.
    """
    batch = [ClipRequest(*request) for request in requests]
    sizes = {_size(models, request.image, config) for request in batch}
    lengths = {_frames_of(request.wave) for request in batch}
    if len(sizes) != 1 or len(lengths) != 1:
        raise ValueError(f"A batch of {len(batch)} has sizes {sizes} and lengths {lengths}; expected one of each.")
    wanted = lengths.pop()
    chunk = Chunk(0, 0, math.ceil(wanted / 4) * 4, FIRST_PREFIX)
    scene = _prepare(models, batch, config, chunk.audio_stop)
    seeds = [_seed(request, config) for request in batch]
    videos = _make_chunk(models, scene, chunk, scene.reference, seeds, config)
    return [to_frames(video[:, chunk.prefix_frames :])[:wanted] for video in videos]


def write_avatar_video(path: Path | str, frames: np.ndarray, wave: np.ndarray) -> None:
    """Write generated frames with their sound, both from time 0: frame i shows samples 640 i to 640 (i + 1).

    The sound is cut or padded with silence to the picture's length. Errors as of common.media.write_video.
    """
    samples = len(frames) * SAMPLES_PER_FRAME
    write_video(path, frames, np.pad(wave[:samples], (0, max(0, samples - len(wave)))))


def _frames_of(wave: np.ndarray) -> int:
    if wave.ndim != 1 or not len(wave):
        raise ValueError(f"Sound of shape {wave.shape}; expected (samples,) of mono 16 kHz, not empty.")
    return math.ceil(len(wave) / SAMPLES_PER_FRAME)


def _size(models: AvatarModels, image: np.ndarray, config: GenerateConfig) -> tuple[int, int]:
    size = config.height, config.width
    if size == (0, 0):
        size = choose_size(image.shape[0], image.shape[1], config.longest_side)
    unit = models.vae.stride[1] * models.transformer.dit.config.patch_size[1]
    if any(side <= 0 or side % unit for side in size):
        raise ValueError(f"Picture size {size[0]}x{size[1]}; expected positive multiples of {unit}.")
    return size


def _seed(request: ClipRequest, config: GenerateConfig) -> int:
    return config.seed if request.seed is None else request.seed


def _prepare(models: AvatarModels, requests: Sequence[ClipRequest], config: GenerateConfig, frames: int) -> _Scene:
    """Encode what conditions the videos, once: text, picture, and the sound padded with silence to `frames`."""
    height, width = _size(models, requests[0].image, config)
    words = models.text_encoder.encode([*(request.prompt for request in requests), config.negative_prompt])
    text = pad_text(words, models.text_encoder.text_length).to(models.device)
    pictures = torch.stack([fit_image(request.image, height, width) for request in requests])
    audio = None
    if models.transformer.hears:
        states = torch.stack([models.audio_encoder.encode(request.wave, frames) for request in requests])
        audio = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1).to(models.device)
    return _Scene(
        text=text[:-1],
        negative_text=text[-1:].expand(len(requests), -1, -1),
        reference=models.vae.encode(pictures[:, :, None].to(models.device)),
        audio=audio,
    )


def _make_chunk(
    models: AvatarModels,
    scene: _Scene,
    chunk: Chunk,
    prefix: Tensor,
    seeds: Sequence[int],
    config: GenerateConfig,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Sample and decode one chunk of B videos: (B, 3, frames, H, W) in [-1, 1], given frames included."""
    shape = (scene.reference.shape[1], chunk.latent_frames, *scene.reference.shape[3:])
    noise = torch.stack([chunk_noise(seed, chunk.index, shape) for seed in seeds]).to(models.device)
    # One zero frame stands before the sound, so the chunk's window begins one frame later in this tensor.
    first = chunk.audio_start - chunk.prefix_frames + FIRST_PREFIX
    audio = None if scene.audio is None else scene.audio[:, first : first + chunk.frames]
    latents = denoise(
        models.transformer,
        noise,
        scene.text,
        scene.negative_text,
        condition=build_condition(scene.reference, chunk.latent_frames, chunk.prefix_latents)
        if audio is not None
        else None,
        audio=audio,
        prefix=prefix if audio is not None else None,
        steps=config.steps,
        shift=config.shift,
        guidance=Guidance(config.text_guidance, config.audio_guidance),
        on_step=on_step,
    )
    return models.vae.decode(latents)


def chunk_noise(seed: int, chunk: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of one chunk, the same on every device and in whatever order chunks are made."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + chunk)
    return torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class _ChunkCache:
    """Finished chunks of one video in a folder named by everything that decides its pixels; None keeps nothing."""

    folder: Path | None

    @staticmethod
    def of(folder: Path | None, models: AvatarModels, request: ClipRequest, config: GenerateConfig) -> "_ChunkCache":
        inputs = [
            hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest() for part in (request.image, request.wave)
        ]
        sampling = {name: value for name, value in asdict(config).items() if name != "load"}  # in the identity
        key = [models.identity, request.prompt, _seed(request, config), request.image.shape, inputs, sampling]
        return _ChunkCache(folder and Path(folder) / fingerprint(key))

    def _file(self, chunk: Chunk) -> Path | None:
        return self.folder and self.folder / f"chunk_{chunk.index:04d}.safetensors"

    def load(self, chunk: Chunk) -> tuple[np.ndarray, Tensor] | None:
        file = self._file(chunk)
        if file is None or not file.exists():
            return None
        kept = load_file(file)
        return kept["frames"].numpy(), kept["tail"]

    def save(self, chunk: Chunk, frames: np.ndarray, tail: Tensor) -> None:
        file = self._file(chunk)
        if file is not None:
            with atomic_write(file) as temporary:
                save_file({"frames": torch.from_numpy(frames), "tail": tail.contiguous()}, temporary)
