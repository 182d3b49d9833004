"""Calibration of the residual cache: the polynomial of a model, and the fidelity at each threshold.

See omniavatar/model/residual_cache.py. Fidelity is PSNR to the video with all steps computed; how much of the
difference is visible has to be judged by eye.
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
    """One threshold: steps it computes, and PSNR to the videos with all steps, mean and minimum over frames, dB."""

    threshold: float
    computed: int
    psnr: float
    lowest: float


@dataclass(frozen=True)
class Calibration:
    """A fitted polynomial, highest power first; `error` is its root mean square deviation from the measured changes,
    whose mean is `change`."""

    polynomial: tuple[float, ...]
    error: float
    change: float
    steps: int
    trials: tuple[Trial, ...]

    def lines(self) -> Iterator[str]:
        """A table of the trials, and the setting to generate with."""
        yield f"mean change of the residual per step: {self.change:.3f}; error of its prediction: {self.error:.3f}"
        yield "threshold  steps computed  PSNR to all steps, mean and lowest of a frame"
        for trial in self.trials:
            steps = f"{trial.computed} of {self.steps}"
            yield f"{trial.threshold:>9g}  {steps:>14}  {trial.psnr:6.1f} {trial.lowest:6.1f} dB"
        factors = ",".join(f"{factor:g}" for factor in self.polynomial)
        yield f'--set "generate.cache_polynomial=[{factors}]" --set generate.cache_threshold=...'


def calibrate(
    models: AvatarModels, requests: Sequence[ClipRequest], config: GenerateConfig, thresholds: Sequence[float]
) -> Calibration:
    """Generate every video with all steps, fit the polynomial to their changes, and generate it with each threshold.

    Raises ValueError for fewer than six steps, and what `generate_video` raises.
    """
    every_step = replace(config, cache_threshold=1.0, cache_polynomial=(1.0,))
    with measured_changes(models.transformer) as changes:
        whole = _generate(models, requests, every_step)
    # Rounded as printed, so that the fidelity is that of the printed polynomial.
    polynomial = tuple(float(f"{factor:g}") for factor in fit_polynomial(changes))
    measured = np.array(changes)
    errors = np.polyval(polynomial, measured[:, 0]) - measured[:, 1]
    predicted = modulation_changes(models.transformer, config.steps, config.shift)
    trials = []
    for threshold in thresholds:
        cached = replace(config, cache_threshold=threshold, cache_polynomial=polynomial)
        videos = _generate(models, requests, cached)
        fidelity = [psnr(*pair) for pair in zip(np.concatenate(videos), np.concatenate(whole), strict=True)]
        computed = sum(plan_steps(predicted, threshold, polynomial))
        trials.append(Trial(threshold, computed, float(np.mean(fidelity)), min(fidelity)))
    error = float(np.sqrt(np.mean(errors**2)))
    return Calibration(polynomial, error, float(measured[:, 1].mean()), config.steps, tuple(trials))


def _generate(models: AvatarModels, requests: Sequence[ClipRequest], config: GenerateConfig) -> list[np.ndarray]:
    return [generate_video(models, request.image, request.wave, request.prompt, config) for request in requests]


def listed_requests(samples: Path) -> list[ClipRequest]:
    """The samples of a list. Raises what reading them raises, and InputError for a sample without an image."""
    requests = []
    for sample in read_samples(samples):
        if sample.error:
            raise InputError(f"{samples}, {sample.name}: {sample.error}.")
        inputs = read_request(sample.request)
        if inputs.image is None:
            raise InputError(f"{samples}, {sample.name} has no image; calibration does not draw one, so add it.")
        requests.append(ClipRequest(inputs.image, inputs.audio.wave, inputs.prompt))
    return requests


def clip_requests(run: RunFolder, clips: int, frames: int) -> list[ClipRequest]:
    """First frame, audio and caption of the first held-out clips of a run that are long enough for `frames` frames.

    Raises ValueError when there is none.
    """
    rows = read_clips(run.clips_parquet) if run.clips_parquet.exists() else []
    test = [row for row in rows if row["decision"] == "kept" and row["split"] == "test"]
    chosen = [row for row in test if row["duration"] * 25 >= frames + 1][:clips]
    if not chosen:
        raise InputError(
            f"{run.root} has no kept test clip of {frames + 1} frames to calibrate with; give another run by --run, "
            "or images and audio files by --list."
        )
    return [ClipRequest(*opening(run, row["clip_id"], frames), row["caption"] or "") for row in chosen]
