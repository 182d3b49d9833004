"""The extractors: what is taken down of a video once, so that every metric is arithmetic on what was kept."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from common.constants import FPS
from common.runs import fingerprint
from eval.config import FeatureConfig
from eval.features.decoded_video import DecodedVideo
from eval.features.records import Arrays
from eval.metrics.beats import sound_onsets
from eval.metrics.drift import background_mask, colour_curve
from eval.metrics.fidelity import fidelity
from eval.metrics.lips import quiet_frames
from eval.metrics.quality import quality_of_clip
from eval.metrics.seam import frame_jumps
from eval.metrics.sync import SyncJudge, longest_track
from perception.faces.crop import crop_track
from perception.faces.detect import FaceDetector, load_face_detector
from perception.faces.identity import load_face_identity
from perception.features.extractors import clip_extractor, frame_extractor, pose_extractor
from perception.quality.qalign import load_qalign
from perception.speech.detect import speech_at
from perception.sync.lips import SIDE, mouth_changes
from perception.sync.syncnet import load_syncnet

PEOPLE_EVERY = 5  # frames between two in which people are looked for
STRICT_STRIDE = 4  # frames; a window then spans 2.4 s, long enough to see a gesture
Models = Mapping[str, Path]
Extract = Callable[[DecodedVideo], Arrays]


@dataclass(frozen=True)
class Extractor:
    """A network (or two, or none) and how to run it: `load(config, models)` gives the function from a
    DecodedVideo to arrays.

    It cannot run without the roles it `needs`, `uses` others when they are there, depends on `settings` of the
    configuration and on what it `reads` of a unit: its video, audio, real. `only` names the protocol it belongs to.
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

    def wanted(self, config: FeatureConfig) -> bool:
        """Whether the protocol asks for it."""
        return self.only in ("", config.protocol)

    def key(self, config: FeatureConfig, hashes: Mapping[str, str], unit: Mapping[str, str]) -> str:
        """16 hex digits over the extractor, its settings and weights and the bytes it looks at."""
        weights = {role: hashes.get(role) for role in self.needs + self.uses}
        settings = {name: getattr(config, name) for name in self.settings}
        content = [unit[f"{kind}_sha256"] for kind in self.reads]
        return fingerprint([self.name, self.version, settings, weights, content])


def frame_choice(count: int, config: FeatureConfig) -> np.ndarray:
    """Indices of the frames FID looks at in a clip of `count` frames."""
    if config.protocol == "paper":
        return np.arange(count)
    return np.unique(np.linspace(min(1, count - 1), count - 1, 16).round().astype(int))


def _load_fid(config: FeatureConfig, models: Models) -> Extract:
    features = frame_extractor(models["fid_features"], config.protocol)
    return lambda sight: {"features": features(sight.frames[frame_choice(len(sight.frames), config)])}


def _load_fvd(config: FeatureConfig, models: Models) -> Extract:
    features = clip_extractor(models["fvd_features"], config.protocol, config.fvd_stride)
    return lambda sight: {"features": features(sight.frames)}


def _load_slow_fvd(config: FeatureConfig, models: Models) -> Extract:
    features = clip_extractor(models["fvd_features"], config.protocol, STRICT_STRIDE)
    return lambda sight: {"features": features(sight.frames)}


def _load_sync(config: FeatureConfig, models: Models) -> Extract:
    detector, rules = _detector(models.get("face_detector")), config.sync
    judge = SyncJudge(detector, load_syncnet(models["sync_scorer"]), rules)
    return lambda sight: judge.score(sight.frames, sight.wave, sight.faces(detector, rules.look_every))


def _load_quality(config: FeatureConfig, models: Models) -> Extract:
    scorer = load_qalign(models["quality_scorer"])
    return lambda sight: quality_of_clip(scorer, sight.frames)


def _load_identity(config: FeatureConfig, models: Models) -> Extract:
    net, detector = load_face_identity(models["face_identity"]), _detector(models["face_detector"])

    def embeddings(sight: DecodedVideo) -> Arrays:
        found = sight.faces(detector, config.identity_every)
        rows = net.embed_faces(sight.frames[:: config.identity_every], list(found.values()))
        return {"embeddings": rows, "fps": np.asarray(FPS / config.identity_every)}

    return embeddings


def _load_pose(config: FeatureConfig, models: Models) -> Extract:
    extract = pose_extractor(models["pose"])
    return lambda sight: {"poses": extract(sight.frames).reshape(len(sight.frames), -1, 3)}


def _load_lips(config: FeatureConfig, models: Models) -> Extract:
    detector, rules = _detector(models.get("face_detector")), config.sync

    def changes(sight: DecodedVideo) -> Arrays:
        track = longest_track(sight.faces(detector, rules.look_every), len(sight.frames), rules)
        crops = crop_track(sight.frames[track.start_frame : track.stop_frame], track.boxes, SIDE)
        return {"changes": mouth_changes(crops), "start": np.asarray(track.start_frame)}

    return changes


def _load_sound(config: FeatureConfig, models: Models) -> Extract:
    def heard(sight: DecodedVideo) -> Arrays:
        middles = (np.arange(len(sight.wave) * FPS // 16_000) + 0.5) / FPS
        spoken, quiet = speech_at(sight.wave, middles), quiet_frames(sight.wave)
        return {"speech": spoken, "quiet": quiet, "onsets": sound_onsets(sight.wave)}

    return heard


def _load_course(config: FeatureConfig, models: Models) -> Extract:
    return lambda sight: {"colours": colour_curve(sight.frames), "jumps": frame_jumps(sight.frames)}


def _load_background(config: FeatureConfig, models: Models) -> Extract:
    detector = _detector(models.get("face_detector"))

    def colours(sight: DecodedVideo) -> Arrays:
        boxes = [face.box for faces in sight.faces(detector, PEOPLE_EVERY).values() for face in faces]
        return {"colours": colour_curve(sight.frames, background_mask(np.array(boxes), *sight.frames.shape[1:3]))}

    return colours


def _load_fidelity(config: FeatureConfig, models: Models) -> Extract:
    return lambda sight: asdict(fidelity(sight.frames, sight.real()))


@lru_cache(maxsize=2)
def _detector(pack: Path | None) -> FaceDetector:
    """One for all extractors of a process: they ask about the same frames."""
    return load_face_detector(pack)


_FACES = ("face_detector",)
_SOUND = ("video", "audio")
EXTRACTORS = (
    Extractor("fid", "1", _load_fid, needs=("fid_features",), settings=("protocol",)),
    Extractor("fvd", "1", _load_fvd, needs=("fvd_features",), settings=("protocol", "fvd_stride")),
    Extractor("fvd_slow", "1", _load_slow_fvd, needs=("fvd_features",), settings=("protocol",), only="strict"),
    Extractor("sync", "2", _load_sync, needs=("sync_scorer",), uses=_FACES, settings=("sync",), reads=_SOUND),
    Extractor("quality", "1", _load_quality, needs=("quality_scorer",)),
    Extractor("identity", "1", _load_identity, needs=("face_identity", *_FACES), settings=("identity_every",)),
    Extractor("pose", "1", _load_pose, needs=("pose",)),
    Extractor("lips", "1", _load_lips, uses=_FACES, settings=("sync",)),
    Extractor("sound", "2", _load_sound, reads=("audio",)),
    Extractor("course", "1", _load_course),
    Extractor("background", "1", _load_background, uses=_FACES),
    Extractor("fidelity", "1", _load_fidelity, reads=("video", "real")),
)
