"""Metrics of a training step: loss, samples and work summed over ranks, throughput and utilisation for the log."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from training.engine.zero import Engine
from training.planning.devices import Peak
from training.planning.flops import Work


@dataclass
class StepMetrics:
    """Sums over the samples of a step, of one rank until `over_ranks`. `clips` (id -> loss) are always this rank's."""

    loss: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0
    model_flops: float = 0.0  # operations of forward and backward passes
    executed_flops: float = 0.0  # the same plus what gradient checkpointing recomputes
    clips: dict[str, float] = field(default_factory=dict)

    def add(self, clips: list[str], losses: Tensor, tokens: int, work: Work) -> None:
        """Add a micro-batch: its clips with their losses (B,), tokens and work of one sample."""
        self.clips |= dict(zip(clips, losses.tolist(), strict=True))
        self.loss += losses.sum().item()
        self.samples += len(losses)
        self.tokens += tokens * len(losses)
        self.model_flops += work.step * len(losses)
        self.executed_flops += work.executed * len(losses)

    def over_ranks(self, engine: Engine) -> "StepMetrics":
        """The sums over all ranks; collective."""
        loss, samples, tokens, model_flops, executed_flops = engine.total(
            self.loss, self.samples, self.tokens, self.model_flops, self.executed_flops
        )
        return StepMetrics(loss, samples, tokens, model_flops, executed_flops, self.clips)

    @property
    def mean_loss(self) -> float:
        """Mean of the samples; every sample weighs the same, also those of a short micro-batch."""
        return self.loss / self.samples

    def speed(self, seconds: float, waited: float, ranks: int, peak: Peak) -> dict[str, Any]:
        """Numbers for the log, of sums over `ranks` in `seconds`, of which the first rank `waited` for data."""
        possible = seconds * ranks * peak.flops
        return {
            "tokens_per_s": self.tokens / seconds,
            "seconds": seconds,
            "data_wait": waited,
            "data_wait_share": waited / seconds,
            "mfu": self.model_flops / possible,
            "hfu": self.executed_flops / possible,
            "peak_tflops": peak.flops / 1e12,
            "peak_source": peak.source,
        }
