"""A sweep whose scores are planted, for its table and its pages."""

import numpy as np
import pytest

from pipelines.sweep.settings import Places, RowConfig, SweepConfig
from tests.pipelines.planted_scores import write_scores

CLIPS = 16
CONFIG = SweepConfig(
    "s", "lips", "ours",
    {
        "ours": RowConfig(reported="Ours", knobs={"rank": 32}),
        "worse": RowConfig(reported="Frozen-DiT", knobs={"rank": 8}),
        "same": RowConfig(reported="CFG-6"),
        "long": RowConfig(long=4.0),
    },
    metrics=("sync_c", "fid", "hkc"), long_metrics=("seam_z",),
)  # fmt: skip
MEANS = {"ours": 6.0, "worse": 5.0, "same": 6.0}


@pytest.fixture
def planted_sweep(tmp_path):
    """A sweep and where it lies. Clips differ by 2, seeds by 0.2, and what is left to chance by 0.05."""
    rng, places = np.random.default_rng(0), Places(tmp_path)
    of_clip = rng.normal(0, 2.0, CLIPS)
    for row, mean in MEANS.items():
        for seed in CONFIG.seeds:
            values = mean + of_clip + 0.2 * (seed - 1) + rng.normal(0, 0.05, CLIPS)
            scores = {"sync_c": {f"c{i}": float(value) for i, value in enumerate(values)}}
            write_scores(places, row, seed, scores, fid=10.0 if row == "ours" else 10.5)
    write_scores(places, "long", 0, {"seam_z": {"long-0": 1.5}})
    return CONFIG, places
