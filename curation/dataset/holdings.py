"""What a run holds of one video, found by exact keys: its id, the ids of its clips, and the files that rows with these
ids refer to. What another video's row refers to as well is not among it."""

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.constants import VIDEO_SUFFIXES
from common.errors import InputError
from common.ledger.forget import Keys, count_units, ledger_stages, output_texts, stage_units
from common.ledger.store import FLOW
from common.parquet import reading_parquet
from common.runs import RunFolder, read_json
from common.shards.index import INDEX
from curation.reporting.summary import SOURCES_FILE
from curation.sources.remote import SAFE_ID

Row = dict[str, Any]
FOLDER, VERSIONS = "takedowns", "versions"
OWN = ("ledger", "shards", FOLDER, VERSIONS)  # folders of the run that have removal code of their own
PER_FRAME = "per_frame"  # what there is a value of per frame: scans and tracks
# Temporary files of killed writers (`common.runs.atomic_write`, `common.clips.write_clips`).
TORN = re.compile(r"\..+\.(tmp|unsorted)(\.\w+)?")
SOURCE_STAGES = ("sweep", "download", "fetch", "probe", "scan", "tracks", "rebuild_fit")  # their units are videos
# Units of these are batches, samples of a list and hashes: none is a video or a clip.
OTHER_STAGES = ("videos", "animate", "takedown")
EVAL = "eval"  # its units are method/clip_id/seed, and reference/FILE and picture/FILE
# Stage -> where its outputs name files, and the folder of the run that these are in.
REFERENCES = {
    "fetch": ("$.file", "cache/videos/.stored"),
    "download": ("$.file", "cache/videos"),
    "scan": ("$.scan_file", PER_FRAME),
    "tracks": ("$.tracks_file", PER_FRAME),
    EVAL: ("$.files.*", "cache/features"),
}
MANIFEST = "videos/manifest.parquet"
MANIFEST_FILES = ("video", "reference", "audio", "image")


def find_holdings(run: RunFolder, video_id: str) -> Row:
    """What there is of a video: `clips` (ids), `files` and `tables` with rows of it (relative to the run), `paths` (of
    its source, as recorded) and `counts` of what a takedown removes. Changes nothing. Raises DamagedFileError."""
    ledger, index = run.root / "ledger", run.root / "shards" / INDEX
    clip_rows = read_columns(run.clips_parquet, ("clip_id", "video_id"))
    shard_rows = read_columns(index, ("clip_id", "video_id"))
    held = [row for table in (clip_rows, shard_rows) if table for row in table.to_pylist()]
    clips = {row["clip_id"] for row in held if row["video_id"] == video_id}
    # Those of earlier cuts are in the ledger only.
    clips |= set(output_texts(ledger, "tracks", {video_id}, "$.rows[*].clip_id"))
    paths = [row["path"] for row in _own_rows(run.root / SOURCES_FILE, ("path",), "video_id", {video_id})[0]]
    paths = [path for path in paths if path]
    files = source_files(run, video_id, paths) | clip_files(run, clips) | _manifest_files(run, video_id, clips)
    keys = ledger_keys(run, video_id, clips, files)
    files |= _ledger_files(run, keys)
    rows = {file: count_rows(file, video_id, clips) for file in tables(run)}
    counts = {
        "lists": _listed(run, video_id),
        "clip_rows": count_rows(run.clips_parquet, video_id, ()),
        "table_rows": sum(rows.values()),
        "files": len(files),
        "ledger_rows": count_units(ledger, keys) + count_units(ledger / FLOW, flow_keys(run, video_id, clips)),
        "samples": count_rows(index, video_id, clips),
    }
    found = {"video": video_id, "clips": sorted(clips), "files": sorted(files), "paths": paths, "counts": counts}
    return found | {"tables": [file.relative_to(run.root).as_posix() for file, count in rows.items() if count]}


def require_known(run: RunFolder, holdings: Row) -> None:
    """Raise InputError when no row of the run has this video id, with the ids that may be meant."""
    video_id, counts = holdings["video"], holdings["counts"]
    rows = counts["clip_rows"] + counts["table_rows"] + counts["samples"] + sum(counts["lists"].values())
    if rows or count_units(run.root / "ledger", dict.fromkeys(SOURCE_STAGES, {video_id})):
        return
    clips = read_columns(run.clips_parquet, ("clip_id", "video_id"))
    sources = read_columns(run.root / SOURCES_FILE, ("video_id",))
    videos = {row["video_id"] for table in (clips, sources) if table for row in table.to_pylist() if row["video_id"]}
    of_clip = [row["video_id"] for row in clips.to_pylist() if row["clip_id"] == video_id] if clips else []
    same = [name for name in videos if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", video_id)]
    near = sorted(name for name in videos if Path(name).stem == video_id) or difflib.get_close_matches(video_id, videos)
    advice = "expected a video_id of its sources.parquet"
    if of_clip:
        advice = f"that is a clip of '{of_clip[0]}'; give the id of the video"
    elif same:
        advice = f"it has '{same[0]}', which looks alike and is written with other code points; copy that id"
    elif near:
        advice += f", such as {', '.join(map(repr, near[:3]))}"
    raise InputError(f"{run.root} knows no video '{video_id}'; {advice}.")


def ledger_keys(run: RunFolder, video_id: str, clips: Collection[str], files: Collection[str]) -> Keys:
    """The units of a video by stage: itself, its clips, and in evaluation its clips' videos and its `files`."""
    ledger, keys = run.root / "ledger", {}
    _, others = _own_rows(run.clips_parquet, ("clip_id",), "video_id", {video_id})
    both = {*clips} if any(row["clip_id"] == video_id for row in others) else {video_id, *clips}
    for stage in ledger_stages(ledger):
        if stage in SOURCE_STAGES:
            keys[stage] = {video_id}
        elif stage == EVAL:
            judged = {*files, *(str(run.root.resolve() / file) for file in files)}
            keys[stage] = {unit for unit in stage_units(ledger, EVAL) if _judges(unit, clips, judged)}
        elif stage not in OTHER_STAGES:
            keys[stage] = both
    return keys


def flow_keys(run: RunFolder, video_id: str, clips: Collection[str]) -> Keys:
    """The units of a video in the ledger of flows."""
    return {stage: {video_id, *clips} for stage in ledger_stages(run.root / "ledger" / FLOW)}


def _judges(unit: str, clips: Collection[str], files: Collection[str]) -> bool:
    kind, _, file = unit.partition("/")
    parts = unit.rsplit("/", 2)
    of_clip = len(parts) == 3 and parts[1] in clips and parts[2].isdigit()
    return of_clip or (kind in ("reference", "picture") and file in files)


def clip_files(run: RunFolder, clips: Collection[str]) -> set[str]:
    """Files that are named exactly `<clip_id>.<suffix>` where files of clips are, relative to the run."""
    folders = [run.root / name for name in ("clips", "videos", "cache/latents")]
    found = {file for folder in folders for file in folder.rglob("*") if file.stem in clips and file.is_file()}
    return {file.relative_to(run.root).as_posix() for file in found}


def source_files(run: RunFolder, video_id: str, paths: Collection[str]) -> set[str]:
    """The files of a source that are in the run, relative to it: those recorded as `paths`, downloads by their name,
    and the JSON beside them; none that is recorded for another video."""
    root = run.root.resolve()
    videos = {_place(path) for path in paths}
    if not paths or any(f"/{path}".endswith(f"/sources/{video_id}") for path in paths):
        videos.add(_place(root / "sources" / video_id))  # of a run that was moved or copied
    found: set[Path] = set()
    if SAFE_ID.fullmatch(video_id):  # as the ids of downloads are
        downloads = root / "cache" / "videos"
        videos |= {_place(downloads / f"{video_id}{suffix}") for suffix in (*sorted(VIDEO_SUFFIXES), ".part")}
        # The names that `curation.download.site` gives to the streams of a download.
        part = re.compile(re.escape(video_id) + r"\.(f[^.]+|joined)\.[A-Za-z0-9]+(\.part(-Frag\d+(\.part)?)?|\.ytdl)?")
        parts = (downloads / ".parts").iterdir() if (downloads / ".parts").is_dir() else ()
        found = {file for file in parts if part.fullmatch(file.name)} | {_place(downloads / f"{video_id}.json")}
    videos -= _other_sources(run, video_id)
    notes = {video.with_suffix(".json") for video in videos if video.suffix.lower() in VIDEO_SUFFIXES}
    # A sidecar is that of all videos which differ from it in the suffix only.
    shared = {note for note in notes for path in _beside(note) if path not in videos}
    return _inside(run, found | videos | (notes - shared))


def _beside(note: Path) -> Iterator[Path]:
    """The videos whose sidecar this is."""
    if note.parent.is_dir():
        names = (path for path in note.parent.iterdir() if path.stem == note.stem)
        yield from (path for path in names if path.suffix.lower() in VIDEO_SUFFIXES)


def _manifest_files(run: RunFolder, video_id: str, clips: Collection[str]) -> set[str]:
    """The videos that manifest rows of these clips name; none that a row of another clip or source refers to."""
    own, others = _own_rows(run.root / MANIFEST, MANIFEST_FILES, "clip_id", clips)
    kept = {_place(run.root / row[name]) for row in others for name in MANIFEST_FILES if row[name]}
    kept |= _other_sources(run, video_id)
    _, rest = _own_rows(run.clips_parquet, (), "clip_id", clips)
    kept |= {_place(run.root / f"clips/{row['clip_id']}.mp4") for row in rest}
    videos = {row["video"] for row in own if Path(row["video"] or "").suffix.lower() in VIDEO_SUFFIXES}
    return _inside(run, {_place(run.root / file) for file in videos} - kept)


def _other_sources(run: RunFolder, video_id: str) -> set[Path]:
    _, others = _own_rows(run.root / SOURCES_FILE, ("path",), "video_id", {video_id})
    return {_place(row["path"]) for row in others if row["path"]}


def _ledger_files(run: RunFolder, keys: Keys) -> set[str]:
    """Files of the run that outputs of these units refer to, and those of no other unit do."""
    found: set[Path] = set()
    for stage, (path, folder) in REFERENCES.items():
        texts = output_texts(run.root / "ledger", stage, keys.get(stage, ()), path)
        base = (run.root / folder).resolve()
        files = {_place(base / text) for text, shared in texts.items() if not shared}
        found |= {file for file in files if file.is_relative_to(base)}
    return _inside(run, found)


def _place(path: Path | str) -> Path:
    """Where a file is; a link stays one."""
    return Path(path).parent.resolve() / Path(path).name


def _inside(run: RunFolder, files: Collection[Path]) -> set[str]:
    """Those of the files that exist inside the run, relative to it."""
    root = run.root.resolve()
    there = [file for file in files if file.is_relative_to(root) and (file.is_file() or file.is_symlink())]
    return {file.relative_to(root).as_posix() for file in there}


def _listed(run: RunFolder, video_id: str) -> dict[str, int]:
    """Name -> number of clips of the video, of the run's frozen lists that hold it. Raises DamagedFileError also for a
    header that cannot be read: the list could not be written again without it."""
    for file in (run.root / VERSIONS).glob("*.parquet"):
        read_json(file.with_suffix(".json"), "rules", "sha256_now")
    lists = {file.stem: read_columns(file, ("video_id",)) for file in sorted((run.root / VERSIONS).glob("*.parquet"))}
    counts = {name: table["video_id"].to_pylist().count(video_id) for name, table in lists.items() if table}
    return {name: count for name, count in counts.items() if count}


def _own_rows(file: Path, columns: Collection[str], key: str, values: Collection[str]) -> tuple[list[Row], list[Row]]:
    """These columns of the rows of a table whose `key` is one of the values, and of all other rows."""
    table = read_columns(file, (key, *columns))
    rows = [dict.fromkeys(columns) | row for row in table.to_pylist()] if table else []
    return [row for row in rows if row[key] in values], [row for row in rows if row[key] not in values]


def read_columns(file: Path, columns: Collection[str]) -> pa.Table | None:
    """Those of the columns that a Parquet file has; None without a file or any of them. Raises DamagedFileError."""
    if not file.exists():
        return None
    with reading_parquet(file), pq.ParquetFile(file) as stored:
        names = [name for name in columns if name in stored.schema_arrow.names]
        return stored.read(names) if names else None


def is_own(table: pa.Table, video_id: str, clips: Collection[str]) -> pa.ChunkedArray | None:
    """Of each row of a table, whether its `video_id` or `clip_id` is this video's; None for a table without these."""
    ids_of = {"video_id": [video_id], "clip_id": sorted(clips)}
    marks = [
        pc.fill_null(pc.is_in(table[name].cast(pa.string()), pa.array(ids, pa.string())), False)
        for name, ids in ids_of.items()
        if name in table.column_names and is_text(table.schema.field(name).type)
    ]
    return (pc.or_(*marks) if len(marks) == 2 else marks[0]) if marks else None


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts, be they in a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def count_rows(file: Path, video_id: str, clips: Collection[str]) -> int:
    """The number of rows of a Parquet file that are this video's. Raises DamagedFileError."""
    table = read_columns(file, ("video_id", "clip_id"))
    marks = is_own(table, video_id, clips) if table else None
    return pc.sum(marks).as_py() or 0 if marks is not None else 0


def tables(run: RunFolder) -> list[Path]:
    """The Parquet files of the run, except the clip table and those in OWN folders."""
    return [file for file in run_files(run, {".parquet"}) if file != run.clips_parquet]


def run_files(run: RunFolder, suffixes: Collection[str]) -> Iterator[Path]:
    """The files of the run with one of these suffixes, sorted by name, but none that is TORN or in an OWN folder."""
    for file in sorted(run.root.rglob("*")):
        matches = file.suffix in suffixes and file.is_file() and not TORN.fullmatch(file.name)
        if matches and file.relative_to(run.root).parts[0] not in OWN:
            yield file
