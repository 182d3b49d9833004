"""START HERE. A rehearsal: random weights for what is absent, every command on them, measurements beside forecasts."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.recipe import dump_recipe
from common.runs import atomic_write, fingerprint, read_json
from common.signals import Stopped
from omniavatar.config import ENCODER_ROLES, GENERATION_ROLES
from omniavatar.planning.modes import USABLE, free_host_memory
from omniavatar.planning.sizes import networks_of
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
from pipelines.rehearse.results import Results
from pipelines.rehearse.shapes import PROMPT, Sizes
from pipelines.rehearse.stages import EXPORTED, GENERATION, RECIPE_FILE, RUN, Clip, clip_of, rehearsal_recipe, stages
from pipelines.rehearse.weights import (
    check_room,
    identity,
    missing_files,
    read_marker,
    remove_random,
    write_missing,
)
from pipelines.roles import require

RESULTS, WEIGHTS, INPUTS = "rehearsal.json", "random-weights", "inputs"
VERSION = 1  # of what a stage does; results of another are measured again


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
    """Rehearse a recipe; returns what `rehearsal.json` holds. `say` is told of each thing as it begins.

    `whole`: sizes of what is absent, None for those of the recipe's base; `clip` None is one for this machine. Raises
    InputError where disk or memory are too small, and for a base whose shapes are not known; ExistingFileError for a
    file that is not ours where one would be written; Stopped by a signal, with everything left for the next call.
    """
    deadline = time.monotonic() + 60 * options.minutes
    to, gpu = options.to, torch.cuda.is_available()
    asked = GENERATION_ROLES if {"generate", "train"} & set(options.steps) else ENCODER_ROLES
    named = require(recipe.named_models(), asked)
    present = {role: path for role, path in named.items() if path.exists()}
    own = rehearsal_recipe(recipe, clip := clip or clip_of(recipe, gpu), gpu)
    whole = whole or whole_sizes(named)
    base = base_entry(named) if len(present) < len(named) else ""

    def needed(sizes: Sizes) -> int:
        random = random_roles([role for role in named if role not in present], sizes, to / WEIGHTS, base)
        return sum(role.bytes for role in random) + results_bytes(options.steps, sizes)

    names = [stage.name for stage in stages(to, options.steps, to, to, "")]
    memory, device = free_host_memory(), torch.cuda.mem_get_info()[0] if gpu else 0
    room = (shutil.disk_usage(_nearest(to)).free if options.free is None else options.free) + _bytes_of_ours(
        to / WEIGHTS
    )

    def lacks(sizes: Sizes) -> str:
        networks = networks_before(sizes, present)
        in_mode = with_memory_mode(own, networks, clip, device, memory)
        peaks = {name: foresee(name, networks, in_mode, clip, gpu) for name in names}
        largest = max(peaks, key=lambda name: peaks[name].host)
        if peaks[largest].host > USABLE * memory:
            return f"{largest} takes {gigabytes(peaks[largest].host)} of memory, {gigabytes(memory)} are free"
        largest = max(peaks, key=lambda name: peaks[name].device)
        if gpu and peaks[largest].device > USABLE * device:
            return f"{largest} takes {gigabytes(peaks[largest].device)} of the GPU, {gigabytes(device)} are free"
        if (written := needed(sizes)) > room:
            return f"{gigabytes(written)} are written to {to}, where only {gigabytes(room)} are free"
        return ""

    before = read_json(to / RESULTS) if (to / RESULTS).exists() else {}
    sizes = _as_before(before, whole, options)
    if sizes is None or lacks(sizes):
        sizes = choose_depth(whole, present, options.layers, lacks)
    why = "--layers" if options.layers else f"{gigabytes(memory)} of memory and {gigabytes(room)} of disk are free"
    say(depth_sentence(sizes, whole, why))
    random = random_roles([role for role in named if role not in present], sizes, to / WEIGHTS, base)
    missing, damage = missing_files(random)
    for sentence in damage:
        say(f"{sentence}: it is written again")
    for role, path in present.items():
        say(f"{role}: {path} is there and is used")
    if random:
        say(check_room(missing, results_bytes(options.steps, sizes), to / WEIGHTS, options.free))
    began = time.monotonic()
    write_missing(random, missing, say)
    paths = present | {role.role: role.path for role in random}
    networks = networks_of(dict(paths))
    if before.get("sizes") == asdict(sizes):  # the mode that was measured, whatever is free now
        load = replace(own.generate.load, memory=before["mode"])
        own = replace(own, generate=replace(own.generate, load=load))
    own = with_memory_mode(own, networks, clip, device, memory)
    own = replace(own, models={role: str(path.absolute()) for role, path in paths.items()})
    with atomic_write(to / RECIPE_FILE) as file:
        file.write_text(dump_recipe(own), "utf-8")
    request = draw_long_input(to / INPUTS, seconds=(clip.frames - 1) / 25)
    todo = stages(to, options.steps, to / INPUTS / "portrait.png", to / INPUTS / "voice.wav", PROMPT)
    results = Results(to, fingerprint([VERSION, identity(paths, random), dump_recipe(own), str(request.image)]))
    results.content |= {
        "recipe": recipe.name,
        "clip": asdict(clip),
        "sizes": asdict(sizes),
        "whole": asdict(whole),
        "layers": options.layers,
        "mode": own.generate.load.memory,
        "weights_bytes": sum(role.bytes for role in random),
        "weights_seconds": time.monotonic() - began if missing else before.get("weights_seconds", 0.0),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if gpu else "",
    }
    forecasts = {stage.name: asdict(foresee(stage.name, networks, own, clip, gpu)) for stage in todo}
    try:
        results.run(todo, forecasts, deadline, say)
    except Stopped as stop:
        stop.add_note(f"what was measured is in {to / RESULTS}, the random weights stay in {to / WEIGHTS} until then")
        raise
    if not options.keep:
        freed = clean(to)
        say(f"removed {gigabytes(freed)} of random weights and results; --keep leaves them in {to}")
    return results.content


def _as_before(before: dict[str, Any], whole: Sizes, options: Options) -> Sizes | None:
    """The depth of the rehearsal before, so that one that was killed goes on with its weights; None for another one."""
    if not before or before.get("whole") != asdict(whole) or before.get("layers") != options.layers:
        return None
    return Sizes(**before["sizes"])


def _bytes_of_ours(root: Path) -> int:
    files = [
        marker.parent / name for marker in root.rglob("random-weights.json") for name in read_marker(marker.parent)
    ]
    return sum(file.stat().st_size for file in files if file.is_file())


def _nearest(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def clean(to: Path) -> int:
    """Remove the random weights and what the stages have made; logs and measurements stay. Returns the bytes."""
    folders = [to / RUN, to / GENERATION, to / EXPORTED]
    made = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    freed = sum(file.stat().st_size for file in made) + remove_random(to / WEIGHTS)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return freed
