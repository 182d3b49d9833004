"""The small world's avatar from nothing: python -m training.audioavatar.small_world --out runs/avatar

A drawn person's first frame -> avatar; teacher clips of it with drawn voices; fits; motion from audio. Everything else
that is drawn (landmarks, masks, openings) is never looked at. Killed and started again it goes on where it was.
"""

import argparse
from pathlib import Path

from audioavatar.avatar import Avatar
from audioavatar.config import Driver, FitConfig, ReliefConfig
from audioavatar.say import build
from common.progress import setup_logging
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from omniavatar.encoders.audio import load_audio_encoder
from training.audioavatar.stages import fit_clips, train_motion
from training.audioavatar.teach import OmniAvatarTeacher, teach

PERSON = HELD_OUT_SEED
VOICES = range(101, 111)
SECONDS = 1.92
MOTION = "motion.safetensors"


def train_small_world(
    out: Path, person: int = PERSON, voices: range = VOICES, driver: Driver = "generator", seconds: float = SECONDS
) -> Path:
    """Run every stage into `out`; returns the path of the motion model, about five core-minutes later."""
    drawn, paths = draw_clip(person, 0.2), model_paths()
    avatar: Avatar = build(drawn.frames[0], paths["face_detector"], ReliefConfig())
    folder = avatar.save(out / "avatar").parent
    spoken = [(str(voice), draw_clip(voice, seconds).audio, voice) for voice in voices]
    teacher = OmniAvatarTeacher.from_pretrained(paths)
    clips = teach(teacher, drawn.frames[0], spoken, drawn.caption, out / "teacher")
    fits = fit_clips(avatar, folder, clips, out / "fits", FitConfig())
    model = train_motion(avatar, clips, fits, load_audio_encoder(paths["audio_encoder"]), driver)
    model.save(out / MOTION)
    return out / MOTION


def main() -> None:
    """Entry point of a training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--person", type=int, default=PERSON, help="seed of the drawn person")
    parser.add_argument("--voices", type=int, default=len(VOICES), help="number of teacher clips")
    parser.add_argument("--driver", choices=("ridge", "tcn", "generator"), default="generator")
    options = parser.parse_args()
    setup_logging()
    voices = range(VOICES.start, VOICES.start + options.voices)
    train_small_world(options.out, options.person, voices, options.driver)


if __name__ == "__main__":
    main()
