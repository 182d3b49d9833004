"""Where the videos of a list are to be written: checks made before any model is loaded. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import ExistingFileError, InputError
from common.outputs import check_output_file, check_output_folder, ignores_case
from omniavatar.video.target import foreign_file
from pipelines.generate.sample_list import Sample

RESULTS = "results.csv"
COLUMNS = ("name", "state", "video", "message")
"""The table of outcomes of a list, and its header."""


def check_targets(samples: Sequence[Sample], out: Path, listed: Path) -> list[Sample]:
    """The samples of the file `listed`, with an error for each whose video, settings or portrait would replace an input
    of any sample or a file that no generation wrote.

    Raises InputError or ExistingFileError where two have the same output, `out` cannot be written into, or the table of
    results would replace the list or another program's table.
    """
    check_output_folder(out)
    table = out / RESULTS
    check_output_file(table, inputs=(listed,))
    if table.exists() and not _is_results(table):
        raise ExistingFileError(f"{table} exists and holds no results of a list; move it or choose another folder.")
    caseless, first = ignores_case(out), dict[str, str]()
    for sample in samples:
        key = sample.name.casefold() if caseless else sample.name
        if key in first:
            raise InputError(f"The samples '{first[key]}' and '{sample.name}' have one output in {out}; rename one.")
        first[key] = sample.name
    files = [path for sample in samples for path in (sample.request.image, sample.request.audio) if path is not None]
    inputs = {identity: path for path in files if (identity := _identity(path)) is not None}
    return [sample if sample.error else replace(sample, error=_fault(sample, out, inputs)) for sample in samples]


def _fault(sample: Sample, out: Path, inputs: Mapping[tuple[int, int], Path]) -> str:
    """Why the video of a sample cannot be written, "" if it can."""
    for suffix in (".mp4", ".json") if sample.request.image else (".mp4", ".json", ".png"):
        path = out / f"{sample.name}{suffix}"
        identity = _identity(path)
        if identity is not None and identity in inputs:
            return f"its output {path} is the input {inputs[identity]} of this list; give the sample another name"
        if path.is_dir():
            return f"its output {path} is a folder; give the sample another name"
    foreign = foreign_file(out / f"{sample.name}.mp4", sample.request)
    return foreign and f"{foreign} exists and was not written by a generation; move it or give the sample another name"


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of an existing file: equal for all its names and links."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _is_results(table: Path) -> bool:
    with table.open("rb") as file:
        return file.readline(100).strip() == ",".join(COLUMNS).encode()
