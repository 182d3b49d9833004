"""Configuration of a training, the recipe's `train` section, and which settings do not affect the result."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.errors import InputError
from common.ranges import Count, Positive, Share
from omniavatar.config import AudioEntry, Compile, Recompute, Variant

Fused = Literal["auto", "on", "off"]

LORA_RANK, LORA_ALPHA = 128, 64.0  # the paper's


@dataclass(frozen=True)
class ModelConfig:
    """Source of the weights, and which of them are trained.

    `variant`: "base" is plain text-to-video; the others take audio and train LoRA (the paper's), all weights ("full")
    or the audio modules and patch embedding alone ("frozen_dit"). `init`: "random" reads only the configuration of
    `base`. `adapter`: folder to continue from, with its own `audio_entry`, rank and alpha (others are refused); None
    starts a new adapter, whose first output equals the base model's. `audio_entry`: how audio is injected; "multi" is
    the paper's, the others are its ablations. `gradient_checkpointing`: "full" keeps only the input of each block,
    "selective" also the output of self-attention (one more tensor of the tokens' size for a seventh less work at 14B),
    "none" keeps all activations, "offload" keeps the inputs in host memory. `round_timestep`: as upstream does, for
    continuing its published weights.
    """

    base: Path = Path()
    variant: Variant = "lora"
    init: Literal["path", "random"] = "path"
    adapter: Path | None = None
    lora_rank: Count | None = None  # None: the adapter's, LORA_RANK of a new one
    lora_alpha: Positive | None = None  # None: the adapter's, LORA_ALPHA of a new one
    audio_entry: AudioEntry = "multi"
    gradient_checkpointing: Recompute = "none"
    round_timestep: bool = False

    @property
    def plain(self) -> bool:
        """True for text-to-video without image and audio."""
        return self.variant == "base"


@dataclass(frozen=True)
class DataConfig:
    """Which windows of the clips are trained, and how many make up a step.

    `durations`: the window is the longest of these that fits the clip and the token cap, so that many clips share few
    lengths; () uses each clip's own length. `audio_encoder`: folder of the wav2vec2 for shards that hold waveforms
    instead of its features. `reader`: "webdataset" reads through the plain webdataset package, which streams whole
    shards; same samples, slower.
    """

    split: str = "train"
    batch: Count = 1  # samples of one micro-batch; all have the same shape
    micro_batches: Count = 1  # micro-batches of one optimizer step, over all ranks and accumulation
    max_latents: int = 0  # longest window in latent frames; 0 = as the token cap allows
    min_latents: Count = 1  # shortest window in latent frames; clips without one are left out
    durations: tuple[Count, ...] = ()  # lengths of windows in latent frames
    longest_side: int = 0  # in pixels; clips with larger frames are left out; 0 = none are
    max_tokens: Count = 30_000
    token_rule: Literal["strict", "official"] = "strict"
    shuffle_audio: bool = False  # control experiment: every clip gets another clip's audio
    audio_encoder: Path | None = None
    readers: Count = 1  # threads that read ahead; the samples are the same at any number
    reader: Literal["windows", "webdataset"] = "windows"
    max_bad: int = 100  # unreadable samples before the training stops

    def __post_init__(self) -> None:
        wrong = [length for length in self.durations if length < 1]
        if wrong:
            raise InputError(f"durations holds {wrong[0]}; expected latent frames, 1 or more")
        if self.readers < 1:
            raise InputError(f"readers is {self.readers}; expected at least 1")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Rates and ranges of everything that is drawn at random."""

    prefix: tuple[int, int] = (1, 4)  # clean latent frames at the start, both ends included
    audio_dropout: Share = 0.1
    text_dropout: Share = 0.1
    zero_first_audio: Share = (
        0.5  # how often a sample with a prefix of one gets the zero first audio frame of inference
    )
    first_reference: Share = 0.0  # how often the reference is the clip's first frame instead of a random one
    shift: Positive = 5.0
    sigma: Literal["grid", "uniform", "logit_normal"] = "grid"
    weighting: Literal["bell", "uniform"] = "bell"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up, then constant, then (over the last part of the run) linear to zero."""

    lr: float = 5e-5
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: float = 0.01  # not on tensors of one dimension
    warmup: int = 100  # steps
    decay: Share = 0.0  # last fraction of the run over which the rate falls to zero; 0 = constant

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise InputError(f"decay is {self.decay}; expected a fraction of the run between 0 and 1")


@dataclass(frozen=True)
class EngineConfig:
    """How the model is sharded and in which precision it runs.

    `sequence_parallel`: number of neighbouring ranks that share each sample, its tokens divided among them; for samples
    too long for one. `build`: "sharded" builds a frozen base that no rank ever holds whole, at stage 3; "auto" does so
    when several ranks load a base of 8 GB or more. `hpz_ranks` (stage 3): number of neighbouring ranks, those of one
    machine, that hold a second copy of the weights among them and gather from it instead of over the network.
    `offload_parameters` (stage 3), `offload_optimizer` (1 to 3): shards, or moments and master copy, are kept in host
    memory. `attention`: the kernel, see `choose_attention`. `compile`: torch.compile of the transformer's blocks, see
    omniavatar/model/compiled.py; at stage 3 a block is then gathered as a whole. `pack_text`: attend to the text
    without most of its padding, see omniavatar/model/cache.py. Buckets and limits count elements and change speed and
    memory, not results.
    """

    stage: Literal[0, 1, 2, 3] = 3
    autocast: Literal["none", "bf16"] = "none"
    frozen_dtype: Literal["fp32", "bf16"] = "fp32"
    clip: Positive = 1.0  # largest norm of the gradient
    threads: Count = 1  # CPU threads of each process
    sequence_parallel: Count = 1
    build: Literal["auto", "whole", "sharded"] = "auto"
    hpz_ranks: Count = 1
    offload_parameters: bool = False
    offload_optimizer: bool = False
    attention: str = "native"
    compile: Compile = "off"
    pack_text: bool = False
    fused_optimizer: Fused = "auto"  # AdamW as one kernel; "auto" is on with a GPU, off on a CPU
    reduce_bucket: Count = 50_000_000  # gradients reduced at a time; a LoRA of 14B has 600 million of them in all
    prefetch_bucket: Count = 50_000_000  # stage 3: weights gathered ahead of their use
    live_parameters: int = 1_000_000_000  # stage 3: gathered weights kept for the next use
    persistent_below: int = 100_000  # stage 3: smaller tensors are whole on every rank
    # Seconds a collective may wait; more than fault_tolerance.stall_seconds, whose error names the stalled rank.
    collective_timeout: Positive = 3600.0

    def __post_init__(self) -> None:
        for name in ("sequence_parallel", "hpz_ranks", "reduce_bucket"):
            if getattr(self, name) < 1:
                raise InputError(f"engine.{name} is {getattr(self, name)}; expected at least 1")
        needs = {"build": self.build == "sharded", "hpz_ranks": self.hpz_ranks > 1}
        needs["offload_parameters"] = self.offload_parameters
        for name, asked in needs.items():
            if asked and self.stage < 3:
                raise InputError(f"engine.{name} is {getattr(self, name)} at stage {self.stage}; it needs stage 3")
        if self.offload_optimizer and self.stage == 0:
            raise InputError("engine.offload_optimizer is True at stage 0; it needs stage 1, 2 or 3")


# Placement and speed only: a training resumes when these change.
WITHOUT_EFFECT = (
    "threads",
    "sequence_parallel",
    "build",
    "hpz_ranks",
    "offload_parameters",
    "offload_optimizer",
    "attention",
    "compile",
    "pack_text",
    "fused_optimizer",
    "reduce_bucket",
    "prefetch_bucket",
    "live_parameters",
    "persistent_below",
    "collective_timeout",
)


@dataclass(frozen=True)
class ValidationConfig:
    """`every` counts steps, 0 = never. The first `samples` clips of `split` are used, at each of `sigmas`."""

    every: int = 0
    split: str = "test"
    samples: Count = 16
    sigmas: tuple[Share, ...] = (0.3, 0.6, 0.85)


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, besides the end of training. `keep`: number of checkpoints kept on disk.

    `export_every_steps`: save at these steps too, with a permanent copy of the adapter, for `omniavatar watch`; 0 = no.
    """

    every_steps: int = 0
    every_seconds: float = 300.0
    export_every_steps: int = 0
    keep: Count = 2
    export_dtype: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True)
class FaultToleranceConfig:
    """Limits of fault tolerance: loss spikes, suspect clips, restarts.

    A step whose loss exceeds `spike` times the median of the last `history` steps is skipped (0 = never; nor before
    half a history has been recorded). A clip that was the worst of `quarantine_after` skipped steps is not used any
    more. When a rank dies or hangs, all ranks are restarted together, `restarts` times without progress.
    """

    spike: float = 5.0
    history: Count = 100
    quarantine_after: Count = 3
    restarts: int = 3
    stall_seconds: Positive = (
        1800.0  # without progress of any rank, one is taken to hang; longer than any validation or save
    )
    save_seconds: float = 60.0  # for ranks that were asked to stop to save, before they are killed

    def __post_init__(self) -> None:
        if 0 < self.spike <= 1 or self.spike < 0:
            raise InputError(
                f"fault_tolerance.spike is {self.spike}; expected a factor above 1, or 0 to take every step"
            )
        if self.quarantine_after < 1:
            raise InputError(f"fault_tolerance.quarantine_after is {self.quarantine_after}; expected 1 or more")


@dataclass(frozen=True)
class Phase:
    """A part of a training. It ends after `steps`, or after `patience` validations in a row without a new lowest
    held-out loss, whichever comes first; 0 = no such limit. The last phase lasts to the end of the training.

    The other fields override those of the same name in `data`, `objective` and `optimizer`; None overrides nothing.
    """

    name: str
    steps: int = 0
    patience: int = 0
    longest_side: int | None = None
    max_tokens: Count | None = None
    durations: tuple[Count, ...] | None = None
    first_reference: Share | None = None
    audio_dropout: Share | None = None
    text_dropout: Share | None = None
    lr: float | None = None


def check_phases(phases: Sequence[Phase], validates: bool) -> None:
    """Raise InputError for a phase that would never end, and for two of the same name."""
    for number, phase in enumerate(phases):
        if phase.name in [other.name for other in phases[:number]]:
            raise InputError(f"two phases are named '{phase.name}'; give each its own name")
        if phase.steps < 0 or phase.patience < 0:
            raise InputError(
                f"phase '{phase.name}' has steps {phase.steps}, patience {phase.patience}; expected 0 or more"
            )
        last = number == len(phases) - 1
        if not last and not phase.steps and not phase.patience:
            raise InputError(f"phase '{phase.name}' has no end, but another one follows; set its steps or its patience")
        if phase.patience and not last and not validates:
            raise InputError(f"phase '{phase.name}' waits for the held-out loss; set validation.every above 0")


@dataclass(frozen=True)
class TrainConfig:
    """One training. `shards` empty means the run's own.

    It ends after `steps` or `minutes`, whichever comes first; 0 = no limit of that kind.
    """

    shards: Path = Path()
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    fault_tolerance: FaultToleranceConfig = field(default_factory=FaultToleranceConfig)
    phases: tuple[Phase, ...] = ()
    steps: int = 20_000
    minutes: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps <= 0 and self.minutes <= 0:
            raise InputError(f"steps is {self.steps} and minutes is {self.minutes}; set one of them above 0")
        check_phases(self.phases, self.validation.every > 0)
