"""The metrics of one clip: each a few lines of arithmetic on the extractors' arrays."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from common.constants import FPS
from eval.features.records import NO_WEIGHTS, SET_METRICS, ClipFeatures, Metric, Record, UnscorableError
from eval.metrics.beats import alignment_excess, beat_alignment, motion_beats
from eval.metrics.body import BodyMotion, HandScores, body_motion, hand_scores, joint_runs
from eval.metrics.drift import ColourDrift, IdentityDrift, identity_drift, judge_colours
from eval.metrics.jerk import fast_share
from eval.metrics.likeness import Likeness, first_face, likeness
from eval.metrics.lips import confidence_of, silent_lips
from eval.metrics.seam import SeamJumps, seam_jumps
from perception.sync.lips import STEP

SPEAKING_PERCENTILE = 75
Value = tuple[float, int]


def clip_records(row: Mapping[str, Any], clip: ClipFeatures, ready: Collection[str], protocol: str) -> list[Record]:
    """The per-clip metrics of one manifest row; `ready` names the extractors that have weights.

    A metric without a value says why in its status.
    """
    records = []
    for name, metric in CLIP_METRICS.items():
        value, n, status = _measure(metric, clip, ready)
        seed = int(row["seed"] or 0)
        records.append(Record(row["method"], row["clip_id"], name, value, status, n, protocol, seed))
    return records


def _measure(metric: Metric, clip: ClipFeatures, ready: Collection[str]) -> tuple[float | None, int, str]:
    if metric.extractor not in ready:
        return None, 0, NO_WEIGHTS
    if (status := clip.own.status(metric.extractor)) != "ok":
        return None, 0, status
    assert metric.of is not None
    try:
        value, n = metric.of(clip)
    except UnscorableError as reason:
        return None, 0, str(reason)
    return value, n, "ok"


def _stored(extractor: str, name: str, count: str, clip: ClipFeatures) -> Value:
    arrays = clip.own.of(extractor)
    return float(arrays[name]), int(arrays[count])


def _spoken_sync(clip: ClipFeatures) -> Value:
    sync, speech = clip.own.of("sync"), clip.own.of("sound")["speech"]
    frames = int(sync["window_start"]) + np.arange(len(sync["by_window"]))
    spoken = _at(speech, frames)
    return confidence_of(sync["by_window"], spoken), int(spoken.sum())


def _lip_dynamics(clip: ClipFeatures) -> Value:
    lips, speech = clip.own.of("lips"), clip.own.of("sound")["speech"]
    changes = lips["changes"]
    # A change belongs to the frame in the middle of the two that it compares.
    spoken = _at(speech, int(lips["start"]) + STEP // 2 + np.arange(len(changes)))
    if not spoken.any():
        raise UnscorableError("no speech: nobody speaks while the face is seen")
    return float(np.percentile(changes[spoken], SPEAKING_PERCENTILE)), int(spoken.sum())


def _silent_lips(clip: ClipFeatures) -> Value:
    lips, quiet = clip.own.of("lips"), clip.own.of("sound")["quiet"]
    return silent_lips(lips["changes"], quiet, int(lips["start"]))


def _at(speech: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Whether somebody speaks in each of `frames`; nobody does beyond the end of the audio."""
    return np.concatenate([speech, np.zeros(1, bool)])[np.minimum(frames, len(speech))]


def _likeness(part: Callable[[Likeness], float], clip: ClipFeatures) -> Value:
    """To the input image, or to the first face of the real video where no image is named."""
    source = clip.image if "identity" in clip.image.arrays or clip.image.failure else clip.real
    csim = likeness(clip.own.of("identity")["embeddings"], first_face(source.of("identity")["embeddings"]))
    return part(csim), csim.frames


def _likeness_to_truth(clip: ClipFeatures) -> Value:
    csim = likeness(clip.own.of("identity")["embeddings"], clip.real.of("identity")["embeddings"])
    return csim.mean, csim.frames


def _likeness_of_views(clip: ClipFeatures) -> Value:
    if "identity" not in clip.turned.arrays and not clip.turned.failure:
        raise UnscorableError("skipped: the manifest names no video from a camera that turns")
    csim = likeness(clip.own.of("identity")["embeddings"], clip.turned.of("identity")["embeddings"])
    return csim.mean, csim.frames


def _fast_jerk(clip: ClipFeatures) -> Value:
    motion = clip.own.of("particles")
    return fast_share(motion["jerk_power"], motion["frequency"]), int(motion["frames"])


def _fidelity(name: str, clip: ClipFeatures) -> Value:
    values = clip.own.of("fidelity")[name]
    return float(values.mean()), len(values)


def _hands(part: Callable[[HandScores], float], clip: ClipFeatures) -> Value:
    real = clip.real.arrays.get("pose", {}).get("poses")
    hands = hand_scores(clip.own.of("pose")["poses"], real)
    value = part(hands)
    if np.isnan(value):
        raise UnscorableError("no hands: too few to measure, or no real video to compare with")
    return value, hands.frames


def _body(part: Callable[[BodyMotion], float], clip: ClipFeatures) -> Value:
    motion = body_motion(clip.own.of("pose")["poses"])
    return part(motion), motion.frames


def _beats(score: Callable[[np.ndarray, np.ndarray, float], float], clip: ClipFeatures) -> Value:
    poses = clip.own.of("pose")["poses"]
    runs, starts = joint_runs(poses)
    beats = motion_beats(runs, starts)
    return score(beats, clip.own.of("sound")["onsets"], len(poses) / FPS), len(beats)


def _colour(part: Callable[[ColourDrift], float], clip: ClipFeatures, extractor: str = "course") -> Value:
    drift = judge_colours(clip.own.of(extractor)["colours"])
    return part(drift), drift.windows


def _background(part: Callable[[ColourDrift], float]) -> Callable[[ClipFeatures], Value]:
    return partial(_colour, part, extractor="background")


def _identity(part: Callable[[IdentityDrift], float], clip: ClipFeatures) -> Value:
    identity = clip.own.of("identity")
    drift = identity_drift(identity["embeddings"], fps=float(identity["fps"]))
    return part(drift), drift.windows


def _seam(part: Callable[[SeamJumps], float], clip: ClipFeatures) -> Value:
    jumps = seam_jumps(clip.own.of("course")["jumps"], clip.seams)
    return part(jumps), len(jumps.z)


def _file_only(label: str, better: int, extractor: str, of: Callable[[ClipFeatures], Value], digits: int = 3) -> Metric:
    return Metric(label, better, extractor, digits, shown=False, of=of)


_SYNC = ("sync_c", "sync_d", "offset_zero", "sync_c_valid", "sync_offset")
_sync = {name: partial(_stored, "sync", name, "windows") for name in _SYNC}
_particles = {name: partial(_stored, "particles", name, "frames") for name in ("arap", "jerk")}
_trajectory = {name: partial(_stored, "trajectories", name, "frames") for name in ("error", "share")}
CLIP_METRICS = {
    "sync_c": Metric("Sync-C", +1, "sync", of=_sync["sync_c"]),
    "sync_d": Metric("Sync-D", -1, "sync", of=_sync["sync_d"]),
    "offset_zero": Metric("Offset 0", +1, "sync", of=_sync["offset_zero"]),
    "iqa": Metric("IQA", +1, "quality", of=partial(_stored, "quality", "iqa", "frames")),
    "ase": Metric("ASE", +1, "quality", of=partial(_stored, "quality", "ase", "frames")),
    "csim": Metric("CSIM", +1, "identity", 3, of=partial(_likeness, lambda csim: csim.mean)),
    "ssim": Metric("SSIM", +1, "fidelity", 3, of=partial(_fidelity, "ssim")),
    "psnr": Metric("PSNR", +1, "fidelity", of=partial(_fidelity, "psnr")),
    "hkc": Metric("HKC", +1, "pose", 3, of=partial(_hands, lambda hands: hands.hkc)),
    "hkv": Metric("HKV", 0, "pose", 3, of=partial(_hands, lambda hands: hands.hkv)),
    "sync_c_valid": _file_only("Sync-C, valid windows only", +1, "sync", _sync["sync_c_valid"]),
    "sync_c_speech": _file_only("Sync-C, speech only", +1, "sync", _spoken_sync),
    "sync_offset": _file_only("Offset, frames", 0, "sync", _sync["sync_offset"]),
    "csim_truth": _file_only("CSIM to the real frames", +1, "identity", _likeness_to_truth),
    "csim_low": _file_only("CSIM, 5th percentile", +1, "identity", partial(_likeness, lambda csim: csim.low)),
    "csim_views": _file_only("CSIM, camera turned to not turned", +1, "identity", _likeness_of_views),
    "face_coverage": _file_only("Frames with a face", +1, "identity", partial(_likeness, lambda csim: csim.coverage)),
    "lip_dynamics": _file_only("Lips while speaking", 0, "lips", _lip_dynamics),
    "silent_lips": _file_only("Lips in silence", -1, "lips", _silent_lips),
    "hkc_all": _file_only("HKC, missing hands 0", +1, "pose", partial(_hands, lambda hands: hands.hkc_all)),
    "hand_presence": _file_only("Hands in view", 0, "pose", partial(_hands, lambda hands: hands.presence)),
    "bas": _file_only("Beat alignment", +1, "pose", partial(_beats, lambda a, b, seconds: beat_alignment(a, b))),
    "bas_excess": _file_only("Beat alignment over shifted sound", +1, "pose", partial(_beats, alignment_excess)),
    "body_variance": _file_only("Body variance", 0, "pose", partial(_body, lambda motion: motion.variance)),
    "body_jerk": _file_only("Body jerk", 0, "pose", partial(_body, lambda motion: motion.jerk)),
    "wrist_path": _file_only("Wrist path per s", 0, "pose", partial(_body, lambda motion: motion.wrist_path)),
    "identity_drift": _file_only("CSIM per minute", +1, "identity", partial(_identity, lambda drift: drift.slope)),
    "identity_change": _file_only("CSIM, last less first", +1, "identity", partial(_identity, lambda d: d.change)),
    "colour_drift": _file_only("Lab per minute", -1, "course", partial(_colour, lambda drift: drift.total)),
    "contrast_drift": _file_only("Contrast per minute", 0, "course", partial(_colour, lambda drift: drift.contrast)),
    "saturation_drift": _file_only("Chroma per minute", 0, "course", partial(_colour, lambda drift: drift.saturation)),
    "colour_shift": _file_only("CIEDE2000, last to first", -1, "course", partial(_colour, lambda drift: drift.shift)),
    "background_drift": _file_only("Background, Lab per minute", -1, "background", _background(lambda d: d.total)),
    "background_shift": _file_only("Background, CIEDE2000", -1, "background", _background(lambda d: d.shift)),
    "seam_z": _file_only("Jump at joins, z", -1, "course", partial(_seam, lambda jumps: jumps.mean_z)),
    "seam_p": _file_only("Jump at joins, p", 0, "course", partial(_seam, lambda jumps: jumps.p)),
    "seam_p_latent": _file_only(
        "Jump at joins, p among frames that begin a latent", 0, "course", partial(_seam, lambda jumps: jumps.p_latent)
    ),
    "arap": _file_only("ARAP residual, px^2", -1, "particles", _particles["arap"]),
    "jerk": _file_only("Jerk of particles, px per cubed frame", 0, "particles", _particles["jerk"]),
    "jerk_fast": _file_only("Jerk above 10 Hz, share of its power", 0, "particles", _fast_jerk),
    "trajectory": _file_only("2D error of untracked particles, px", -1, "trajectories", _trajectory["error"]),
    "trajectory_share": _file_only("2D error by distance from rest", -1, "trajectories", _trajectory["share"]),
}  # fmt: skip
METRICS = SET_METRICS | CLIP_METRICS
