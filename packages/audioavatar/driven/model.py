"""Motion model: a basis of mouth motion and what drives it from audio, as one file; binds to any avatar."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audioavatar.avatar import Avatar
from audioavatar.config import Driver, GeneratorConfig, TcnConfig
from audioavatar.driven.basis import MouthBasis, bind, coefficients, principal_components
from audioavatar.driven.generator import MotionTransformer, continue_motion, fit_generator, sample_motion
from audioavatar.driven.ridge import Ridge, fit_ridge
from audioavatar.driven.tcn import Tcn, fit_tcn
from audioavatar.motion import Motion
from common.errors import InputError, MissingFileError
from common.runs import atomic_write

FORMAT = "audioavatar-motion-model-1"
COMPONENTS = 16
HEAD = 3
"""Channels of the generator after those of the mouth: shift in quarters of the face's width, tilt in radians. Those of
`GESTURES` follow, in the avatar's units, if the model was trained with them."""


@dataclass(frozen=True)
class MotionModel:
    """`basis` of the mouth and the `net` that drives it; `features` they were trained on, and how it samples."""

    basis: MouthBasis
    net: Ridge | Tcn | MotionTransformer
    features: str
    sampling: GeneratorConfig = GeneratorConfig()

    @property
    def channels(self) -> int:
        """Of the driver: coefficients of the basis, and head and gestures where they are driven."""
        return len(self.net.mean) if isinstance(self.net, MotionTransformer) else len(self.basis)

    def drive(self, avatar: Avatar, features: Tensor, seed: int = 0) -> Motion:
        """Audio features (T, D) of a whole clip -> the avatar's motion. Regression moves the mouth alone; the
        generator moves everything, and another `seed` otherwise."""
        if isinstance(self.net, MotionTransformer):
            return self.bound(avatar)(sample_motion(self.net, features, self.sampling, seed))
        return self.bound(avatar)(self.net(features))

    def window(self, features: Tensor, before: Tensor, first: int, seed: int = 0) -> Tensor:
        """Features (T, D) of a window whose first frame has the number `first` -> its channels (T, C), of which those
        that are known, `before` (P, C), stay as they are; `sampling.window` frames are what the generator knows."""
        if isinstance(self.net, MotionTransformer):
            return continue_motion(self.net, features, before, first, self.sampling, seed)
        return torch.cat([before, self.net(features)[len(before) :]])

    def bound(self, avatar: Avatar) -> Callable[[Tensor], Motion]:
        """A function from channels (T, C) to the motion of an avatar."""
        basis, units = bind(self.basis, avatar), _units(avatar)

        def motion(channels: Tensor) -> Motion:
            mouth, rest = channels[:, : len(self.basis)], channels[:, len(self.basis) :]
            if rest.shape[1] == 0:
                return basis.motion(mouth)
            rest = rest * units[: rest.shape[1]]
            return basis.motion(mouth, rest[:, :HEAD], rest[:, HEAD:] if rest.shape[1] > HEAD else None)

        return motion

    def save(self, path: Path | str) -> None:
        """Write everything to one safetensors file."""
        tensors = {f"basis.{name}": value for name, value in vars(self.basis).items() if isinstance(value, Tensor)}
        about: dict[str, Any] = {"features": self.features, "kept": self.basis.kept, "sampling": asdict(self.sampling)}
        if isinstance(self.net, Ridge):
            about["driver"] = "ridge"
            about["numbers"] = {name: getattr(self.net, name) for name in ("strength", "r2", "gain")}
            tensors |= {f"net.{name}": value for name, value in vars(self.net).items() if isinstance(value, Tensor)}
        else:
            about["driver"] = "tcn" if isinstance(self.net, Tcn) else "generator"
            about["size"] = _sizes(self.net)
            tensors |= {f"net.{name}": value for name, value in self.net.state_dict().items()}
        metadata = {"about": json.dumps({"format": FORMAT, **about}, sort_keys=True)}
        with atomic_write(Path(path)) as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)


def fit_motion_model(
    avatar: Avatar,
    clips: Sequence[tuple[Motion, Tensor]],
    features: str,
    driver: Driver = "generator",
    seed: int = 0,
    tcn: TcnConfig = TcnConfig(),
    generator: GeneratorConfig = GeneratorConfig(),
) -> MotionModel:
    """Train on fitted motions of one avatar with the audio features (T, D) of each clip."""
    basis = principal_components(avatar, [motion for motion, _ in clips], COMPONENTS)
    audio = [each for _, each in clips]
    mouth = [coefficients(basis, avatar, motion) for motion, _ in clips]
    if driver == "ridge":
        return MotionModel(basis, fit_ridge(audio, mouth), features)
    if driver == "tcn":
        return MotionModel(basis, fit_tcn(audio, mouth, tcn, seed), features)
    besides = [torch.cat([motion.head, motion.gesture], dim=1) / _units(avatar) for motion, _ in clips]
    channels = [torch.cat(pair, dim=1) for pair in zip(mouth, besides, strict=True)]
    return MotionModel(basis, fit_generator(audio, channels, generator, seed), features, generator)


def _units(avatar: Avatar) -> Tensor:
    """What the channels of head and gestures are multiplied by (HEAD + G,)."""
    return torch.cat([torch.tensor([avatar.unit, avatar.unit, 1.0]), avatar.gesture_units])


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
        arrays = {name.removeprefix("basis."): value for name, value in tensors.items() if name.startswith("basis.")}
        basis = MouthBasis(**arrays, kept=about["kept"])
        state = {name.removeprefix("net."): value for name, value in tensors.items() if name.startswith("net.")}
        return MotionModel(basis, _net(about, state), about["features"], GeneratorConfig(**about["sampling"]))
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
