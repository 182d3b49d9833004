from pathlib import Path

import numpy as np
import pytest

from common.ledger.store import Outcome
from common.query import run_query
from common.runs import RunFolder
from common.shards.store import ShardWriter
from latents.bill import last_bill, write_bill


def test_the_bill_counts_what_the_shards_hold(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    half = np.float16
    tensors = {"latents": np.zeros((16, 3, 4, 6), half), "references": np.zeros((2, 16, 4, 6), half)}
    tensors |= {"text": np.zeros((5, 8), half), "audio": np.zeros((9, 10), half)}
    with ShardWriter(run.shards, 4) as writer:
        for name in ("a", "b"):
            writer.add(name, tensors, {"video_id": name, "split": "train"})
    size = {"frames": 9, "height": 32, "width": 48}
    outcomes = [Outcome(name, "kept", outputs=size, seconds=9.0, gpu_seconds=4.5) for name in ("a", "b")]
    assert last_bill(run) is None
    write_bill(run, [*outcomes, Outcome("c", "failed")])
    bill = last_bill(run)
    assert bill is not None and (bill.clips, bill.failed, bill.seconds, bill.gpu_seconds) == (2, 1, 18.0, 9.0)
    assert (bill.latents_bytes, bill.references_bytes) == (2 * 16 * 3 * 24 * 2, 2 * 2 * 16 * 24 * 2)
    assert (bill.text_bytes, bill.audio_bytes) == (2 * 80, 2 * 180)
    tars = sum(file.stat().st_size for file in run.shards.glob("*.tar")) - 1024
    assert bill.total_bytes == tars and bill.gb_per_1000_clips == pytest.approx(tars / 2 / 1e6)
    assert (bill.hours, bill.megapixel_frames) == pytest.approx((2 * 9 / 25 / 3600, 2 * 9 * 32 * 48 / 1e6))
    assert bill.line().startswith("2 clips, 0.0002 h of video, ")
    answer = run_query(tmp_path, f"SELECT clips, text_bytes FROM read_json('{run.logs}/latents.jsonl')")
    assert answer.to_pylist() == [{"clips": 2, "text_bytes": 160}]
