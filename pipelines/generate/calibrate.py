"""The polynomial of a model's residual cache, fitted to whole samplings, and what each threshold costs in likeness.

See omniavatar/model/residual_cache.py. Likeness is PSNR to the video of all steps:
how much of it is visible, eyes decide.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.clips import read_clips
from common.errors import InputError
from common.runs import RunFolder
from eval.metrics.fidelity import psnr
from omniavatar.config import GenerateConfig
from omniavatar.generate import generate_video
from omniavatar.model.residual_cache import fit_polynomial, measured_changes, modulation_changes, plan_steps
from omniavatar.models import AvatarModels
from omniavatar.video.chunks import ClipRequest
from omniavatar.video.inputs import read_request
from pipelines.generate.animate import opening
from pipelines.generate.sample_list import read_samples


@dataclass(frozen=True)
class Trial:
    """One threshold tried: steps it computes, and PSNR to the videos of all steps, mean and lowest of a frame, dB."""

    threshold: float
    computed: int
    psnr: float
    lowest: float


@dataclass(frozen=True)
class Calibration:
    """A fitted polynomial, highest power first; `error` is how far it is from the changes measured (root mean square),
    which were `change` on average."""

    polynomial: tuple[float, ...]
    error: float
    change: float
    steps: int
    trials: tuple[Trial, ...]

    def lines(self) -> Iterator[str]:
        """A table of the trials, and the setting to generate with."""
        yield f"a step changes what the blocks add by {self.change:.3f}; foretold with an error of {self.error:.3f}"
        yield "threshold  steps computed  PSNR to all steps, mean and lowest of a frame"
        for trial in self.trials:
            steps = f"{trial.computed} of {self.steps}"
            yield f"{trial.threshold:>9g}  {steps:>14}  {trial.psnr:6.1f} {trial.lowest:6.1f} dB"
        factors = ",".join(f"{factor:g}" for factor in self.polynomial)
        yield f'--set "generate.cache_polynomial=[{factors}]" --set generate.cache_threshold=...'


def calibrate(
    models: AvatarModels, requests: Sequence[ClipRequest], config: GenerateConfig, thresholds: Sequence[float]
) -> Calibration:
    """Make every video with all steps, fit the polynomial to what they show, and make it again with each threshold.

    Raises ValueError for fewer than six steps, and what `generate_video` raises.
    """
    every_step = replace(config, cache_threshold=1.0, cache_polynomial=(1.0,))
    with measured_changes(models.transformer) as changes:
        whole = _make(models, requests, every_step)
    # As printed, so that what is measured is what a user will get.
    polynomial = tuple(float(f"{factor:g}") for factor in fit_polynomial(changes))
    measured = np.array(changes)
    errors = np.polyval(polynomial, measured[:, 0]) - measured[:, 1]
    foreseen = modulation_changes(models.transformer, config.steps, config.shift)
    trials = []
    for threshold in thresholds:
        cached = replace(config, cache_threshold=threshold, cache_polynomial=polynomial)
        made = _make(models, requests, cached)
        likeness = [psnr(*pair) for pair in zip(np.concatenate(made), np.concatenate(whole), strict=True)]
        computed = sum(plan_steps(foreseen, threshold, polynomial))
        trials.append(Trial(threshold, computed, float(np.mean(likeness)), min(likeness)))
    error = float(np.sqrt(np.mean(errors**2)))
    return Calibration(polynomial, error, float(measured[:, 1].mean()), config.steps, tuple(trials))


def _make(models: AvatarModels, requests: Sequence[ClipRequest], config: GenerateConfig) -> list[np.ndarray]:
    return [generate_video(models, request.image, request.wave, request.prompt, config) for request in requests]


def listed_requests(samples: Path) -> list[ClipRequest]:
    """The samples of a list. Raises what reading them does, and InputError for one without a picture."""
    requests = []
    for sample in read_samples(samples):
        if sample.error:
            raise InputError(f"{samples}, {sample.name}: {sample.error}.")
        image, audio, prompt = read_request(sample.request)
        if image is None:
            raise InputError(f"{samples}, {sample.name} has no image; calibration does not draw one, so give it.")
        requests.append(ClipRequest(image, audio.wave, prompt))
    return requests


def clip_requests(run: RunFolder, clips: int, frames: int) -> list[ClipRequest]:
    """First frame, sound and caption of the first held-out clips of a run that are long enough for `frames` frames.

    Raises ValueError when there is none.
    """
    rows = read_clips(run.clips_parquet) if run.clips_parquet.exists() else []
    test = [row for row in rows if row["decision"] == "kept" and row["split"] == "test"]
    chosen = [row for row in test if row["duration"] * 25 >= frames + 1][:clips]
    if not chosen:
        raise InputError(
            f"{run.root} has no kept test clip of {frames + 1} frames to calibrate with; name a run that has by --run, "
            "or give pictures and sounds by --list."
        )
    return [ClipRequest(*opening(run, row["clip_id"], frames), row["caption"] or "") for row in chosen]
