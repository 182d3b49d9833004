"""Pilot costs: measured costs and yields of a run by video, the basis of a forecast."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InputError
from common.query import connect

HOUR = 3600.0
DRAWS = 1000
# Outcomes under the latest fingerprint of each stage; earlier ones belong to another pilot.
_NEWEST = """WITH newest AS (SELECT stage, arg_max(fingerprint, recorded) AS fingerprint FROM outcomes GROUP BY stage),
             latest AS (SELECT o.* FROM outcomes o JOIN newest USING (stage, fingerprint))"""
_VIDEOS = f"""{_NEWEST}
    SELECT unit AS video_id,
    coalesce(max(json_extract(outputs, '$.duration')::DOUBLE) FILTER (stage = 'probe'),
             max(json_extract(outputs, '$.announced.duration')::DOUBLE), 0) / {HOUR} AS hours,
    (NOT bool_or(stage IN ('sweep', 'download') AND state = 'rejected'))::INT::DOUBLE AS alive,
    coalesce(max(json_extract(outputs, '$.bytes')::DOUBLE) FILTER (stage = 'download'),
             max(json_extract(outputs, '$.announced.bytes')::DOUBLE), 0) AS wire_bytes
    FROM latest WHERE stage IN ('sweep', 'download', 'probe') GROUP BY unit ORDER BY unit"""
_CLIPS = f"""SELECT c.video_id, sum(c.duration) / {HOUR} AS clip_hours,
    coalesce(sum(c.duration) FILTER (decision = 'kept'), 0) / {HOUR} AS kept_hours,
    coalesce(sum(f.bytes), 0)::DOUBLE AS clip_bytes, coalesce(sum(s.size), 0)::DOUBLE AS shard_bytes
    FROM clips c LEFT JOIN files f USING (clip_id) LEFT JOIN shards s USING (clip_id) GROUP BY c.video_id"""
# Stages after the latents are not part of the plan. Only the last attempt of a unit is recorded; each is assumed to
# have cost the same.
_COSTS = f"""{_NEWEST}
    SELECT stage, coalesce(c.video_id, t.unit) AS video_id, sum(cpu_seconds * attempt) / {HOUR} AS cpu,
    sum(gpu_seconds * attempt) / {HOUR} AS gpu
    FROM latest t LEFT JOIN clips c ON c.clip_id = t.unit WHERE stage NOT IN ('videos', 'eval') GROUP BY ALL"""
BASES = ("hours", "alive", "wire_bytes", "clip_hours", "kept_hours", "clip_bytes", "shard_bytes")


@dataclass(frozen=True)
class Pilot:
    """Yields and costs of each of `videos` source videos, as arrays (videos,).

    `bases`: hours (of video), alive (0 or 1), wire_bytes (fetched), clip_hours, kept_hours, clip_bytes, shard_bytes.
    `cpu` and `gpu`: stage -> hours of work on all units of the video.
    """

    videos: int
    bases: Mapping[str, np.ndarray]
    cpu: Mapping[str, np.ndarray]
    gpu: Mapping[str, np.ndarray]


def read_pilot(run_root: Path | str) -> Pilot:
    """The costs and yields of a run, finished or not; a sweep alone is a pilot of lengths and sizes.

    Raises FileNotFoundError for an absent run, ValueError for one whose ledger has no source yet.
    """
    with connect(run_root) as connection:
        connection.register("files", _clip_files(Path(run_root) / "clips"))
        videos = connection.sql(_VIDEOS).to_arrow_table()
        clips = connection.sql(_CLIPS).to_arrow_table()
        costs = connection.sql(_COSTS).to_arrow_table()
    if not videos.num_rows:
        raise InputError(f"The ledger of {run_root} has no source; curate a small sample into it first.")
    place = videos["video_id"].combine_chunks()
    bases = {name: videos[name].to_numpy() for name in ("hours", "alive", "wire_bytes")}
    bases |= {name: _spread(clips, name, place) for name in BASES[3:]}
    stages = sorted(costs["stage"].unique().to_pylist())
    of_stage = {stage: costs.filter(pc.equal(costs["stage"], stage)) for stage in stages}
    cpu, gpu = ({s: _spread(of_stage[s], name, place) for s in stages} for name in ("cpu", "gpu"))
    return Pilot(len(place), bases, cpu, gpu)


def resample(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means of columns (videos, k) as measured (row 0) and over `DRAWS` bootstrap samples of videos: (1 + DRAWS, k)."""
    rng, count = np.random.default_rng(seed), len(values)
    draws = (rng.multinomial(count, np.full(count, 1 / count)) @ values / count for _ in range(DRAWS))
    return np.stack([values.mean(axis=0), *draws])


def _clip_files(folder: Path) -> pa.Table:
    entries = [entry for entry in os.scandir(folder) if entry.name.endswith(".mp4")] if folder.is_dir() else []
    names = pa.array([Path(entry.name).stem for entry in entries], pa.string())
    return pa.table({"clip_id": names, "bytes": pa.array([entry.stat().st_size for entry in entries], pa.int64())})


def _spread(table: pa.Table, column: str, place: pa.Array) -> np.ndarray:
    """A column by video as an array over all videos, in the order `place`; 0 where a video has no row."""
    number = pc.index_in(table["video_id"], place)
    values = np.zeros(len(place))
    np.add.at(values, number.drop_null().to_numpy(), table[column].filter(number.is_valid()).to_numpy())
    return values
