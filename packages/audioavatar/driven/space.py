"""Learnt space of motion: E_X and D of the joint embedding, in place of a linear basis, for any avatar.

Legend: T frames, N particles of an avatar, P particles drawn for a step, E width of a region's embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from audioavatar.avatar import Avatar
from audioavatar.config import EmbeddingConfig
from audioavatar.driven.decoder import ParticleDecoder
from audioavatar.driven.embedding import KAPPA, embedding_loss
from audioavatar.driven.encoder import AudioEmbedding, ParticleEncoder
from audioavatar.driven.training import Checkpoint, TrainingSteps
from audioavatar.motion import Motion, still

_REACH = (0.6, -0.4, 0.6)  # of the mouth in places: to both sides, up, down
_OFFSETS = 4  # shift along and across the mouth in quarters of the face's width, growth in x and y


class LearntSpace(nn.Module):
    """Embedded motion (T, 3 E) of body, face and hands, and the embedding of audio that belongs to it."""

    def __init__(self, features: int, config: EmbeddingConfig = EmbeddingConfig()) -> None:
        super().__init__()
        self.scale: Tensor
        self.features, self.config = features, config
        self.register_buffer("scale", torch.ones(_OFFSETS))  # of the offsets
        self.encoder = ParticleEncoder(_OFFSETS, config.width, config.embedding)
        self.decoder = ParticleDecoder(_OFFSETS, config.width, config.embedding)
        self.audio = AudioEmbedding(features, config.audio_width, config.embedding)
        self.motion_head = nn.Linear(3 * config.embedding, config.embedding)
        self.log_kappa = nn.Parameter(torch.tensor(KAPPA).log())

    def __len__(self) -> int:
        return 3 * self.config.embedding

    def sizes(self) -> dict[str, object]:
        """What `LearntSpace(features, config)` takes."""
        return {"features": self.features, "config": asdict(self.config)}

    @classmethod
    def restored(cls, sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> "LearntSpace":
        """A trained one, of its `sizes()` and its weights."""
        space = cls(sizes["features"], EmbeddingConfig(**sizes["config"]))
        space.load_state_dict(state)
        return space.eval().requires_grad_(False)

    def encode(self, avatar: Avatar, motion: Motion) -> Tensor:
        """Motion of any avatar -> (T, 3 E)."""
        place = particle_places(avatar)
        near = near_mouth(place)
        return self.encoder(place[near], avatar.particles.part[near], _rows(avatar, motion)[:, near] / self.scale)

    def bind(self, avatar: Avatar) -> "BoundSpace":
        """The decoder of one avatar's particles."""
        return BoundSpace(self, avatar)


class BoundSpace:
    """Embedded motion as that of one avatar."""

    def __init__(self, space: LearntSpace, avatar: Avatar) -> None:
        self.space, self.avatar = space, avatar
        place = particle_places(avatar)
        self.near = near_mouth(place)
        self.place, self.part = place[self.near], avatar.particles.part[self.near]

    def motion(self, embedded: Tensor, head: Tensor | None = None, gesture: Tensor | None = None) -> Motion:
        """Embedded motion (T, 3 E), the head's motion (T, 3) and gestures (T, G) or none -> the avatar's; but for those
        nothing far from the mouth moves with respect to the head."""
        moved = self.space.decoder(embedded, self.place, self.part) * self.space.scale
        rows = moved.new_zeros(len(moved), len(self.near), _OFFSETS).index_copy(1, self.near.nonzero()[:, 0], moved)
        rest = still(self.avatar, len(rows))
        shift = self.avatar.mouth.to_world(rows[..., :2]) * self.avatar.unit
        head, gesture = rest.head if head is None else head, rest.gesture if gesture is None else gesture
        return Motion(head, shift, rows[..., 2:], gesture)


def particle_places(avatar: Avatar) -> Tensor:
    """Where particles are in coordinates of the mouth, (N, 3), about -1 to 1 over the face."""
    mean = avatar.particles.mean
    return torch.cat([avatar.mouth.local(mean[:, :2]) / 4, mean[:, 2:] / (4 * avatar.unit)], dim=1)


def near_mouth(place: Tensor) -> Tensor:
    """Which of the places of `particle_places` move with the mouth (N,)."""
    return (place[:, 0].abs() < _REACH[0]) & (place[:, 1] > _REACH[1]) & (place[:, 1] < _REACH[2])


def _rows(avatar: Avatar, motion: Motion) -> Tensor:
    return torch.cat([avatar.mouth.from_world(motion.shift) / avatar.unit, motion.growth], dim=-1)


def fit_space(
    clips: Sequence[tuple[Avatar, Motion, Tensor]],
    config: EmbeddingConfig = EmbeddingConfig(),
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
) -> tuple[LearntSpace, list[dict[str, float]]]:
    """Train on fitted motions of any avatars with the audio features (T, D) of each, all of one length: L_sim + L_rec.

    Returns the space and the losses of every step. A step sees some particles of some clips.
    """
    near = [near_mouth(particle_places(avatar)) for avatar, _, _ in clips]
    rows = [_rows(avatar, motion)[:, own] for (avatar, motion, _), own in zip(clips, near, strict=True)]
    places = [
        (particle_places(avatar)[own], avatar.particles.part[own])
        for (avatar, _, _), own in zip(clips, near, strict=True)
    ]
    features = torch.stack([each for _, _, each in clips])
    loudness = _activity(features)
    history: list[dict[str, float]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        space = LearntSpace(features.shape[-1], config)
        moving = torch.cat([each.flatten(0, 1)[each.flatten(0, 1).abs().sum(1) > 1e-4] for each in rows])
        space.scale.copy_(moving.square().mean(0).sqrt().clamp_min(1e-4))
        optimiser = torch.optim.AdamW(space.parameters(), lr=config.rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.rate, total_steps=config.steps)
        parts = {"space": space, "optimiser": optimiser, "schedule": schedule, "history": history}
        steps = TrainingSteps("embed", config.steps, checkpoint, **parts)
        for _ in steps:
            chosen = torch.randperm(len(clips))[: config.clips].tolist()
            embedded, errors = [], []
            for number in chosen:
                place, part = places[number]
                points = torch.randperm(len(place))[: config.particles]
                offset = rows[number][:, points] / space.scale
                x = space.encoder(place[points], part[points], offset)
                errors.append((space.decoder(x, place[points], part[points]) - offset).square().mean())
                embedded.append(x)
            noise = config.noise * features[chosen].std(dim=(0, 1)) * torch.randn_like(features[chosen])
            spoken, moved = space.audio(features[chosen] + noise), space.motion_head(torch.stack(embedded))
            similar = embedding_loss(spoken, moved, space.log_kappa.exp(), config.patch, loudness[chosen])
            rebuilt = torch.stack(errors).mean()
            optimiser.zero_grad()
            (config.contrast * similar + config.rebuild * rebuilt).backward()
            optimiser.step()
            schedule.step()
            steps.report(similar=similar, rebuilt=rebuilt)
            history.append({"similar": float(similar.detach()), "rebuilt": float(rebuilt.detach())})
    return space.eval().requires_grad_(False), history


def _activity(features: Tensor) -> Tensor:
    """How much each frame (C, T) counts in the contrast: those like their clip's median, which are silent, least."""
    away = (features - features.median(dim=1, keepdim=True).values).norm(dim=-1)
    return 0.25 + (away / away.mean()).clamp(max=1.5)
