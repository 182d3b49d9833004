"""START HERE. A rehearsal: random weights for what is absent, every command on them, measurements beside forecasts."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.constants import FPS
from common.process.signals import Stopped
from common.recipe import dump_recipe
from common.runs import atomic_write, fingerprint, read_json
from omniavatar.config import ENCODER_ROLES, GENERATION_ROLES, MemoryMode
from omniavatar.planning.modes import USABLE, free_host_memory
from omniavatar.planning.sizes import Networks, networks_of
from pipelines.drawn import draw_long_input
from pipelines.models.published import gigabytes
from pipelines.recipe import Recipe
from pipelines.rehearse.depth import (
    base_entry,
    choose_depth,
    depth_sentence,
    networks_before,
    random_roles,
    whole_sizes,
)
from pipelines.rehearse.forecast import foresee, results_bytes, with_memory_mode
from pipelines.rehearse.results import RESULTS, Results
from pipelines.rehearse.shapes import PROMPT, Sizes
from pipelines.rehearse.stages import (
    EXPORTED,
    GENERATION,
    RECIPE_FILE,
    RUN,
    Clip,
    Stage,
    clip_of,
    rehearsal_recipe,
    stages,
)
from pipelines.rehearse.weights import (
    RandomRole,
    bytes_of_ours,
    check_room,
    identity,
    missing_files,
    remove_random,
    write_missing,
)
from pipelines.roles import require

WEIGHTS, INPUTS = "random-weights", "inputs"
VERSION = 1  # of what a stage does; results of another are measured again

SHARE = 0.8  # of the free memory that a rehearsal takes when it chooses its depth: the machine has other work to do


@dataclass(frozen=True)
class Options:
    """What to rehearse: `steps`, into the folder `to`, for at most `minutes`; `keep` leaves weights and results there.
    `layers`: blocks of transformer and text encoder, 0 for as many as fit. `free`: bytes that may be written, None for
    what the disk has."""

    steps: tuple[str, ...]
    to: Path
    minutes: float = 60.0
    keep: bool = False
    layers: int = 0
    free: int | None = None


def rehearse(
    recipe: Recipe,
    options: Options,
    say: Callable[[str], None],
    whole: Sizes | None = None,
    clip: Clip | None = None,
) -> dict[str, Any]:
    """Rehearse a recipe; returns what `rehearsal.json` holds. `say` gets a sentence for each thing as it begins.

    `whole`: sizes of what is absent, None for those of the recipe's base; `clip` None is one for this machine. Raises
    InputError where disk or memory are too small, and for a base whose shapes are not known; ExistingFileError for a
    file that is not ours where one would be written; Stopped by a signal, with everything kept for the next call.
    """
    deadline = time.monotonic() + 60 * options.minutes
    to, gpu = options.to, torch.cuda.is_available()
    setting = _setting(recipe, options, clip or clip_of(recipe, gpu), whole, gpu)
    before = read_json(to / RESULTS) if (to / RESULTS).exists() else {}
    sizes = setting.choose(before)
    say(depth_sentence(sizes, setting.whole, setting.reason))
    for role, path in setting.present.items():
        say(f"{role}: {path} is there and is used")
    random, began = setting.random(sizes), time.monotonic()
    missing = _write(random, options, sizes, say)
    paths = setting.present | {role.role: role.path for role in random}
    networks = networks_of(dict(paths))
    own = setting.in_mode(networks, before.get("mode", "auto") if before.get("sizes") == asdict(sizes) else "auto")
    own = replace(own, models={role: str(path.absolute()) for role, path in paths.items()})
    with atomic_write(to / RECIPE_FILE) as file:
        file.write_text(dump_recipe(own), "utf-8")
    draw_long_input(to / INPUTS, seconds=(setting.clip.frames - 1) / FPS)
    results = Results(to, fingerprint([VERSION, identity(paths, random), dump_recipe(own)]))
    results.content |= {
        "recipe": recipe.name,
        "clip": asdict(setting.clip),
        "sizes": asdict(sizes),
        "whole": asdict(setting.whole),
        "layers": options.layers,
        "mode": own.generate.load.memory,
        "weights_bytes": sum(role.bytes for role in random),
        "weights_seconds": time.monotonic() - began if missing else before.get("weights_seconds", 0.0),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if gpu else "",
    }
    todo = setting.stages()
    forecasts = {stage.name: asdict(foresee(stage.name, networks, own, setting.clip, gpu)) for stage in todo}
    try:
        results.run(todo, forecasts, deadline, say)
    except Stopped as stop:
        stop.add_note(f"what was measured is in {to / RESULTS}, the random weights stay in {to / WEIGHTS} until then")
        raise
    if not options.keep:
        say(f"removed {gigabytes(clean(to))} of random weights and results; --keep leaves them in {to}")
    return results.content


@dataclass(frozen=True)
class _Setting:
    """What is rehearsed of a recipe, and with what: `named` are its paths, `present` those that exist, `base` the
    published base whose shapes the others get, `own` the recipe of the rehearsal without weights. Free bytes of
    `memory`, `device` (0 without a GPU) and disk (`room`)."""

    options: Options
    clip: Clip
    whole: Sizes
    named: Mapping[str, Path]
    present: dict[str, Path]
    base: str
    own: Recipe
    memory: int
    device: int
    room: int

    @property
    def reason(self) -> str:
        """Why models are no deeper."""
        if self.options.layers:
            return "--layers"
        return f"{gigabytes(self.memory)} of memory and {gigabytes(self.room)} of disk are free"

    def stages(self) -> list[Stage]:
        """The stages of the steps that were asked for."""
        inputs = self.options.to / INPUTS
        return stages(self.options.to, self.options.steps, inputs / "portrait.png", inputs / "voice.wav", PROMPT)

    def random(self, sizes: Sizes) -> list[RandomRole]:
        """The roles that get random weights."""
        absent = [role for role in self.named if role not in self.present]
        return random_roles(absent, sizes, self.options.to / WEIGHTS, self.base)

    def choose(self, before: Mapping[str, Any]) -> Sizes:
        """The depth of the rehearsal `before`, so that one that was killed goes on with its weights, or a new one."""
        if before.get("whole") == asdict(self.whole) and before["layers"] == self.options.layers:
            sizes = Sizes(**before["sizes"])
            if not self.lacks(sizes):
                return sizes
        return choose_depth(self.whole, self.present, self.options.layers, self.lacks)

    def in_mode(self, networks: Networks, mode: MemoryMode) -> Recipe:
        """`own` in this memory mode of generation, with "auto" in the one that fits what is free."""
        load = self.own.generate.load
        load = replace(load, memory=mode) if load.memory == "auto" else load
        own = replace(self.own, generate=replace(self.own.generate, load=load))
        return with_memory_mode(own, networks, self.clip, self.device, self.memory)

    def lacks(self, sizes: Sizes) -> str:
        """What models of these sizes have no room for, "" when they fit."""
        networks = networks_before(sizes, self.present)
        own = self.in_mode(networks, "auto")
        peaks = {each.name: foresee(each.name, networks, own, self.clip, self.device > 0) for each in self.stages()}
        largest = max(peaks, key=lambda name: peaks[name].host)
        share = USABLE if self.options.layers else SHARE
        if peaks[largest].host > share * self.memory:
            return f"{largest} takes {gigabytes(peaks[largest].host)} of memory, {gigabytes(self.memory)} are free"
        largest = max(peaks, key=lambda name: peaks[name].device)
        if peaks[largest].device > USABLE * self.device:
            return f"{largest} takes {gigabytes(peaks[largest].device)} of the GPU, {gigabytes(self.device)} are free"
        size = sum(role.bytes for role in self.random(sizes)) + results_bytes(self.options.steps, sizes)
        if size > self.room:
            return f"{gigabytes(size)} go to {self.options.to}, where only {gigabytes(self.room)} are free"
        return ""


def _setting(recipe: Recipe, options: Options, clip: Clip, whole: Sizes | None, gpu: bool) -> _Setting:
    asked = GENERATION_ROLES if {"generate", "train"} & set(options.steps) else ENCODER_ROLES
    named = require(recipe.named_models(), asked)
    present = {role: path for role, path in named.items() if path.exists()}
    free = shutil.disk_usage(_nearest(options.to)).free if options.free is None else options.free
    return _Setting(
        options,
        clip,
        whole or whole_sizes(named),
        named,
        present,
        base_entry(named) if len(present) < len(named) else "",
        rehearsal_recipe(recipe, clip, gpu),
        free_host_memory(),
        torch.cuda.mem_get_info()[0] if gpu else 0,
        free + bytes_of_ours(options.to / WEIGHTS),
    )


def _write(random: Sequence[RandomRole], options: Options, sizes: Sizes, say: Callable[[str], None]) -> int:
    """Write what is missing of the random weights, after saying how much that is; the number of files."""
    missing, damage = missing_files(random)
    for sentence in damage:
        say(f"{sentence}: it is written again")
    if random:
        say(check_room(missing, results_bytes(options.steps, sizes), options.to / WEIGHTS, options.free))
    write_missing(random, missing, say)
    return len(missing)


def _nearest(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def clean(to: Path) -> int:
    """Remove the random weights and what the stages have made; logs and measurements stay. Returns the bytes."""
    folders = [to / RUN, to / GENERATION, to / EXPORTED]
    results = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    freed = sum(file.stat().st_size for file in results) + remove_random(to / WEIGHTS)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return freed
