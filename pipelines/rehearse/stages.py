"""Stages of a rehearsal: the commands that are run, as a user types them, on one small clip."""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from common.constants import FPS
from common.executors.config import ExecutorConfig
from common.progress import MetricLog
from common.runs import RunFolder
from latents.bill import last_bill
from omniavatar.planning.memory import Job
from omniavatar.video.buckets import choose_size
from omniavatar.video.chunks import frames_for_tokens
from pipelines.config import DrawnConfig
from pipelines.recipe import Recipe

STEPS = ("generate", "latents", "train")
"""What can be rehearsed."""
ORDER = ("check", "generate", "latents", "train", "resume", "export", "reload")
"""The stages, in which order they run."""
SAMPLED = 2  # steps of the sampler
TRAINED, RESUMED = 2, 4  # steps of the training: before its end, and in all
SMALL = (128, 128, 17)  # height and width in pixels, and frames, of what a CPU rehearses
RUN, GENERATION, EXPORTED, RECIPE_FILE = "run", "generation", "exported", "rehearsal.yaml"


@dataclass(frozen=True)
class Clip:
    """The size of what is generated, encoded and trained: pixels, and 4n + 1 frames."""

    height: int
    width: int
    frames: int

    @property
    def job(self) -> Job:
        """The clip as what is generated at a time."""
        return Job(self.height, self.width, self.frames, self.frames, seconds=self.frames / FPS)

    @property
    def megapixel_frames(self) -> float:
        """Pixels of all frames, in millions."""
        return self.frames * self.height * self.width / 1e6


@dataclass(frozen=True)
class Stage:
    """One command. `step` of those that can be asked for, "" for all of them; `needs`: the stage whose `products` it
    reads; `replaced`: what an earlier try has left, and would save this one work."""

    name: str
    step: str
    arguments: tuple[str, ...]
    products: tuple[Path, ...] = ()
    needs: str = ""
    replaced: tuple[Path, ...] = ()

    @property
    def command(self) -> str:
        """The command as it is typed."""
        return " ".join(["omniavatar", *(f"'{word}'" if " " in word else word for word in self.arguments)])


def clip_of(recipe: Recipe, gpu: bool) -> Clip:
    """On a GPU one whole chunk of the recipe, on a CPU a small one."""
    if not gpu:
        return Clip(*SMALL)
    config = recipe.generate
    height, width = (config.height, config.width) if config.height else choose_size(1, 1, config.longest_side)
    return Clip(height, width, config.chunk_frames or frames_for_tokens(config.max_tokens, height, width))


def rehearsal_recipe(recipe: Recipe, clip: Clip, gpu: bool) -> Recipe:
    """The recipe without weights, in bfloat16, cut to one clip, two steps and one process on all cores."""
    generate, train, threads = recipe.generate, recipe.train, os.cpu_count() or 1
    precision: Literal["auto", "bf16"] = "auto" if gpu else "bf16"
    engine = replace(train.engine, threads=threads, sequence_parallel=1, hpz_ranks=1)
    return replace(
        recipe,
        name=f"rehearsal of {recipe.name}",
        weights="none",
        models={},
        small_world=None,
        drawn=DrawnConfig(train=1, test=1, seconds=clip.frames / FPS, half_body_every=0),
        latents=replace(recipe.latents, buckets=((clip.height, clip.width),), threads=threads, dtype=precision),
        train=replace(
            train,
            steps=TRAINED,
            minutes=0.0,
            phases=(),
            engine=engine,
            data=replace(train.data, batch=1, micro_batches=1, max_latents=0, min_latents=1, durations=()),
            validation=replace(train.validation, every=0),
            checkpoint=replace(train.checkpoint, every_steps=0, every_seconds=0.0, export_every_steps=0),
        ),
        ranks=1,
        mirror="",
        generate=replace(
            generate,
            load=replace(generate.load, dtype=precision),
            steps=SAMPLED,
            height=clip.height,
            width=clip.width,
            chunk_frames=clip.frames,
        ),
        executor=ExecutorConfig(workers=1),
    )


def stages(to: Path, steps: Collection[str], image: Path, voice: Path, prompt: str) -> list[Stage]:
    """The stages of these steps in their order, with their products below `to`."""
    run, generation, exported = to / RUN, to / GENERATION, to / EXPORTED
    recipe, adapter = ("--recipe", str(to / RECIPE_FILE)), run / "checkpoints" / "adapter"
    shards, state = run / "shards" / "index.parquet", run / "checkpoints" / "state" / "latest"
    inputs = ("--image", str(image), "--audio", str(voice), "--prompt", prompt)

    def generate(name: str, *more: str) -> tuple[str, ...]:
        return ("generate", *recipe, *inputs, "--out", str(to / f"{name}.mp4"), "--run", str(generation), *more)

    encode = ("run", *recipe, "--run", str(run), "--from", "curate", "--to", "latents")
    training = ("train", *recipe, "--run", str(run), "--set")
    export = ("models", "export", "--role", "adapter", "--layout", "official", "--dtype", "bfloat16", *recipe)
    trained = ("--set", f"models.adapter={adapter}", "--to", str(exported))
    every = [
        Stage("check", "", ("models", "check", *recipe)),
        Stage("generate", "generate", generate("generated"), replaced=(generation,)),
        Stage("latents", "latents", encode, (shards,), replaced=(run,)),
        Stage("train", "train", (*training, f"train.steps={TRAINED}"), (state,), "latents", (run / "checkpoints",)),
        Stage("resume", "train", (*training, f"train.steps={RESUMED}"), (adapter,), "train"),
        Stage("export", "train", (*export, *trained), (exported,), "resume", (exported,)),
        Stage(
            "reload", "train", generate("reloaded", "--set", f"models.adapter={exported}"), (), "export", (generation,)
        ),
    ]
    asked = {"", *steps} | ({"latents"} if "train" in steps else set())  # training reads the shards
    return [stage for stage in every if stage.step in asked]


def problem_after(stage: Stage, to: Path) -> str:
    """What a command that ended well has not done all the same; "" for nothing."""
    absent = [path for path in stage.products if not path.exists()]
    if absent:
        return f"{absent[0]} was not written"
    if stage.name == "resume":
        steps = [row["step"] for row in training_rows(to)]
        if steps != list(range(1, RESUMED + 1)):
            return f"the training did not go on from its checkpoint: steps {steps} are logged"
    return ""


def figures_after(stage: Stage, to: Path, log: Path) -> dict[str, float]:
    """What the products and the log of a stage say of its speed, by which the user's own job is forecast."""
    if stage.name in ("generate", "reload"):
        lines = re.findall(r"chunk 1 of 1: \d+/\d+ in ([\d.]+) s", log.read_text("utf-8", "replace"))
        return {"sampling_seconds": float(lines[-1])} if lines else {}
    if stage.name == "latents" and (bill := last_bill(RunFolder(to / RUN))):
        return {"seconds_a_megapixel": bill.seconds / max(bill.megapixel_frames, 1e-9)}
    if stage.name in ("train", "resume") and (rows := training_rows(to)):
        return {"step_seconds": min(row["seconds"] for row in rows)}
    return {}


def training_rows(to: Path) -> list[dict[str, float]]:
    """The steps that the training has logged."""
    return [row for row in MetricLog(to / RUN / "logs" / "train.jsonl").rows() if "seconds" in row]
