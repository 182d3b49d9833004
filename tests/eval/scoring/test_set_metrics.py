"""Which clips a distance of whole sets rests on."""

import numpy as np

from eval.scoring.eval_table import REAL
from eval.scoring.set_metrics import FeatureSets


def test_copies_share_an_entry_and_clips_that_a_set_lacks_leave_all() -> None:
    rng = np.random.default_rng(0)
    real, own = ({name: rng.normal(size=(2, 3)) for name in "xyz"} for _ in range(2))
    copy = {name: rows.copy() for name, rows in own.items() if name != "y"}
    sets = FeatureSets.joined({"a": own, "b": copy, REAL: real}, lambda clip: clip)
    assert sets.where["a"].tolist() == sets.where["b"].tolist() == [0, 1] and sets.where[REAL].tolist() == [2, 3]
    assert np.array_equal(sets.clips[1], own["z"]) and sets.n == 2
    copy["z"] += 1e-9
    grouped = FeatureSets.joined({"a": own, "b": copy, REAL: real}, lambda clip: "one speaker")
    assert [each.tolist() for each in grouped.where.values()] == [[0], [1], [2]] and grouped.n == 2
