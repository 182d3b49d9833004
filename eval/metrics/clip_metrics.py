"""The metrics of one clip: each a few lines of arithmetic on what the extractors took down."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from common.constants import FPS
from eval.features.records import NO_WEIGHTS, SET_METRICS, ClipFeatures, Metric, Record, UnscorableError
from eval.metrics.beats import alignment_excess, beat_alignment, motion_beats
from eval.metrics.body import BodyMotion, HandScores, body_motion, hand_scores, joint_runs
from eval.metrics.drift import ColourDrift, IdentityDrift, identity_drift, judge_colours
from eval.metrics.likeness import Likeness, first_face, likeness
from eval.metrics.lips import silent_lips
from eval.metrics.seam import SeamJumps, seam_jumps
from eval.metrics.sync import confidence_of
from perception.sync.lips import STEP

SPEAKING_PERCENTILE = 75
Value = tuple[float, int]


def clip_records(row: Mapping[str, Any], look: ClipFeatures, ready: Collection[str], protocol: str) -> list[Record]:
    """The per-clip metrics of one manifest row; `ready` names the extractors that have weights.

    A metric without a value says why in its status.
    """
    records = []
    for name, metric in CLIP_METRICS.items():
        value, n, status = _measure(metric, look, ready)
        seed = int(row["seed"] or 0)
        records.append(Record(row["method"], row["clip_id"], name, value, status, n, protocol, seed))
    return records


def _measure(metric: Metric, look: ClipFeatures, ready: Collection[str]) -> tuple[float | None, int, str]:
    if metric.extractor not in ready:
        return None, 0, NO_WEIGHTS
    if (status := look.own.status(metric.extractor)) != "ok":
        return None, 0, status
    assert metric.of is not None
    try:
        value, n = metric.of(look)
    except UnscorableError as reason:
        return None, 0, str(reason)
    return value, n, "ok"


def _stored(extractor: str, name: str, count: str, look: ClipFeatures) -> Value:
    found = look.own.of(extractor)
    return float(found[name]), int(found[count])


def _spoken_sync(look: ClipFeatures) -> Value:
    found, speech = look.own.of("sync"), look.own.of("sound")["speech"]
    frames = int(found["window_start"]) + np.arange(len(found["by_window"]))
    spoken = _at(speech, frames)
    return confidence_of(found["by_window"], spoken), int(spoken.sum())


def _lip_dynamics(look: ClipFeatures) -> Value:
    found, speech = look.own.of("lips"), look.own.of("sound")["speech"]
    changes = found["changes"]
    spoken = _at(speech, int(found["start"]) + STEP // 2 + np.arange(len(changes)))
    if not spoken.any():
        raise UnscorableError("no speech: nobody speaks while the face is seen")
    return float(np.percentile(changes[spoken], SPEAKING_PERCENTILE)), int(spoken.sum())


def _silent_lips(look: ClipFeatures) -> Value:
    found, quiet = look.own.of("lips"), look.own.of("sound")["quiet"]
    return silent_lips(found["changes"], quiet, int(found["start"]))


def _at(speech: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Whether somebody speaks in each of `frames`; nobody does beyond the end of the sound."""
    return np.concatenate([speech, np.zeros(1, bool)])[np.minimum(frames, len(speech))]


def _likeness(part: Callable[[Likeness], float], look: ClipFeatures) -> Value:
    """To the input picture, or to the first face of the real video where no picture is named."""
    source = look.picture if "identity" in look.picture.arrays or look.picture.failure else look.real
    found = likeness(look.own.of("identity")["embeddings"], first_face(source.of("identity")["embeddings"]))
    return part(found), found.frames


def _likeness_to_truth(look: ClipFeatures) -> Value:
    found = likeness(look.own.of("identity")["embeddings"], look.real.of("identity")["embeddings"])
    return found.mean, found.frames


def _fidelity(name: str, look: ClipFeatures) -> Value:
    values = look.own.of("fidelity")[name]
    return float(values.mean()), len(values)


def _hands(part: Callable[[HandScores], float], look: ClipFeatures) -> Value:
    real = look.real.arrays.get("pose", {}).get("poses")
    found = hand_scores(look.own.of("pose")["poses"], real)
    value = part(found)
    if np.isnan(value):
        raise UnscorableError("no hands: too few to measure, or no real video to compare with")
    return value, found.frames


def _body(part: Callable[[BodyMotion], float], look: ClipFeatures) -> Value:
    found = body_motion(look.own.of("pose")["poses"])
    return part(found), found.frames


def _beats(score: Callable[[np.ndarray, np.ndarray, float], float], look: ClipFeatures) -> Value:
    poses = look.own.of("pose")["poses"]
    runs, starts = joint_runs(poses)
    beats = motion_beats(runs, starts)
    return score(beats, look.own.of("sound")["onsets"], len(poses) / FPS), len(beats)


def _colour(part: Callable[[ColourDrift], float], look: ClipFeatures, extractor: str = "course") -> Value:
    found = judge_colours(look.own.of(extractor)["colours"])
    return part(found), found.windows


def _background(part: Callable[[ColourDrift], float]) -> Callable[[ClipFeatures], Value]:
    return partial(_colour, part, extractor="background")


def _identity(part: Callable[[IdentityDrift], float], look: ClipFeatures) -> Value:
    found = look.own.of("identity")
    drift = identity_drift(found["embeddings"], fps=float(found["fps"]))
    return part(drift), drift.windows


def _seam(part: Callable[[SeamJumps], float], look: ClipFeatures) -> Value:
    found = seam_jumps(look.own.of("course")["jumps"], look.seams)
    return part(found), len(found.z)


def _file_only(label: str, better: int, extractor: str, of: Callable[[ClipFeatures], Value], digits: int = 3) -> Metric:
    return Metric(label, better, extractor, digits, shown=False, of=of)


_SYNC = ("sync_c", "sync_d", "offset_zero", "sync_c_valid", "sync_offset")
_sync = {name: partial(_stored, "sync", name, "windows") for name in _SYNC}
CLIP_METRICS = {
    "sync_c": Metric("Sync-C", +1, "sync", of=_sync["sync_c"]),
    "sync_d": Metric("Sync-D", -1, "sync", of=_sync["sync_d"]),
    "offset_zero": Metric("Offset 0", +1, "sync", of=_sync["offset_zero"]),
    "iqa": Metric("IQA", +1, "quality", of=partial(_stored, "quality", "iqa", "frames")),
    "ase": Metric("ASE", +1, "quality", of=partial(_stored, "quality", "ase", "frames")),
    "csim": Metric("CSIM", +1, "identity", 3, of=partial(_likeness, lambda found: found.mean)),
    "ssim": Metric("SSIM", +1, "fidelity", 3, of=partial(_fidelity, "ssim")),
    "psnr": Metric("PSNR", +1, "fidelity", of=partial(_fidelity, "psnr")),
    "hkc": Metric("HKC", +1, "pose", 3, of=partial(_hands, lambda found: found.hkc)),
    "hkv": Metric("HKV", 0, "pose", 3, of=partial(_hands, lambda found: found.hkv)),
    "sync_c_valid": _file_only("Sync-C, valid windows only", +1, "sync", _sync["sync_c_valid"]),
    "sync_c_speech": _file_only("Sync-C, speech only", +1, "sync", _spoken_sync),
    "sync_offset": _file_only("Offset, frames", 0, "sync", _sync["sync_offset"]),
    "csim_truth": _file_only("CSIM to the real frames", +1, "identity", _likeness_to_truth),
    "csim_low": _file_only("CSIM, 5th percentile", +1, "identity", partial(_likeness, lambda found: found.low)),
    "face_coverage": _file_only("Frames with a face", +1, "identity", partial(_likeness, lambda found: found.coverage)),
    "lip_dynamics": _file_only("Lips while speaking", 0, "lips", _lip_dynamics),
    "silent_lips": _file_only("Lips in silence", -1, "lips", _silent_lips),
    "hkc_all": _file_only("HKC, missing hands 0", +1, "pose", partial(_hands, lambda found: found.hkc_all)),
    "hand_presence": _file_only("Hands in view", 0, "pose", partial(_hands, lambda found: found.presence)),
    "bas": _file_only("Beat alignment", +1, "pose", partial(_beats, lambda a, b, seconds: beat_alignment(a, b))),
    "bas_excess": _file_only("Beat alignment over shifted sound", +1, "pose", partial(_beats, alignment_excess)),
    "body_variance": _file_only("Body variance", 0, "pose", partial(_body, lambda found: found.variance)),
    "body_jerk": _file_only("Body jerk", 0, "pose", partial(_body, lambda found: found.jerk)),
    "wrist_path": _file_only("Wrist path per s", 0, "pose", partial(_body, lambda found: found.wrist_path)),
    "identity_drift": _file_only("CSIM per minute", +1, "identity", partial(_identity, lambda drift: drift.slope)),
    "identity_change": _file_only("CSIM, last less first", +1, "identity", partial(_identity, lambda d: d.change)),
    "colour_drift": _file_only("Lab per minute", -1, "course", partial(_colour, lambda drift: drift.total)),
    "contrast_drift": _file_only("Contrast per minute", 0, "course", partial(_colour, lambda drift: drift.contrast)),
    "saturation_drift": _file_only("Chroma per minute", 0, "course", partial(_colour, lambda drift: drift.saturation)),
    "colour_shift": _file_only("CIEDE2000, last to first", -1, "course", partial(_colour, lambda drift: drift.shift)),
    "background_drift": _file_only("Background, Lab per minute", -1, "background", _background(lambda d: d.total)),
    "background_shift": _file_only("Background, CIEDE2000", -1, "background", _background(lambda d: d.shift)),
    "seam_z": _file_only("Jump at joins, z", -1, "course", partial(_seam, lambda found: found.mean_z)),
    "seam_p": _file_only("Jump at joins, p", 0, "course", partial(_seam, lambda found: found.p)),
    "seam_p_latent": _file_only(
        "Jump at joins, p among frames that begin a latent", 0, "course", partial(_seam, lambda found: found.p_latent)
    ),
}  # fmt: skip
METRICS = SET_METRICS | CLIP_METRICS
