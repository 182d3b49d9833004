"""Ablations: python -m training.audioavatar.ablations.run --out runs/ablations --results eval/results/audioavatar

Rows leave one thing out, with several seeds each; all share the teacher's clips and their fits, and whatever else two
rows have in common. Every part is a file that is made once: stopped and started again it goes on where it was, and the
table holds what is there. Scores are of held-out voices of a person of training.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from audioavatar.avatar import GESTURES
from audioavatar.driven.basis import MouthBasis, principal_components
from audioavatar.driven.generator import MotionTransformer, fit_generator
from audioavatar.driven.model import COMPONENTS, bound_channels, motion_channels
from audioavatar.driven.space import LearntSpace
from common.progress import setup_logging
from common.runs import fingerprint, plain, read_json, write_json
from training.audioavatar.ablations.report import write_report
from training.audioavatar.ablations.world import (
    AblationConfig,
    Driven,
    Space,
    Taught,
    World,
    refinement_gain,
    scores_of,
)
from training.audioavatar.embed import read_space, similarity, train_space
from training.audioavatar.joint import JointClip, joint
from training.audioavatar.omniavatar_teacher import OmniAvatarTeacher
from training.audioavatar.refine import read_refiner, train_refiner
from training.audioavatar.stage_file import about, read_tensors, save_tensors
from training.audioavatar.subject import AvatarSubject


@dataclass(frozen=True)
class Row:
    """What is in: the embedding (else principal components), its contrast of windows, refinement, clips of other
    synthetic people than the one scored, score distillation, trajectories."""

    embedding: bool = True
    patch: bool = True
    refinement: bool = True
    hybrid: bool = True
    distil: str = "vsd"
    trajectories: bool = True


ROWS = {
    "full": Row(),
    "without embedding": Row(embedding=False),
    "without patch level": Row(patch=False),
    "without refinement": Row(refinement=False),
    "without hybrid synthesis": Row(hybrid=False),
    "without VSD": Row(distil=""),
    "without trajectories": Row(trajectories=False),
    "SDS instead of VSD": Row(distil="sds"),
}


def _space(
    world: World, clips: Sequence[Taught], row: Row, config: AblationConfig, seed: int, key: str, out: Path
) -> Space:
    """The embedding's space, or that of principal components."""
    avatar = world.training[0][0].avatar
    if row.embedding:
        settings = replace(config.embedding, patch=float(row.patch))
        fitted = [clip.fitted for clip in clips]
        learnt = read_space(train_space(fitted, out / f"embed-{key}.safetensors", key, settings, seed))
        space: MouthBasis | LearntSpace = learnt
        found = similarity(learnt, [clip.fitted for clip in world.held_out])
        late = similarity(learnt, [world.delayed(clip).fitted for clip in world.held_out])
        figures = {"retrieval": found.frames, "retrieval_windows": found.windows, "similarity_offset": found.offset}
        figures |= {"similarity_offset_delayed": late.offset}
    else:
        space, figures = principal_components([(clip.avatar, clip.motion) for clip in clips], COMPONENTS), {}
    channels = lambda clip: motion_channels(space, clip.avatar, clip.motion)  # noqa: E731
    return Space(channels, bound_channels(space, avatar), len(space) + len(GESTURES), figures)


def run_row(world: World, row: Row, config: AblationConfig, seed: int, out: Path) -> dict[str, float]:
    """Train and score one row with one seed; its parts are files in `out`, those of other rows where they are equal."""
    people = world.training if row.hybrid else world.training[:1]
    clips = [clip for person in people for clip in person]
    key = fingerprint([world.key, row.embedding, row.patch, row.hybrid, plain(config.embedding), seed])
    space = _space(world, clips, row, config, seed, key, out)
    features, channels = [clip.features for clip in clips], [space.channels(clip) for clip in clips]
    key = fingerprint([key, plain(config.train.generator)])
    net = _generator(features, channels, config, seed, key, out / f"motion-{key}.safetensors")
    refiner = None
    if row.refinement:
        file = out / f"refine-{key}.safetensors"
        train_refiner(net, features, channels, space.moving, file, key, config.train.generator, config.refinement, seed)
        refiner = read_refiner(file)
    subject = AvatarSubject(world.training[0][0].avatar, space.motion)
    driven = Driven(space, net, refiner, subject, config.train.generator, seed)
    before, gain = scores_of(world, driven), refinement_gain(world, driven)
    settings = replace(
        config.joint,
        vsd=config.joint.vsd if row.distil else 0.0,
        traj=config.joint.traj if row.trajectories else 0.0,
        distil=replace(config.joint.distil, method=row.distil or "vsd"),  # type: ignore[arg-type]
    )
    teacher = world.new_teacher() if row.distil else None
    own = [_joint_clip(clip, subject, space, teacher) for clip in world.training[0]]
    key = fingerprint([key, plain(config.refinement) if row.refinement else "", plain(settings)])
    file = joint(net, own, teacher, out / f"joint-{key}.safetensors", key, settings, seed, refiner)
    net.load_state_dict(read_tensors(file))
    pulls = {name: value for name, value in about(file)["history"][0].items() if name.startswith("pull_")}
    scores = scores_of(world, driven) | pulls | space.figures | {"refinement_gain": gain}
    return scores | {f"{name}_before_joint": before[name] for name in ("track_error", "sync_c", "lip_gap_r")}


def _generator(
    features: Sequence[Tensor], channels: Sequence[Tensor], config: AblationConfig, seed: int, key: str, path: Path
) -> MotionTransformer:
    sizes = config.train.generator
    if about(path).get("made_of") != key:
        save_tensors(path, fit_generator(features, channels, sizes, seed).state_dict(), {"made_of": key})
    net = MotionTransformer(features[0].shape[1], channels[0].shape[1], sizes.width, sizes.layers, sizes.heads)
    net.load_state_dict(read_tensors(path))
    return net.eval().requires_grad_(False)


def _joint_clip(clip: Taught, subject: AvatarSubject, space: Space, teacher: OmniAvatarTeacher | None) -> JointClip:
    image = torch.from_numpy(clip.image).float() / 255
    condition = None if teacher is None else teacher.condition(clip.image, clip.wave, clip.prompt)
    tracks = subject.tracks(clip.motion)
    return JointClip(subject, clip.features, space.channels(clip), tracks, clip.frames.float() / 255, image, condition)


def run_ablations(out: Path, results: Path | None, config: AblationConfig, seeds: int) -> None:
    """Every row with every seed, seed by seed; after each the report of what there is, in `results`."""
    world = World(out, config)
    for seed in range(seeds):
        for name, row in ROWS.items():
            file = out / "rows" / f"{name.replace(' ', '-')}-{seed}.json"
            key = fingerprint([world.key, asdict(row), plain(config), seed])
            if not file.is_file() or read_json(file)["made_of"] != key:
                scores = run_row(world, row, config, seed, out / "parts")
                write_json(file, {"made_of": key, "row": name, "seed": seed, **scores})
            if results is not None:
                write_report(out / "rows", results)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, help="folder of the table and the plot")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    setup_logging()
    torch.set_num_threads(1)
    run_ablations(options.out, options.results, AblationConfig(), options.seeds)


if __name__ == "__main__":
    main()
