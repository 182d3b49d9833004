"""Source videos of the small world in a folder, some with a planted fault, each with its truth in a sidecar.

`<name>.mp4` has `<name>.json` beside it: the caption (which any captioned source may bring), where two people are seen
the annotated row of a data set that names the speaker (`segments`), and under `truth` what was planted, which curation
never reads.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common.media.write import write_video
from common.progress import progress
from common.runs import read_json, write_json
from miniature.config import SmallWorldConfig
from miniature.world.figure import Framing
from miniature.world.planted import FAULTS, Source, Truth

DRIFTS = (6, -6, 8, -8, 7, -7)  # frames from the first frame to the last


def plan(config: SmallWorldConfig) -> list[Truth]:
    """The truth of every source, in the order of their numbers; framings alternate, offsets run through -10..10."""
    kinds = ["clean"] * config.clean + ["offset"] * config.offset
    kinds += [kind for kind in FAULTS if kind not in ("clean", "offset") for _ in range(config.each_fault)]
    truths: list[Truth] = []
    for number, kind in enumerate(kinds):
        framing: Framing = "half" if number % 3 == 2 else "face"
        truth = Truth(kind, config.seed + number, framing, config.seconds)
        if kind == "offset":
            truth = replace(truth, shift=(number - config.clean) % 21 - 10)
        if kind == "drift":
            truth = replace(truth, shift=DRIFTS[kinds[:number].count("drift") % len(DRIFTS)])
        if kind == "duplicate":
            # Sources are judged in the order of their names, so the original always comes first.
            index = kinds[:number].count("duplicate") % max(1, config.clean)
            truth = replace(truths[index], kind=kind, original=source_name(index))
        truths.append(truth)
    return truths


def source_name(number: int) -> str:
    """File name, without ending, of source `number`."""
    return f"source_{number:04d}"


def draw_sources(folder: Path, config: SmallWorldConfig) -> list[Path]:
    """Write every planned source that is not there yet; the sidecar comes last and marks a source as finished."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, truth in enumerate(progress(plan(config), "draw sources")):
        path = folder / f"{source_name(number)}.mp4"
        sidecar = path.with_suffix(".json")
        if not sidecar.exists() or read_json(sidecar)["truth"] != asdict(truth):
            source = FAULTS[truth.kind](truth)
            write_video(path, source.frames, source.audio, source.fps, crf=source.crf, timestamps=source.timestamps)
            source.finish(path)
            write_json(sidecar, {"caption": source.caption} | _segments(source) | {"truth": asdict(truth)})
        paths.append(path)
    return paths


def _segments(source: Source) -> dict[str, Any]:
    if source.annotated is None:
        return {}
    x, y = (round(value, 4) for value in source.annotated)
    return {"segments": [{"row_index": 0, "start": 0.0, "end": len(source.frames) / source.fps, "x": x, "y": y}]}
