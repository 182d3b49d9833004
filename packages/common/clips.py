"""Clip table: one row per clip, with every measurement that a decision or a query may use."""

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.errors import MissingFileError, UserError
from common.ledger.tables import BATCH_ROWS, check_table_format, write_ordered, write_sorted
from common.parquet import read_batches

GROUP_ROWS = 65_536  # of the file's row groups, which are read or passed over as a whole
TEXT, INT, REAL = pa.string(), pa.int64(), pa.float64()

# What each field means, with its unit; a field without a value is null. A new measurement is one line here.
CLIP_FIELDS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("clip_id", TEXT, "hash of video, start, end and cut rule; see `clip_id`"),
    ("video_id", TEXT, "id of the source video"),
    ("source", TEXT, "data set the video comes from: avspeech_train, avspeech_test, hdtf, folder, miniature"),
    ("row_index", INT, "row of the data set's list"),
    ("t_start", REAL, "start in the source, seconds on the video's clock"),
    ("t_end", REAL, "end in the source, seconds"),
    ("duration", REAL, "t_end - t_start, seconds"),
    ("fps_src", REAL, "average frame rate of the source"),
    ("width", INT, "of the source as it is shown (upright, square pixels), pixels"),
    ("height", INT, "of the source as it is shown, pixels"),
    ("crop", pa.list_(INT), "what the clip shows of the source: x, y, width, height in its pixels; null = all"),
    ("codec", TEXT, "video codec of the source"),
    (
        "color_transfer",
        TEXT,
        "transfer of the source's colours; smpte2084 (PQ), arib_std_b67 (HLG) are HDR; null = unstated",
    ),
    (
        "digital_source_type",
        TEXT,
        "where the source says that a model made it: the IPTC's term, such as trainedAlgorithmicMedia; else null",
    ),
    ("audio_rate", INT, "sample rate of the source's audio, Hz"),
    ("video_start_pts", REAL, "start time of the video stream, seconds"),
    ("audio_start_pts", REAL, "start time of the audio stream, seconds"),
    ("shot_id", INT, "number of the shot within the video"),
    ("shot_judge", TEXT, "what found where shots begin and end: content, transnet or both"),
    ("face_judge", TEXT, "what found the faces: insightface, centerface or cascade"),
    ("face_track_id", INT, "number of the face track within the shot"),
    ("n_faces_median", REAL, "median number of faces per frame"),
    ("face_px", REAL, "median side of the face box, pixels"),
    ("face_area_pct", REAL, "median area of the face box, percent of the frame"),
    ("yaw_p05", REAL, "head angle, degrees, 5th percentile over the frames"),
    ("yaw_p50", REAL, "median"),
    ("yaw_p95", REAL, "95th percentile"),
    ("pitch_p05", REAL, "as yaw"),
    ("pitch_p50", REAL, "as yaw"),
    ("pitch_p95", REAL, "as yaw"),
    ("roll_p05", REAL, "as yaw"),
    ("roll_p50", REAL, "as yaw"),
    ("roll_p95", REAL, "as yaw"),
    ("xy_agreement", REAL, "distance of the face from the data set's annotated point, fraction of the frame"),
    ("framing", TEXT, "head, semi or full"),
    ("wrist_visible_pct", REAL, "percent of frames with a wrist in view"),
    ("sync_c", REAL, "SyncNet confidence"),
    ("sync_c_valid", REAL, "sync_c without the windows shifted past the ends"),
    ("sync_d", REAL, "SyncNet distance"),
    ("sync_offset", INT, "frames by which the audio of the source is off"),
    ("sync_offset_applied", INT, "frames by which the clip file's audio was moved"),
    ("sync_windows", INT, "windows behind sync_c"),
    ("sync_offset_first", INT, "offset of the source's audio in the first third, frames"),
    ("sync_offset_middle", INT, "in the middle third"),
    ("sync_offset_last", INT, "in the last third"),
    ("sync_drift", INT, "frames by which the offset grows along the best line; null: first or last third is not on it"),
    ("sync_drift_c", REAL, "SyncNet confidence along that line"),
    ("speaker_evidence", TEXT, "what says which face speaks: active_speaker, sync, lips, annotation or none"),
    ("lip_motion", REAL, "how much the lips move of the face whose lips move most; see perception.sync.lips"),
    ("lip_agreement", REAL, "correlation of the speaking face's lips with the loudness"),
    ("asd_speaking_pct", REAL, "percent of frames in which the face is the one that speaks"),
    ("iqa_1to5", REAL, "image quality, 1 (bad) to 5 (excellent)"),
    ("ase_1to5", REAL, "aesthetics, 1 to 5"),
    ("iqa_variant", TEXT, "model behind the two"),
    ("text_judge", TEXT, "what looked for burned-in text: pp-ocr or strokes"),
    ("text_area_pct", REAL, "percent of the frame covered by burned-in text"),
    ("text_near_face_pct", REAL, "the same weighted by nearness to the face, percent of the face's box"),
    ("sharpness", REAL, "variance of the Laplacian in the face box"),
    ("static_pct", REAL, "percent of frames that repeat the one before"),
    ("speech_judge", TEXT, "what told speech from other sounds: silero or energy"),
    ("speech_pct", REAL, "percent of time with speech"),
    ("voice_certainty", REAL, "share of the speech that the voice detector is sure of; music lowers it"),
    ("snr_db", REAL, "speech over background, dB; null: nobody pauses"),
    ("music_ratio", REAL, "share of the audio's energy that is not the voice"),
    ("clipping_pct", REAL, "percent of samples at full scale"),
    ("loudness_lufs", REAL, "programme loudness, ITU-R BS.1770-4"),
    ("silence_start", REAL, "seconds without audio at the start"),
    ("silence_end", REAL, "seconds without audio at the end"),
    ("dup_group", TEXT, "clips of one group show the same thing"),
    ("test_overlap", TEXT, "clip of a test set that shows some of the same"),
    ("caption", TEXT, "what is seen: first frame, behaviour, background"),
    ("caption_model", TEXT, "who wrote it: sidecar, recipe, or the captioner's folder and hash"),
    ("caption_prompt", TEXT, "what the captioner was asked"),
    ("caption_decoding", TEXT, "how its answer was drawn"),
    ("split", TEXT, "train or test"),
    ("decision", TEXT, "kept, rejected, failed or pending"),
    ("reasons", pa.list_(TEXT), "why it is not kept, every reason"),
    ("stage_versions", pa.map_(TEXT, TEXT), "stage -> fingerprint behind the fields"),
    ("bytes_uri", TEXT, "the clip file, relative to the run folder"),
    ("sha256", TEXT, "of the clip file"),
    ("run_id", TEXT, "fingerprint of the resolved recipe"),
)
CLIP_FORMAT = 1  # goes up when code of the version before could not read the table
CLIP_SCHEMA = pa.schema(
    [pa.field(name, kind, metadata={"meaning": text}) for name, kind, text in CLIP_FIELDS],
    metadata={"format": f"clips {CLIP_FORMAT}"},
)
CLIP_NAMES = frozenset(name for name, _, _ in CLIP_FIELDS)  # the schema makes its list anew whenever it is asked


class ClipError(UserError, ValueError):
    """A row that does not fit the clip table."""


def clip_id(video_id: str, start_ms: int, end_ms: int, rule_version: str) -> str:
    """16 hex digits naming one cut of one video under one version of the cutting rule; safe in file and tar names."""
    return hashlib.sha256(f"{video_id}\0{start_ms}\0{end_ms}\0{rule_version}".encode()).hexdigest()[:16]


def write_clips(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the clip table, sorted by clip_id; equal rows give equal bytes. Fields left out of a row are null.

    The rows are taken one by one and never all held in memory. Raises ClipError for an unknown field, a value of
    another type, a missing or doubled clip_id; DiskFullError.
    """
    write_sorted(Path(path), _pieces(rows), CLIP_SCHEMA, "clip_id", GROUP_ROWS, _without_doubles)


def write_ordered_clips(path: Path | str, ordered: Iterable[pa.RecordBatch]) -> None:
    """Write batches of CLIP_SCHEMA that are sorted by clip_id, with the bytes that `write_clips` would give the same
    rows. Raises ClipError for a doubled clip_id, DiskFullError."""
    write_ordered(Path(path), _without_doubles(iter(ordered)), CLIP_SCHEMA, GROUP_ROWS)


def stream_clips(path: Path | str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a clip table as dicts, maps as dicts, read piece by piece; all columns or those named.

    Raises FileNotFoundError, FormatVersionError for a table of newer code, DamagedFileError.
    """
    if not Path(path).exists():
        raise MissingFileError(f"{path} does not exist; run the curation job, which writes it.")
    check_table_format(Path(path), CLIP_SCHEMA)
    for batch in read_batches(path, BATCH_ROWS, columns):
        yield from batch.to_pylist(maps_as_pydicts="strict")


def read_clips(path: Path | str) -> list[dict[str, Any]]:
    """All rows of a clip table, as `stream_clips` gives them. Raises FileNotFoundError."""
    return list(stream_clips(path))


def _pieces(rows: Iterable[Mapping[str, Any]]) -> Iterator[pa.RecordBatch]:
    remaining = iter(rows)
    while piece := [_checked(row) for row in islice(remaining, BATCH_ROWS)]:
        try:
            yield pa.RecordBatch.from_pylist(piece, CLIP_SCHEMA)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ClipError(_misfit(piece, str(error))) from error


def _without_doubles(ordered: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches, which are sorted by clip_id. Raises ClipError for one that is there twice."""
    last = None
    for batch in ordered:
        ids = pa.chunked_array([pa.array([last], pa.string()), batch["clip_id"]]).combine_chunks()
        doubled = ids.filter(pc.equal(ids, pa.concat_arrays([ids[1:], pa.nulls(1, pa.string())])))
        if len(doubled):
            raise ClipError(f"clip_id '{doubled[0]}' is there twice; one row per clip.")
        last = ids[-1].as_py()
        yield batch


def _checked(row: Mapping[str, Any]) -> dict[str, Any]:
    for name in row:
        if name not in CLIP_NAMES:
            near = difflib.get_close_matches(name, CLIP_NAMES, 1)
            advice = f"did you mean '{near[0]}'?" if near else "declare it in common/clips.py."
            raise ClipError(f"Field '{name}' is not in the clip table; {advice}")
    if not row.get("clip_id"):
        raise ClipError(f"A row has no clip_id: {dict(row)!r}; compute it with common.clips.clip_id.")
    if isinstance(row.get("reasons"), str):  # arrow would take it for a list of letters
        raise ClipError(f"Clip {row['clip_id']}: field 'reasons' is {row['reasons']!r}, expected list<string>.")
    versions = row.get("stage_versions")
    return dict(row) | {"stage_versions": sorted(versions.items()) if versions is not None else None}


def _misfit(rows: list[dict[str, Any]], error: str) -> str:
    for row in rows:
        for field in CLIP_SCHEMA:
            try:
                pa.array([row.get(field.name)], field.type)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                value = row[field.name]
                return f"Clip {row['clip_id']}: field '{field.name}' is {value!r}, expected {field.type}."
    return error
