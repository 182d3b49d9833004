"""The paper's numbers are read as printed, and orders are compared, not values."""

import pytest

from eval.features.records import SET_METRICS
from eval.metrics.clip_metrics import METRICS
from eval.reporting.reported import METRIC_IDS, ordering, read_reported


def test_the_ablation_table_is_as_printed():
    found = read_reported("OmniAvatar Table 3")
    assert found["Ours"] == {"fvd": 664.0, "sync_c": 7.13, "sync_d": 8.05, "iqa": 3.75}
    assert list(found) == ["Frozen-DiT", "Full-Training", "LoRA+SHE", "CFG-3", "CFG-6", "Wan-1.3B", "Ours"]
    assert set(METRIC_IDS.values()) <= set(METRICS) and "fid" in SET_METRICS
    with pytest.raises(ValueError, match="tables are AudioAvatar ablation, .*OmniAvatar Table 3"):
        read_reported("OmniAvatar Table 9")


def test_order_counts_and_scale_does_not():
    ours = {"a": 1.0, "b": 2.0, "c": 3.0, "only ours": 0.0}
    same = ordering("sync_c", ours, {"a": 10.0, "b": 70.0, "c": 71.0})
    assert (same.tau, same.reversed) == (1.0, ())
    turned = ordering("sync_c", ours, {"a": 10.0, "b": 71.0, "c": 70.0})
    assert (turned.tau, turned.reversed) == (pytest.approx(1 / 3), (("b", "c"),))
    assert ordering("sync_c", {"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 2.0}).tau is None
    assert ordering("sync_c", ours, {"a": 1.0}) is None
