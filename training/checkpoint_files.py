"""Files of a resumable checkpoint and of an export: whether all of them are there in full, and which is the latest.

Imports no torch: the command line asks before it starts any rank.
"""

import re
import zipfile
from pathlib import Path

from common.errors import DamagedFileError, shorten
from common.runs import FORMAT_FILE, read_json, write_json

LATEST, PARTS = "latest", "parts.json"


def write_parts(checkpoint: Path) -> None:
    """Record name and size of every file of a checkpoint that is about to be published."""
    files = sorted(file for file in checkpoint.iterdir() if file.is_file() and file.name != PARTS)
    write_json(checkpoint / PARTS, {file.name: file.stat().st_size for file in files})


def latest_checkpoint(state: Path) -> str:
    """Name of the checkpoint that `latest` names, "" before the first one.

    Raises DamagedFileError, which says from which older checkpoint the training can go on, when `latest` names none or
    one that is not whole.
    """
    latest = state / LATEST
    whole = [folder.name for folder in sorted(state.glob("step-*"), reverse=True) if not checkpoint_problem(folder)]
    if not latest.exists():
        return whole[0] if whole else ""  # killed after the first checkpoint was renamed, before `latest` was written
    if latest.is_dir():
        raise DamagedFileError(f"{latest} is a folder, expected a file; delete it and run the command again.")
    name = latest.read_bytes()[:200].decode("utf-8", "replace").strip()
    if not name or name != Path(name).name or not (state / name).is_dir():
        named = shorten(repr(name))
        raise DamagedFileError(f"{latest} names the checkpoint {named}, there is none; {_how_to_go_on(state, whole)}")
    if problem := checkpoint_problem(state / name):
        raise DamagedFileError(f"{state / name} is damaged: {problem}; {_how_to_go_on(state, whole)}")
    return name


def checkpoint_problem(folder: Path) -> str:
    """What of a checkpoint is missing, short or no archive of torch; "" when nothing is."""
    try:
        sizes = read_json(folder / PARTS) if (folder / PARTS).exists() else {}
        if (folder / FORMAT_FILE).exists():
            read_json(folder / FORMAT_FILE, "version")
    except DamagedFileError as error:
        return str(error).partition("; ")[0]
    if not isinstance(sizes, dict):
        return f"{PARTS} holds no sizes"
    states = {file.name for file in folder.glob("*_states.pt")}
    if not any(name.endswith("model_states.pt") for name in states):
        return "it has no model state"
    for name in sorted(states | set(sizes)):
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != sizes.get(name, file.stat().st_size):
            return f"{name} has {file.stat().st_size} bytes, {sizes[name]} were written"
        if name in states and not zipfile.is_zipfile(file):
            return f"{name} is cut short or overwritten"
    return "" if sizes else _lost_rank(states)


def export_problem(folder: Path) -> str:
    """What of an export (`checkpoints/adapter/`, `base/`) is missing, cut short or overwritten; "" when nothing is."""
    from safetensors import SafetensorError, safe_open

    weights = sorted(file for file in folder.rglob("*") if file.suffix in (".pt", ".safetensors"))
    if not weights:
        return "it has no weights"
    try:
        read_json(folder / "config.json")
    except FileNotFoundError:
        return "config.json is missing"
    except DamagedFileError as error:
        return str(error).partition("; ")[0]
    for file in weights:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="numpy"):  # compares what the header says with the size
                    continue
            whole = zipfile.is_zipfile(file)
        except (SafetensorError, OSError):  # the latter of a folder
            whole = False
        if not whole:
            return f"{file.relative_to(folder)} is cut short or overwritten"
    return ""


def _lost_rank(states: set[str]) -> str:
    """For checkpoints before sizes were recorded: the first rank without its part, where the others show it."""
    by_kind = {
        kind: {int(found[1]) for name in states if (found := re.search(rf"zero_pp_rank_(\d+)_.*{kind}_states", name))}
        for kind in ("model", "optim")
    }
    ranks = max(max(found, default=-1) for found in by_kind.values()) + 1
    for kind, present in by_kind.items():
        if present and (lost := set(range(ranks)) - present):  # at stage 1 and 2 one model state serves all ranks
            return f"the {kind} state of rank {min(lost)} is missing"
    return ""


def _how_to_go_on(state: Path, whole: list[str]) -> str:
    if not whole:
        return f"no older checkpoint is whole: delete {state} to start again."
    return f"{whole[0]} is whole: to go on from it, write {whole[0]} into {state / LATEST} and run the command again."
