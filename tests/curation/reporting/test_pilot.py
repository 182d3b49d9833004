"""Costs by video out of a ledger written here, and the spread of its bootstrap against the textbook's."""

from pathlib import Path

import numpy as np
import pytest

from common.clips import write_clips
from common.ledger.store import Ledger, Outcome
from curation.reporting.pilot import read_pilot, resample


def write_run(root: Path, videos: int = 3) -> Path:
    """Video n is n + 1 hours long, made into one clip of as many hours, every second one kept; the last is dead."""
    ledger, alive = Ledger(root / "ledger"), range(videos - 1)

    def record(stage: str, outcomes: list[Outcome], fingerprint: str = "new") -> None:
        with ledger.open(stage, fingerprint) as log:
            for outcome in outcomes:
                log.append((outcome.unit, "hash"), outcome)

    fetched = [Outcome(f"v{n}", "kept", outputs={"bytes": (n + 1) * 10**9}) for n in alive]
    record("cut", [Outcome("c0", "kept", cpu_seconds=1e6)], "old")
    record("download", [*fetched, Outcome(f"v{videos - 1}", "rejected", "removed")])
    record("probe", [Outcome(f"v{n}", "kept", outputs={"duration": (n + 1) * 3600.0}, cpu_seconds=36) for n in alive])
    cuts = [Outcome(f"c{n}", "kept", cpu_seconds=3600.0 * (n + 1), gpu_seconds=360.0, attempt=2) for n in alive]
    record("cut", cuts)
    rows = [
        {"clip_id": f"c{n}", "video_id": f"v{n}", "duration": (n + 1) * 3600.0, "decision": ("kept", "rejected")[n % 2]}
        for n in alive
    ]
    write_clips(root / "clips.parquet", rows)
    (root / "clips").mkdir()
    for n in alive:
        (root / "clips" / f"c{n}.mp4").write_bytes(b"x" * 100 * (n + 1))
    return root


def test_every_cost_is_put_to_its_video(tmp_path: Path) -> None:
    pilot = read_pilot(write_run(tmp_path))
    assert pilot.videos == 3
    expected = {
        "hours": [1, 2, 0], "alive": [1, 1, 0], "wire_bytes": [1e9, 2e9, 0], "clip_hours": [1, 2, 0],
        "kept_hours": [1, 0, 0], "clip_bytes": [100, 200, 0], "shard_bytes": [0, 0, 0],
    }  # fmt: skip
    assert {name: values.tolist() for name, values in pilot.bases.items()} == expected
    # Two tries each, and nothing of the stage under its former settings.
    assert pilot.cpu["cut"].tolist() == [2, 4, 0]
    assert pilot.gpu["cut"] == pytest.approx([0.2, 0.2, 0])
    assert pilot.cpu["probe"] == pytest.approx([0.01, 0.01, 0])


def test_a_sweep_alone_is_a_pilot_of_lengths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no source"):
        read_pilot(tmp_path)
    with Ledger(tmp_path / "ledger").open("sweep", "f") as log:
        announced = {"announced": {"duration": 1800, "bytes": 5}}
        log.append(("a", ""), Outcome("a", "kept", outputs=announced))
        log.append(("b", ""), Outcome("b", "rejected", "private"))
    pilot = read_pilot(tmp_path)
    assert [pilot.bases[name].tolist() for name in ("hours", "alive", "wire_bytes")] == [[0.5, 0], [1, 0], [5, 0]]


def test_the_bootstrap_spreads_as_the_mean_does() -> None:
    values = np.random.default_rng(1).exponential(2.0, (400, 2))
    drawn = resample(values)
    assert drawn[0] == pytest.approx(values.mean(axis=0))
    assert drawn[1:].std(axis=0) == pytest.approx(values.std(axis=0) / 20, rel=0.1)
    assert (drawn == resample(values)).all()
