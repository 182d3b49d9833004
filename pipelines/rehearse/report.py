"""The table of a rehearsal, and the forecast for the user's own job: measured speed, scaled by operations."""

from collections.abc import Iterator, Mapping
from typing import Any

from common.constants import FPS
from common.progress import duration_text
from omniavatar.planning.memory import job_of
from omniavatar.planning.network import Network
from omniavatar.video.chunks import frames_for_tokens, frames_to_remake, plan_chunks
from pipelines.recipe import Recipe
from pipelines.rehearse.forecast import network_of_sizes
from pipelines.rehearse.results import PASSED
from pipelines.rehearse.shapes import Sizes
from pipelines.rehearse.stages import ORDER, SAMPLED, SMALL, Clip, clip_of
from training.planning.flops import work
from training.planning.sizes import PAPER_SIZE

LARGE = 2e9  # bytes from which a forecast is compared with what was measured
CLOSE = 0.15


def table_lines(content: Mapping[str, Any]) -> list[str]:
    """A line for each stage: seconds, peaks beside their forecasts, bytes read; then how close the forecasts are."""
    gpu = bool(content["gpu"])
    device = "   GPU GB  forecast" if gpu else ""
    lines = [f"{'stage':<10}{'seconds':>9}{'CPU s':>8}{'host GB':>10}{'forecast':>10}{device}{'read GB':>9}"]
    for name in (name for name in ORDER if name in content["stages"]):
        row = content["stages"][name]
        if "seconds" not in row:
            lines.append(f"{name:<10}{row['state']}: {row['message']}")
            continue
        forecast = row["forecast"]
        on_device = f"{row['device'] / 1e9:>9.2f}{forecast['device'] / 1e9:>10.2f}" if gpu else ""
        lines.append(
            f"{name:<10}{row['seconds']:>9.1f}{row['cpu_seconds']:>8.1f}{row['host'] / 1e9:>10.2f}"
            f"{forecast['host'] / 1e9:>10.2f}{on_device}{row['read'] / 1e9:>9.2f}"
            + ("" if row["state"] == PASSED else f"   {row['state']}: {row['message']}")
        )
    return [*lines, *_closeness(content), "host: peak of anonymous memory, all processes of the command, every 20 ms"]


def _closeness(content: Mapping[str, Any]) -> Iterator[str]:
    where = "device" if content["gpu"] else "host"
    passed = {name: row for name, row in content["stages"].items() if row["state"] == PASSED and row[where] > LARGE}
    if not passed:
        return
    off = {name: row["forecast"][where] / row[where] - 1 for name, row in passed.items()}
    worst = max(off, key=lambda name: abs(off[name]))
    share = f"{100 * off[worst]:+.0f} %"
    yield f"forecast of the stages over 2 GB: at most {share} off ({worst})"


def outlook(recipe: Recipe, content: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """Seconds that the user's own job takes at the whole depth on this machine, by what was measured here.

    "generate": to sample a video of `seconds` at the recipe's size, chunks and steps; "latents": to encode an hour of
    clips at its first bucket; "train": a step of one window of the paper's size, 29,640 tokens.
    """
    rehearsed, whole = (network_of_sizes(Sizes(**content[name])) for name in ("sizes", "whole"))
    clip, stages = Clip(**content["clip"]), content["stages"]
    found = {}
    sampling = _figure(stages, "generate", "sampling_seconds") or _figure(stages, "reload", "sampling_seconds")
    if sampling:
        done = SAMPLED * branches(recipe) * _forward(rehearsed, clip)
        found["generate"] = generation_work(recipe, whole, seconds) / done * sampling
    if encoding := _figure(stages, "latents", "seconds_a_megapixel"):
        height, width = recipe.latents.buckets[0]
        found["latents"] = encoding * 3600 * FPS * height * width / 1e6
    if step := _figure(stages, "train", "step_seconds"):
        mode = recipe.train.model.gradient_checkpointing
        frames = recipe.train.data.max_tokens // (PAPER_SIZE.height // 2 * (PAPER_SIZE.width // 2))
        tokens = frames * (PAPER_SIZE.height // 2) * (PAPER_SIZE.width // 2)
        small = work(rehearsed, clip.job.tokens, clip.job.latent_frames, recompute=mode).executed
        found["train"] = step * work(whole, tokens, frames, recompute=mode).executed / small
    return found


def outlook_lines(recipe: Recipe, content: Mapping[str, Any], seconds: float) -> list[str]:
    """The outlook as sentences."""
    found = outlook(recipe, content, seconds)
    device = content["gpu"] or f"{content['cpus']} CPU cores"
    texts = {
        "generate": f"{seconds:g} s of video, {recipe.generate.steps} steps: {{}} of sampling",
        "latents": "an hour of clips to latents: at most {}",
        "train": "a training step of one window of 480 x 832: {}",
    }
    return [f"{texts[name].format(_long(took))} on {device}, whole depth" for name, took in found.items()]


def _long(seconds: float) -> str:
    return f"{seconds / 86_400:.1f} days" if seconds > 2 * 86_400 else duration_text(seconds)


def _figure(stages: Mapping[str, Mapping[str, Any]], stage: str, name: str) -> float:
    row = stages.get(stage, {})
    return float(row.get(name, 0.0)) if row.get("state") == PASSED else 0.0


def _forward(network: Network, clip: Clip) -> int:
    return work(network, clip.job.tokens, clip.job.latent_frames).forward


def branches(recipe: Recipe) -> int:
    """Forward passes of a step of the sampler."""
    return job_of(recipe.generate, *SMALL, seconds=1.0).branches


def generation_work(recipe: Recipe, network: Network, seconds: float) -> int:
    """Operations of the transformer for a video of `seconds` with the recipe's settings, all chunks and passes."""
    config, whole = recipe.generate, clip_of(recipe, gpu=True)
    length = config.chunk_frames or frames_for_tokens(config.max_tokens, whole.height, whole.width)
    remade = frames_to_remake(config.blend, length, config.overlap)
    frames = max(1, round(seconds * FPS))
    chunks = plan_chunks(frames, length, config.overlap, remade, config.full_last_chunk)
    passes = sum(_forward(network, Clip(whole.height, whole.width, chunk.frames)) for chunk in chunks)
    return config.steps * branches(recipe) * passes
