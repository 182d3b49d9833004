"""Videos by the second system: an avatar of each clip's first frame, and of the long video's portrait, says a voice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from audioavatar.config import ReliefConfig, SayConfig
from audioavatar.driven.model import MotionModel, load_motion_model
from audioavatar.export import TalkFile, write_talk
from audioavatar.frames import FrameRenderer
from audioavatar.say import SHIPPED_MOTION, AudioAvatar, build
from common.errors import InputError
from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Stage, Weights, loaded, no_effect
from common.ledger.store import Ledger, Outcome
from common.runs import RunFolder, sha256_file
from omniavatar.config import Request
from omniavatar.encoders.audio import AudioEncoder, load_audio_encoder
from omniavatar.video.inputs import decode_audio, decode_image
from omniavatar.video.video_file import settings_mark, write_avatar_video
from pipelines.config import SWAPPED_AVATAR, AvatarsConfig
from pipelines.generate.animate import opening
from pipelines.models.lock import model_hash

DEMO = "demo_avatar"


def make_avatars(
    config: AvatarsConfig,
    clips: Mapping[str, Sequence[Mapping[str, Any]]],
    long: Request | None,
    frames: int,
    seed: int,
    models: Mapping[str, Path | None],
    run: RunFolder,
    executor: ExecutorConfig,
) -> list[Outcome]:
    """Let avatars talk: one of each row of `clips` (method -> rows as of `pipelines.generate.videos`), one of the
    portrait of the long video.

    A talk `name` is `videos/<name>.mp4`, `videos/turned/<name>.mp4` before a camera that swings, and
    `videos/motion/<name>.safetensors`. Returns an outcome each; finished ones are skipped.
    """
    units = [{"unit": f"{method}/{row['clip_id']}", **row} for method, rows in clips.items() for row in rows]
    if long is not None and long.image and long.audio:
        files = {"image": str(long.image), "audio": str(long.audio)}
        hashes = {f"{kind}_sha256": sha256_file(path) for kind, path in files.items()}
        units.append({"unit": DEMO, **files, **hashes})
    detector = models.get("face_detector")
    weights = (
        Weights("face_detector", detector, model_hash(detector) if detector else ""),
        Weights("audio_encoder", models["audio_encoder"], model_hash(Path(models["audio_encoder"] or ""))),
        Weights("motion", SHIPPED_MOTION, sha256_file(SHIPPED_MOTION)),
    )
    return run_stage(AvatarsStage(config, frames, seed, weights, run.root), units, Ledger(run.ledger), executor)


@dataclass(frozen=True)
class AvatarsStage(Stage[dict[str, Any]]):
    """Over the talks of `make_avatars`. A picture without a face is rejected: no avatar can be built of it."""

    name = "avatars"
    pool = "gpu"
    version = "1"
    config: AvatarsConfig
    frames: int
    seed: int
    weights: tuple[Weights, Weights, Weights]
    root: Path = no_effect()
    networks: tuple[AudioEncoder, MotionModel] = loaded()

    def load(self) -> None:
        """Load what drives every avatar, one thread a worker."""
        import torch

        torch.set_num_threads(1)
        _, encoder, motion = self.weights
        self.hold(networks=(load_audio_encoder(encoder.file), load_motion_model(motion.file)))

    def __call__(self, row: dict[str, Any]) -> Outcome:
        """Build one avatar and let it talk."""
        image, driving, voice = self._inputs(row)
        encoder, motion = self.networks
        side = max(image.shape[:2])
        try:
            avatar = build(
                image, self.weights[0].path, ReliefConfig(size=min(side, self.config.size), steps=self.config.steps)
            )
        except InputError as reason:
            return Outcome(row["unit"], "rejected", reason="no_face", message=str(reason))
        # Videos that are judged have the size of the real ones.
        config = SayConfig(longest_side=side if "clip_id" in row else self.config.longest_side, seed=self.seed)
        talk = AudioAvatar(avatar, motion, encoder).say(driving, config)
        files = talk_files(RunFolder(self.root), row["unit"])
        mark = settings_mark(models={each.role: each.sha256 for each in self.weights if each.sha256})
        turning = FrameRenderer(avatar, replace(config, turntable=self.config.turntable))
        for path, frames in (("video", talk.frames()), ("turned", turning.frames(talk.motion))):
            made_with = mark | {"system": "audioavatar", "seed": self.seed}
            write_avatar_video(files[path], frames, voice, count=len(talk), made_with=made_with)
        write_talk(TalkFile(avatar, talk.motion), files["motion"])
        return Outcome(row["unit"], "kept", outputs={"particles": len(avatar.particles), "frames": len(talk)})

    def _inputs(self, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Picture, the voice that drives, and the voice that is heard and judged."""
        if "clip_id" not in row:
            wave = decode_audio(row["audio"])[0].wave
            return decode_image(row["image"])[0], wave, wave
        run = RunFolder(self.root)
        image, voice = opening(run, row["clip_id"], self.frames)
        swapped = row["unit"].startswith(f"{SWAPPED_AVATAR}/")
        return image, opening(run, row["other_clip_id"], self.frames)[1] if swapped else voice, voice

    def products(self, row: dict[str, Any], outcome: Outcome) -> Mapping[Path, int | None]:
        """The files of the talk."""
        return dict.fromkeys(talk_files(RunFolder(self.root), row["unit"]).values())


def talk_files(run: RunFolder, name: str) -> dict[str, Path]:
    """The files of a talk: its `video`, the same `turned`, its `motion`."""
    videos = Path(run.root) / "videos"
    return {
        "video": videos / f"{name}.mp4",
        "turned": videos / "turned" / f"{name}.mp4",
        "motion": videos / "motion" / f"{name}.safetensors",
    }
