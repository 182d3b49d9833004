"""Stage `refine`: the refinement of face and hands, trained on the generator's own samples, or on those of folds."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from audioavatar.config import GeneratorConfig, RefinementConfig
from audioavatar.driven.generator import MotionTransformer, fit_generator, sample_motion
from audioavatar.driven.refinement import Refiner, fit_refiner, refine
from common.progress import MetricLog
from common.runs import fingerprint, plain
from training.audioavatar.stage_file import about, checkpoint_of, read_tensors, save_tensors

logger = logging.getLogger(__name__)
SAMPLES = 2  # of every clip, each of another seed


def train_refiner(
    net: MotionTransformer,
    features: Sequence[Tensor],
    channels: Sequence[Tensor],
    moving: int,
    out: Path,
    made_of: str,
    sampling: GeneratorConfig,
    config: RefinementConfig = RefinementConfig(),
    seed: int = 0,
    log: MetricLog | None = None,
) -> Path:
    """Train on audio features (T, D) and fitted channels (T, C) of clips of one length, the first `moving` of them face
    and hands -> `out`. A file made of the same (`made_of`: a fingerprint of net and clips) stays."""
    key = fingerprint([made_of, plain(config), plain(sampling), seed, moving])
    if about(out).get("made_of") != key:
        samples, fitted, audio = list[Tensor](), list[Tensor](), list[Tensor]()
        folds = min(config.folds, len(features))
        for fold in range(folds):
            own, others = range(fold, len(features), folds), [n for n in range(len(features)) if n % folds != fold]
            maker = net
            if others:
                file = out.with_name(f"{out.stem}-fold-{fold}.safetensors")
                learnt = [features[n] for n in others], [channels[n] for n in others]
                maker = _fold_generator(net, *learnt, file, key, sampling, seed, log)
            pairs = [(n, number) for n in own for number in range(seed * SAMPLES, (seed + 1) * SAMPLES)]
            samples += [sample_motion(maker, features[n], sampling, number) for n, number in pairs]
            audio, fitted = audio + [features[n] for n, _ in pairs], fitted + [channels[n] for n, _ in pairs]
        checkpoint = checkpoint_of(out, key, "refine", log)
        refiner = fit_refiner(samples, audio, fitted, moving, config, seed, checkpoint)
        before, after = error(None, samples, audio, fitted, moving), error(refiner, samples, audio, fitted, moving)
        logger.info("refinement: mean error of its training samples %.4f before, %.4f after", before, after)
        note = {"made_of": key, "sizes": refiner.sizes(), "before": before, "after": after}
        save_tensors(out, refiner.state_dict(), note)
        if checkpoint:
            checkpoint.remove()
        for file in out.parent.glob(f"{out.stem}-fold-*.safetensors"):
            file.unlink()
    return out


def _fold_generator(
    net: MotionTransformer,
    features: Sequence[Tensor],
    channels: Sequence[Tensor],
    path: Path,
    key: str,
    config: GeneratorConfig,
    seed: int,
    log: MetricLog | None,
) -> MotionTransformer:
    """A generator like `net` of some of the clips, in `path` until the refiner is trained: a killed stage reads it."""
    generator = copy.deepcopy(net)
    if about(path).get("made_of") != key:
        checkpoint = checkpoint_of(path, key, "refine", log)
        save_tensors(path, fit_generator(features, channels, config, seed, checkpoint).state_dict(), {"made_of": key})
        if checkpoint:
            checkpoint.remove()
    generator.load_state_dict(read_tensors(path))
    return generator


def read_refiner(path: Path) -> Refiner:
    """What `train_refiner` wrote."""
    return Refiner.restored(about(path)["sizes"], read_tensors(path))


def error(
    refiner: Refiner | None, samples: Sequence[Tensor], audio: Sequence[Tensor], fitted: Sequence[Tensor], moving: int
) -> float:
    """Mean absolute error of face and hands, in standard deviations of each channel."""
    scale = torch.cat(list(fitted))[:, :moving].std(0).clamp_min(1e-6)
    values = [
        ((refine(refiner, m, a) if refiner else m) - f)[:, :moving].abs() / scale
        for m, a, f in zip(samples, audio, fitted, strict=True)
    ]
    return float(torch.cat(values).mean())
