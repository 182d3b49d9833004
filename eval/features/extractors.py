"""Extractors: networks and signal processing that run once per video, so that every metric is arithmetic on arrays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from common.constants import AUDIO_RATE, FPS
from common.runs import fingerprint
from eval.config import FeatureConfig
from eval.features.records import Arrays, UnscorableError
from eval.features.sync import SyncJudge, longest_track
from eval.metrics.beats import audio_onsets
from eval.metrics.drift import background_mask, colour_curve
from eval.metrics.fidelity import fidelity
from eval.metrics.lips import quiet_frames
from eval.metrics.seam import frame_jumps
from perception.faces.crop import crop_track
from perception.faces.detect import Face, FaceDetector, load_face_detector
from perception.faces.identity import load_face_identity
from perception.features.extractors import clip_extractor, frame_extractor, pose_extractor
from perception.quality.qalign import QAlign, load_qalign
from perception.speech.detect import speech_at
from perception.sync.lips import SIDE, mouth_changes
from perception.sync.syncnet import load_syncnet

PEOPLE_EVERY = 5  # frames between two in which people are detected
STRICT_STRIDE = 4  # frames; a window then spans 2.4 s, long enough to see a gesture
Models = Mapping[str, Path]


def no_real_video(reason: str = "") -> np.ndarray:
    """Raises UnscorableError: the clip has no real video to compare with, for this reason."""
    raise UnscorableError(f"no real video{reason}")


@dataclass(frozen=True)
class DecodedVideo:
    """One decoded video: frames (T, H, W, 3) uint8 RGB at 25 fps and the audio `wave` (n,) at 16 kHz to judge them
    against. `real()` gives the frames of the real video they are paired with, or raises UnscorableError; `motion` are
    the files of an avatar's motion and of the one to hold it against, or None."""

    frames: np.ndarray
    wave: np.ndarray
    real: Callable[[], np.ndarray] = field(default=no_real_video)
    motion: tuple[Path | None, ...] = (None, None)
    _faces: dict[int, Sequence[Face]] = field(default_factory=dict, repr=False)

    def faces(self, detector: FaceDetector, every: int = 1) -> Mapping[int, Sequence[Face]]:
        """Frame number -> faces, of every `every`-th frame; each frame is searched once for all extractors."""
        numbers = range(0, len(self.frames), every)
        for number in numbers:
            if number not in self._faces:
                self._faces[number] = detector.detect(self.frames[number])
        return {number: self._faces[number] for number in numbers}


Extract = Callable[[DecodedVideo], Arrays]


@dataclass(frozen=True)
class Extractor:
    """A network (or two, or none) and how to run it: `load(config, models)` gives the function from a
    DecodedVideo to arrays.

    It cannot run without the roles it `needs`, `uses` others when they are there, depends on `settings` of the
    configuration and on what it `reads` of a unit: its video, audio, real video, motion. `only` names the protocol it
    belongs to.
    """

    name: str
    version: str
    load: Callable[[FeatureConfig, Models], Extract]
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("video",)
    only: str = ""

    def missing(self, hashes: Mapping[str, str]) -> list[str]:
        """Roles without which this extractor cannot run."""
        return [role for role in self.needs if role not in hashes]

    def is_in(self, config: FeatureConfig) -> bool:
        """Whether the protocol asks for it."""
        return self.only in ("", config.protocol)

    def key(self, config: FeatureConfig, hashes: Mapping[str, str], unit: Mapping[str, str]) -> str:
        """Cache key, 16 hex digits: hash of the extractor, its settings, its weights and the files it reads."""
        weights = {role: hashes.get(role) for role in self.needs + self.uses}
        settings = {name: getattr(config, name) for name in self.settings}
        content = [unit[f"{kind}_sha256"] for kind in self.reads]
        return fingerprint([self.name, self.version, settings, weights, content])


def frame_choice(count: int, config: FeatureConfig) -> np.ndarray:
    """Indices of the frames that FID uses of a clip of `count` frames."""
    if config.protocol == "paper":
        return np.arange(count)
    return np.unique(np.linspace(min(1, count - 1), count - 1, 16).round().astype(int))


def _load_fid(config: FeatureConfig, models: Models) -> Extract:
    features = frame_extractor(models["fid_features"], config.protocol)
    return lambda video: {"features": features(video.frames[frame_choice(len(video.frames), config)])}


def _load_fvd(config: FeatureConfig, models: Models) -> Extract:
    features = clip_extractor(models["fvd_features"], config.protocol, config.fvd_stride)
    return lambda video: {"features": features(video.frames)}


def _load_slow_fvd(config: FeatureConfig, models: Models) -> Extract:
    features = clip_extractor(models["fvd_features"], config.protocol, STRICT_STRIDE)
    return lambda video: {"features": features(video.frames)}


def _load_sync(config: FeatureConfig, models: Models) -> Extract:
    detector, rules = _detector(models.get("face_detector")), config.sync
    judge = SyncJudge(detector, load_syncnet(models["sync_scorer"]), rules)
    return lambda video: judge.score(video.frames, video.wave, video.faces(detector, rules.look_every))


def _load_quality(config: FeatureConfig, models: Models) -> Extract:
    scorer = load_qalign(models["quality_scorer"])
    return lambda video: quality_of_clip(scorer, video.frames)


def _load_identity(config: FeatureConfig, models: Models) -> Extract:
    net, detector = load_face_identity(models["face_identity"]), _detector(models["face_detector"])

    def embeddings(video: DecodedVideo) -> Arrays:
        faces = video.faces(detector, config.identity_every)
        rows = net.embed_faces(video.frames[:: config.identity_every], list(faces.values()))
        return {"embeddings": rows, "fps": np.asarray(FPS / config.identity_every)}

    return embeddings


def _load_pose(config: FeatureConfig, models: Models) -> Extract:
    extract = pose_extractor(models["pose"])
    return lambda video: {"poses": extract(video.frames).reshape(len(video.frames), -1, 3)}


def _load_lips(config: FeatureConfig, models: Models) -> Extract:
    detector, rules = _detector(models.get("face_detector")), config.sync

    def changes(video: DecodedVideo) -> Arrays:
        track = longest_track(video.faces(detector, rules.look_every), len(video.frames), rules)
        crops = crop_track(video.frames[track.start_frame : track.stop_frame], track.boxes, SIDE)
        return {"changes": mouth_changes(crops), "start": np.asarray(track.start_frame)}

    return changes


def _load_audio(config: FeatureConfig, models: Models) -> Extract:
    def activity(video: DecodedVideo) -> Arrays:
        middles = (np.arange(len(video.wave) * FPS // AUDIO_RATE) + 0.5) / FPS
        spoken, quiet = speech_at(video.wave, middles), quiet_frames(video.wave)
        return {"speech": spoken, "quiet": quiet, "onsets": audio_onsets(video.wave)}

    return activity


def _load_course(config: FeatureConfig, models: Models) -> Extract:
    return lambda video: {"colours": colour_curve(video.frames), "jumps": frame_jumps(video.frames)}


def _load_background(config: FeatureConfig, models: Models) -> Extract:
    detector = _detector(models.get("face_detector"))

    def colours(video: DecodedVideo) -> Arrays:
        boxes = [face.box for faces in video.faces(detector, PEOPLE_EVERY).values() for face in faces]
        return {"colours": colour_curve(video.frames, background_mask(np.array(boxes), *video.frames.shape[1:3]))}

    return colours


def _load_fidelity(config: FeatureConfig, models: Models) -> Extract:
    return lambda video: asdict(fidelity(video.frames, video.real()))


def _load_particles(config: FeatureConfig, models: Models) -> Extract:
    from eval.features.particles import particle_motion

    return lambda video: particle_motion(video.motion[0])


def _load_trajectories(config: FeatureConfig, models: Models) -> Extract:
    from eval.features.particles import trajectory_error

    return lambda video: trajectory_error(*video.motion)


def one_frame_per_second(count: int, fps: float = 25.0) -> list[int]:
    """Indices int(fps * i), i below floor(count / fps), as the video loader of Q-Align takes them; at least the first.

    Frames of a last, incomplete second are not read, as in curation.
    """
    return [int(fps * i) for i in range(max(1, int(count / fps)))]


def quality_of_clip(scorer: QAlign, frames: np.ndarray) -> dict[str, np.ndarray]:
    """`iqa` and `ase`, scalars 1..5, of frames (T, H, W, 3) uint8 RGB at 25 fps; `frames` holds how many were read."""
    images = [frames[i] for i in one_frame_per_second(len(frames))]
    ratings = scorer.rate(images, ("quality", "aesthetics"))
    iqa, ase = (np.asarray(ratings[task].scores.mean()) for task in ("quality", "aesthetics"))
    return {"iqa": iqa, "ase": ase, "frames": np.asarray(len(images))}


@lru_cache(maxsize=2)
def _detector(pack: Path | None) -> FaceDetector:
    """One for all extractors of a process, which search the same frames."""
    return load_face_detector(pack)


_FACES = ("face_detector",)
_WITH_AUDIO = ("video", "audio")
EXTRACTORS = (
    Extractor("fid", "1", _load_fid, needs=("fid_features",), settings=("protocol",)),
    Extractor("fvd", "1", _load_fvd, needs=("fvd_features",), settings=("protocol", "fvd_stride")),
    Extractor("fvd_slow", "1", _load_slow_fvd, needs=("fvd_features",), settings=("protocol",), only="strict"),
    Extractor("sync", "2", _load_sync, needs=("sync_scorer",), uses=_FACES, settings=("sync",), reads=_WITH_AUDIO),
    Extractor("quality", "2", _load_quality, needs=("quality_scorer",)),
    Extractor("identity", "1", _load_identity, needs=("face_identity", *_FACES), settings=("identity_every",)),
    Extractor("pose", "1", _load_pose, needs=("pose",)),
    Extractor("lips", "1", _load_lips, uses=_FACES, settings=("sync",)),
    Extractor("sound", "2", _load_audio, reads=("audio",)),
    Extractor("course", "1", _load_course),
    Extractor("background", "1", _load_background, uses=_FACES),
    Extractor("fidelity", "1", _load_fidelity, reads=("video", "real")),
    Extractor("particles", "1", _load_particles, reads=("motion",)),
    Extractor("trajectories", "1", _load_trajectories, reads=("motion", "motion_reference")),
)
