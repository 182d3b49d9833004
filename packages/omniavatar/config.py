"""Settings of loading and generation, presets by name, model roles, and the request for one video."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import InputError
from common.ranges import Count, Positive, Signed

ROLES: Mapping[str, str] = {
    "transformer": "no training, no generation",
    "vae": "no latents, so no training and no generation",
    "text_encoder": "no latents, so no training and no generation",
    "tokenizer": "no latents, so no training and no generation",
    "scheduler": "no consequence, the noise schedule is the recipe's",
    "adapter": "training starts from a new one",
    "audio_encoder": "no latents, so no training and no generation",
}
"""Model roles of the system, and the consequence for a run without each."""

ENCODER_ROLES = ("vae", "text_encoder", "tokenizer", "audio_encoder")
BASE_ROLES = ("transformer", *ENCODER_ROLES)
GENERATION_ROLES = (*BASE_ROLES, "adapter")

AudioEntry = Literal["multi", "single", "cross_attention"]

Recompute = Literal["none", "full", "selective", "offload"]

Variant = Literal["lora", "full", "frozen_dit", "base"]

MemoryMode = Literal[
    "auto", "resident", "text_streamed", "tiled", "offloaded", "offloaded_tiled", "int8", "int8_offloaded"
]

FIRST_AUDIO_BLOCK = 2


def audio_blocks(num_layers: int, entry: AudioEntry = "multi") -> range:
    """The 0-based transformer blocks that get audio.

    "From the second to the middle layer" (paper 3.2) is 2 .. N/2 inclusive; "single" is the middle one, N/2.
    """
    middle = num_layers // 2
    return range(middle if entry == "single" else FIRST_AUDIO_BLOCK, middle + 1)


@dataclass(frozen=True)
class LoadConfig:
    """Device, precision and distribution of the networks; wav2vec2 is always float32.

    `device` "auto" is a GPU where there is one; `dtype` "auto" is bf16 there and fp32 on a CPU. `attention`: see
    `choose_attention`. `round_timestep`: see AvatarTransformer, for the weights published by the authors.

    `memory` names a combination of the five settings after it (planning/modes.py) that fits the device; "auto" takes
    the first that fits what is free, "resident" leaves them as they are set. `text_encoder` "streamed": umT5 stays a
    map of its file, and each of its blocks is copied to the device while it runs: same output. `tiled_vae` runs the VAE
    on tiles of at most `largest_tile` latents: less memory, slightly different latents and pixels. `offload` "blocks"
    keeps the transformer's blocks in host memory and copies each to the GPU when it runs: same output, GPU memory for
    two blocks. `quantize` "int8" stores the weights of the blocks in 8 bits, a scale for each output: half the memory,
    other pixels (docs/memory.md).

    `share_sequence`: the processes of a torchrun call generate one video together, each on its GPU with a part of the
    tokens, and rank 0 writes it; `share_branches`: each takes some of the two or three branches of guidance, with all
    tokens. `shard`, on top of `share_sequence`: each process keeps a part of every block of transformer and text
    encoder, and blocks are gathered as they run; with `offload` "blocks" the parts are in host memory. Processes load
    one after the other, so a machine holds the whole weights once beside the parts. `merge` False keeps the adapter's
    LoRA apart from the weights: more work, and in bf16 no rounding of their sum. `extra_lora` is the file of a LoRA for
    the base, merged with the factor `extra_lora_scale` (see loras.py); for one distilled to few steps set steps, shift
    and guidance to suit.
    """

    device: str = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    attention: str = "auto"
    round_timestep: bool = False
    memory: MemoryMode = "auto"
    text_encoder: Literal["resident", "streamed"] = "resident"
    tiled_vae: bool = False
    largest_tile: Count = 2560
    offload: Literal["none", "blocks"] = "none"
    quantize: Literal["none", "int8"] = "none"
    share_sequence: bool = False
    share_branches: bool = False
    shard: bool = False
    merge: bool = True
    extra_lora: str = ""
    extra_lora_scale: Signed = 1.0

    def __post_init__(self) -> None:
        if self.share_branches and self.share_sequence:
            raise InputError(
                "load.share_sequence and load.share_branches are both set; processes share either the tokens or the "
                "branches of guidance, so unset one."
            )
        if self.shard and not self.share_sequence:
            raise InputError(
                "load.shard is set without load.share_sequence: blocks are sharded over the processes that generate "
                "one video together; set both and start with torchrun, or use load.offload=blocks on one GPU."
            )


_LATER = ("memory", "text_encoder", "largest_tile", "quantize")


def decisive(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a GenerateConfig, as a dict, for a fingerprint: without settings of loading that came later and
    have their defaults, so that outcomes from before stay valid."""
    usual = asdict(LoadConfig())
    load = {k: v for k, v in sampling["load"].items() if k not in _LATER or v != usual[k]}
    return {**sampling, "load": load}


@dataclass(frozen=True)
class Request:
    """One video to generate, as files: `image` an image (or a video, whose first frame is used), `audio` an audio or
    video file. Without an image the base draws one from the prompt; without audio the video has `seconds` of
    silence."""

    image: Path | None = None
    audio: Path | None = None
    prompt: str = ""
    seconds: float = 0.0


# Terms of Wan's default negative prompt and of upstream's.
NEGATIVE_PROMPT = (
    "oversaturated colours, overexposure, fast moving background, fast camera movement, scene cut, subtitles, "
    "still picture, blurred details, painting, cartoon style, compression artefacts, grey cast, ugly, deformed, "
    "badly drawn hands, extra or fused fingers, badly drawn face, deformed limbs, three legs, crowded background, "
    "walking backwards"
)
# `negative_prompt` of configs/inference.yaml and inference_1.3B.yaml as released (github.com/Omni-Avatar/OmniAvatar).
PUBLISHED_NEGATIVE_PROMPT = Path(__file__).with_name("published_negative_prompt.txt").read_text("utf-8").strip()


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of sampling. Defaults are the preset `default`; chunk_frames 0 is what max_tokens allows.

    Only steps from the fraction `guidance_from` of all to `guidance_to` are guided; `batched_guidance` computes the
    branches of a step in one forward pass. `cache_threshold` above 0 skips steps whose predicted change since the last
    computed one is smaller; the polynomial that predicts it is known for Wan2.1, `cache_polynomial` (highest power
    first) is for other models: see residual_cache.py. Chunks share `overlap` frames (4n + 1), carried over as pixels
    (decoded and encoded again) or as latents: `overlap_kind`. The last `blend` frames (4n, 0: none) of a chunk are
    generated by the next chunk as well, and the two versions are faded (fewer in short chunks, see frames_to_remake).
    `colour_match` corrects the colours towards each chunk's end to those of the image. The last (or only) chunk ends
    with the audio; with `full_last_chunk` it is as long as the others and cut afterwards, as released. height and width
    (both or none) replace the size chosen from the buckets of `longest_side` (720 or 1280). `lead_in` seconds of
    silence precede the audio; with `keep_reference` the reference stays as frame 0 and the audio starts after it.
    Without an image the base draws one: the middle frame of a video of `portrait_frames` (4n + 1), 1 for a base that
    was trained on images too, as Wan was.
    """

    load: LoadConfig = LoadConfig()
    steps: Count = 25
    shift: Positive = 5.0
    text_guidance: float = 4.5
    audio_guidance: float = 4.5
    guidance_from: float = 0.0
    guidance_to: float = 1.0
    batched_guidance: bool = False
    cache_threshold: float = 0.0
    cache_polynomial: tuple[Signed, ...] = ()
    overlap: Count = 13
    overlap_kind: Literal["pixel", "latent"] = "pixel"
    blend: int = 12
    colour_match: Literal["none", "reference"] = "reference"
    lead_in: float = 0.0
    keep_reference: bool = False
    portrait_frames: int = 1
    chunk_frames: int = 0
    full_last_chunk: bool = False
    max_tokens: Count = 30_000
    longest_side: Count = 720
    height: int = 0
    width: int = 0
    seed: int = 42
    negative_prompt: str = NEGATIVE_PROMPT

    def __post_init__(self) -> None:
        if not 0 <= self.guidance_from <= self.guidance_to <= 1:
            raise InputError(
                f"guidance_from={self.guidance_from}, guidance_to={self.guidance_to}; expected shares of the steps, "
                "0 <= guidance_from <= guidance_to <= 1."
            )
        if self.cache_threshold < 0:
            raise InputError(f"cache_threshold is {self.cache_threshold}; expected 0 (off) or a small positive number.")
        if self.portrait_frames < 1 or self.portrait_frames % 4 != 1:
            raise InputError(f"portrait_frames is {self.portrait_frames}; expected 4n + 1 frames.")
        if self.blend % 4 or self.blend < 0:
            raise InputError(f"blend is {self.blend}; expected 0 (no blending) or 4n frames.")
        if self.lead_in < 0:
            raise InputError(f"lead_in is {self.lead_in}; expected seconds of silence, 0 or more.")
        if self.overlap_kind == "latent" and self.colour_match != "none":
            raise InputError(
                f"overlap_kind=latent carries latents over, which colour_match={self.colour_match} cannot correct; set "
                "colour_match=none."
            )
        if bool(self.height) != bool(self.width):
            raise InputError(f"height={self.height}, width={self.width}; give both, or neither.")


_PLAIN_JOINS = {"blend": 0, "colour_match": "none"}


# A preset fixes the procedure. Shift, guidance and sizes depend on the weights and stay the recipe's, and so does the
# negative prompt except in `official`; the defaults above are upstream's.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {
        "steps": 25, "overlap": 13, "overlap_kind": "pixel", "blend": 12, "colour_match": "reference",
        "full_last_chunk": False, "lead_in": 0.0, "keep_reference": False,
    },
    # scripts/inference.py with configs/inference.yaml as released: 50 steps (the command in its README says 25).
    "official": {
        "steps": 50, "overlap": 13, "overlap_kind": "pixel", **_PLAIN_JOINS,
        "full_last_chunk": True, "lead_in": 0.3, "keep_reference": True,
        "negative_prompt": PUBLISHED_NEGATIVE_PROMPT,
    },
    # Algorithm 1. Its one long noise is equivalent to noise per chunk: the part under the overlap is never used.
    "paper": {
        "steps": 25, "overlap": 13, "overlap_kind": "latent", **_PLAIN_JOINS,
        "full_last_chunk": False, "lead_in": 0.0, "keep_reference": False,
    },
}  # fmt: skip


def preset(name: str) -> Mapping[str, Any]:
    """The settings of a preset, by field of GenerateConfig. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"There is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    return PRESETS[name]
