"""Settings of loading and generating, three presets of them by name, and the request for one video."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import InputError

ROLES: Mapping[str, str] = {
    "transformer": "no training, no generation",
    "vae": "no latents, so no training and no generation",
    "text_encoder": "no latents, so no training and no generation",
    "tokenizer": "no latents, so no training and no generation",
    "scheduler": "nothing is missing, the noise schedule is the recipe's",
    "adapter": "training starts from a fresh one",
    "audio_encoder": "no latents, so no training and no generation",
}
"""The models of the system, and what becomes of a run without each."""

ENCODER_ROLES = ("vae", "text_encoder", "tokenizer", "audio_encoder")
BASE_ROLES = ("transformer", *ENCODER_ROLES)
GENERATION_ROLES = (*BASE_ROLES, "adapter")

AudioEntry = Literal["multi", "single", "cross_attention"]

Recompute = Literal["none", "full", "selective", "offload"]

Variant = Literal["lora", "full", "frozen_dit", "base"]


@dataclass(frozen=True)
class LoadConfig:
    """Where and in which precision the networks run; wav2vec2 is always float32.

    `device` "auto" is a GPU where there is one; `dtype` "auto" is bf16 there and fp32 on a CPU. `attention`: see
    `choose_attention`; `round_timestep`: see AvatarTransformer, for the weights published by the authors; `tiled_vae`
    works on tiles: less memory, slightly other latents and pixels. `offload` "blocks" keeps the transformer's blocks in
    the memory of the host and copies each as it runs: same output, room for two of them, slower. `share_sequence`: the
    processes of a torchrun call make one video together, on a GPU each, and the first writes it; `share_branches`: they
    do so by taking the passes of guidance (two or three a step) in turn, each with all tokens. `shard` besides
    `share_sequence`: each keeps its part of the blocks of transformer and text encoder, and a block is gathered as it
    runs; with `offload` "blocks" these parts are in the memory of the host. They are loaded in turn, so a machine holds
    the weights once and its parts. `merge` False leaves the adapter's LoRA beside the weights: more work, and in bf16
    no rounding of their sum. `extra_lora` is the file of a LoRA for the base, merged `extra_lora_scale` times (see
    extra_lora.py); with one that needs few steps set steps, shift and guidance to suit.
    """

    device: str = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    attention: str = "auto"
    round_timestep: bool = False
    tiled_vae: bool = False
    offload: Literal["none", "blocks"] = "none"
    share_sequence: bool = False
    share_branches: bool = False
    shard: bool = False
    merge: bool = True
    extra_lora: str = ""
    extra_lora_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.share_branches and self.share_sequence:
            raise InputError(
                "load.share_sequence and load.share_branches are both set, and processes share either the tokens of a "
                "pass or the passes; unset one."
            )
        if self.shard and not self.share_sequence:
            raise InputError(
                "load.shard is set without load.share_sequence: the parts of a block lie with the processes that make "
                "one video together; set both and start by torchrun, or load.offload=blocks for one GPU."
            )


@dataclass(frozen=True)
class Request:
    """One video to make, as files: `image` a picture (or a video, whose first frame counts), `audio` a sound or video
    file. Without an image the base draws one from the prompt; without a sound `seconds` of silence are made."""

    image: Path | None = None
    audio: Path | None = None
    prompt: str = ""
    seconds: float = 0.0


# What a talking portrait should not look like; the points of Wan's default list and of upstream's.
NEGATIVE_PROMPT = (
    "oversaturated colours, overexposure, fast moving background, fast camera movement, scene cut, subtitles, "
    "still picture, blurred details, painting, cartoon style, compression artefacts, grey cast, ugly, deformed, "
    "badly drawn hands, extra or fused fingers, badly drawn face, deformed limbs, three legs, crowded background, "
    "walking backwards"
)


@dataclass(frozen=True)
class GenerateConfig:
    """How to sample. Defaults are the preset `default`; chunk_frames 0 means what max_tokens allows.

    Steps from the share `guidance_from` of all to `guidance_to` are guided; `batched_guidance` computes the passes of a
    step in one forward. `cache_threshold` above 0 leaves out steps whose foretold change since the last computed one is
    smaller; the polynomial that foretells it is known for Wan2.1, `cache_polynomial` (highest power first) is for other
    models: see residual_cache.py. Chunks share `overlap` frames (4n + 1), handed on as pixels (decoded and encoded
    again) or as latents: `overlap_kind`. The last `blend` frames (4n, 0: none) of a chunk are not handed on but made by
    the next as well, and one fades into the other there (short chunks: fewer, see frames_to_remake); `colour_match`
    pulls the colours at each chunk's end back to the picture. The last (or only) chunk ends with the audio; with
    `full_last_chunk` it is as long as the others and cut afterwards, as released. height and width (both or none)
    replace the size chosen from the buckets of `longest_side` (720 or 1280). `lead_in` seconds of silence come before
    the sound; with `keep_reference` the reference stays as frame 0 and the sound waits for it. Without a picture the
    base draws one: the middle of a video of `portrait_frames` (4n + 1), 1 for a base that was trained on pictures too,
    as Wan was.
    """

    load: LoadConfig = LoadConfig()
    steps: int = 25
    shift: float = 5.0
    text_guidance: float = 4.5
    audio_guidance: float = 4.5
    guidance_from: float = 0.0
    guidance_to: float = 1.0
    batched_guidance: bool = False
    cache_threshold: float = 0.0
    cache_polynomial: tuple[float, ...] = ()
    overlap: int = 13
    overlap_kind: Literal["pixel", "latent"] = "pixel"
    blend: int = 12
    colour_match: Literal["none", "reference"] = "reference"
    lead_in: float = 0.0
    keep_reference: bool = False
    portrait_frames: int = 1
    chunk_frames: int = 0
    full_last_chunk: bool = False
    max_tokens: int = 30_000
    longest_side: int = 720
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
            raise InputError(f"cache_threshold is {self.cache_threshold}; expected 0 (off) or a small number above.")
        if self.portrait_frames < 1 or self.portrait_frames % 4 != 1:
            raise InputError(f"portrait_frames is {self.portrait_frames}; expected 4n + 1 frames.")
        if self.blend % 4 or self.blend < 0:
            raise InputError(f"blend is {self.blend}; expected 0 (chunks are cut) or 4n frames.")
        if self.lead_in < 0:
            raise InputError(f"lead_in is {self.lead_in}; expected seconds of silence, 0 or more.")
        if self.overlap_kind == "latent" and self.colour_match != "none":
            raise InputError(
                f"overlap_kind=latent hands on latents, out of reach of colour_match={self.colour_match}; set "
                "colour_match=none."
            )
        if bool(self.height) != bool(self.width):
            raise InputError(f"height={self.height}, width={self.width}; give both, or neither.")


_PLAIN_JOINS = {"blend": 0, "colour_match": "none"}


# What a preset fixes is the procedure. Shift, guidance and sizes belong to the weights and stay the recipe's; the
# defaults above are upstream's for all of them.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {
        "steps": 25, "overlap": 13, "overlap_kind": "pixel", "blend": 12, "colour_match": "reference",
        "full_last_chunk": False, "lead_in": 0.0, "keep_reference": False,
    },
    # scripts/inference.py with configs/inference.yaml as released: 50 steps (the command in its README says 25).
    "official": {
        "steps": 50, "overlap": 13, "overlap_kind": "pixel", **_PLAIN_JOINS,
        "full_last_chunk": True, "lead_in": 0.3, "keep_reference": True,
    },
    # Algorithm 1. Its one long noise is as good as noise per chunk: what lies under the overlap is never used.
    "paper": {
        "steps": 25, "overlap": 13, "overlap_kind": "latent", **_PLAIN_JOINS,
        "full_last_chunk": False, "lead_in": 0.0, "keep_reference": False,
    },
}  # fmt: skip


def preset(name: str) -> Mapping[str, Any]:
    """The settings a preset fixes, by field of GenerateConfig. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"There is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    return PRESETS[name]
