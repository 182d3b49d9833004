"""Motion model: a space of mouth motion, what drives it from audio, and what refines that; one file, for any avatar."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from audioavatar.avatar import Avatar
from audioavatar.config import Driver, GeneratorConfig, TcnConfig
from audioavatar.driven.basis import MouthBasis, principal_components
from audioavatar.driven.generator import MotionTransformer, continue_motion, fit_generator, sample_motion
from audioavatar.driven.refinement import Refiner, refine
from audioavatar.driven.ridge import Ridge, fit_ridge
from audioavatar.driven.space import LearntSpace
from audioavatar.driven.tcn import Tcn, fit_tcn
from audioavatar.driven.training import Checkpoint
from audioavatar.motion import Motion
from common.errors import InputError, MissingFileError
from common.runs import atomic_write

FORMAT = "audioavatar-motion-model-2"
COMPONENTS = 16
HEAD = 3
"""The generator's last channels: shift in quarters of the face's width, tilt in radians. Before them lie those of
`GESTURES`, in the avatar's units, and first those of the mouth: what is refined, face and hands, is in front."""


@dataclass(frozen=True)
class MotionModel:
    """`space` of the mouth's motion and the `net` that drives it; `features` they were trained on, how it samples, and
    what refines the generator's samples, or None."""

    space: MouthBasis | LearntSpace
    net: Ridge | Tcn | MotionTransformer
    features: str
    sampling: GeneratorConfig = GeneratorConfig()
    refiner: Refiner | None = None

    @property
    def channels(self) -> int:
        """Of the driver: coordinates of the space, and head and gestures where they are driven."""
        return len(self.net.mean) if isinstance(self.net, MotionTransformer) else len(self.space)

    def drive(self, avatar: Avatar, features: Tensor, seed: int = 0) -> Motion:
        """Audio features (T, D) of a whole clip -> the avatar's motion. Regression moves the mouth alone; the
        generator moves everything, and another `seed` otherwise."""
        if isinstance(self.net, MotionTransformer):
            channels = sample_motion(self.net, features, self.sampling, seed)
            return self.bound(avatar)(self.refined(channels, features))
        return self.bound(avatar)(self.net(features))

    def window(self, features: Tensor, before: Tensor, first: int, seed: int = 0) -> Tensor:
        """Features (T, D) of a window whose first frame has the number `first` -> its channels (T, C), of which those
        that are known, `before` (P, C), stay as they are; `sampling.window` frames are what the generator knows."""
        if isinstance(self.net, MotionTransformer):
            return continue_motion(self.net, features, before, first, self.sampling, seed)
        return torch.cat([before, self.net(features)[len(before) :]])

    def refined(self, channels: Tensor, features: Tensor) -> Tensor:
        """Channels (T, C) of the generator after the refinement, which the generator itself never sees."""
        return channels if self.refiner is None else refine(self.refiner, channels, features)

    def bound(self, avatar: Avatar) -> Callable[[Tensor], Motion]:
        """A function from channels (T, C) to the motion of an avatar."""
        return bound_channels(self.space, avatar)

    def save(self, path: Path | str) -> None:
        """Write everything to one safetensors file."""
        tensors = {f"net.{name}": value for name, value in _state(self.net).items()}
        tensors |= {f"space.{name}": value for name, value in _state(self.space).items()}
        about: dict[str, Any] = {"features": self.features, "sampling": asdict(self.sampling)}
        about["space"] = {"kept": self.space.kept} if isinstance(self.space, MouthBasis) else self.space.sizes()
        if isinstance(self.net, Ridge):
            about["driver"] = "ridge"
            about["numbers"] = {name: getattr(self.net, name) for name in ("strength", "r2", "gain")}
        else:
            about["driver"] = "tcn" if isinstance(self.net, Tcn) else "generator"
            about["size"] = _sizes(self.net)
        if self.refiner is not None:
            about["refiner"] = self.refiner.sizes()
            tensors |= {f"refiner.{name}": value for name, value in _state(self.refiner).items()}
        metadata = {"about": json.dumps({"format": FORMAT, **about}, sort_keys=True)}
        with atomic_write(Path(path)) as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)


def bound_channels(space: MouthBasis | LearntSpace, avatar: Avatar) -> Callable[[Tensor], Motion]:
    """A function from channels (T, C), of the mouth alone or all of the generator's, to the motion of an avatar."""
    bound, units, mouth = space.bind(avatar), _units(avatar), len(space)

    def motion(channels: Tensor) -> Motion:
        if channels.shape[1] == mouth:
            return bound.motion(channels)
        rest = channels[:, mouth:] * units
        return bound.motion(channels[:, :mouth], rest[:, -HEAD:], rest[:, :-HEAD])

    return motion


def motion_channels(space: MouthBasis | LearntSpace, avatar: Avatar, motion: Motion) -> Tensor:
    """A motion of any avatar as the generator has it, (T, C): the mouth in a space, gestures and head in the avatar's
    units."""
    with torch.no_grad():
        return torch.cat([space.encode(avatar, motion), beside_channels(avatar, motion)], dim=1)


def beside_channels(avatar: Avatar, motion: Motion) -> Tensor:
    """The channels after the mouth's, (T, G + HEAD): gestures and head in the avatar's units."""
    return torch.cat([motion.gesture, motion.head], dim=1) / _units(avatar)


def with_beside(avatar: Avatar, motion: Motion, channels: Tensor) -> Motion:
    """The motion with the gestures and the head of other such channels."""
    rest = channels * _units(avatar)
    return replace(motion, head=rest[:, -HEAD:], gesture=rest[:, :-HEAD])


def fit_motion_model(
    clips: Sequence[tuple[Avatar, Motion, Tensor]],
    features: str,
    driver: Driver = "generator",
    seed: int = 0,
    tcn: TcnConfig = TcnConfig(),
    generator: GeneratorConfig = GeneratorConfig(),
    space: LearntSpace | None = None,
    checkpoint: Checkpoint | None = None,
) -> MotionModel:
    """Train on fitted motions of any avatars with the audio features (T, D) of each clip, all of one length. Without a
    learnt space the mouth's is that of the motions' principal components."""
    chosen = space or principal_components([(avatar, motion) for avatar, motion, _ in clips], COMPONENTS)
    audio = [each for _, _, each in clips]
    channels = [motion_channels(chosen, avatar, motion) for avatar, motion, _ in clips]
    if driver == "generator":
        return MotionModel(chosen, fit_generator(audio, channels, generator, seed, checkpoint), features, generator)
    mouth = [each[:, : len(chosen)] for each in channels]
    net = fit_ridge(audio, mouth) if driver == "ridge" else fit_tcn(audio, mouth, tcn, seed)
    return MotionModel(chosen, net, features)


def _units(avatar: Avatar) -> Tensor:
    """What the channels of gestures and head are multiplied by (G + HEAD,)."""
    return torch.cat([avatar.gesture_units, torch.tensor([avatar.unit, avatar.unit, 1.0])])


def load_motion_model(path: Path | str) -> MotionModel:
    """Read what `MotionModel.save` wrote. Raises FileNotFoundError, or InputError for another file."""
    if not Path(path).is_file():
        raise MissingFileError(f"There is no motion model at {path}; give the file that a training has written.")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            if about.get("format") != FORMAT:
                raise InputError(f"{path} has the format {about.get('format')!r}; expected {FORMAT!r}.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        sizes, state, net = about["space"], _of("space", tensors), _net(about, _of("net", tensors))
        space = MouthBasis(**state, kept=sizes["kept"]) if "kept" in sizes else LearntSpace.restored(sizes, state)
        refiner = Refiner.restored(about["refiner"], _of("refiner", tensors)) if "refiner" in about else None
        return MotionModel(space, net, about["features"], GeneratorConfig(**about["sampling"]), refiner)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is not a motion model ({error}); give the file that a training has written."
        ) from error


def _sizes(net: Tcn | MotionTransformer) -> dict[str, int]:
    if isinstance(net, Tcn):
        return {"features": len(net.mean), "components": net.components, "width": net.width}
    sizes = {"features": len(net.audio_mean), "channels": len(net.mean), "width": net.width}
    return sizes | {"layers": len(net.blocks), "heads": net.heads}


def _state(part: Any) -> dict[str, Tensor]:
    if isinstance(part, nn.Module):
        return part.state_dict()
    return {name: value for name, value in vars(part).items() if isinstance(value, Tensor)}


def _of(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}


def _net(about: Mapping[str, Any], state: Mapping[str, Tensor]) -> Ridge | Tcn | MotionTransformer:
    if about["driver"] == "ridge":
        names = {field.name for field in fields(Ridge)}
        arrays: dict[str, Any] = {name: value for name, value in state.items() if name in names}
        return Ridge(**arrays, **about["numbers"])
    net = Tcn(**about["size"]) if about["driver"] == "tcn" else MotionTransformer(**about["size"])
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def with_sampling(model: MotionModel, **changes: Any) -> MotionModel:
    """The same model sampled otherwise: `sampling_steps`, `guidance`, `window`, `overlap`."""
    return replace(model, sampling=replace(model.sampling, **changes))
