"""Verdicts on stalled ranks, with a simulated clock; heartbeats in real files."""

import threading
from collections.abc import Mapping
from pathlib import Path

from training.launch.hang_detection import (
    COMPUTING,
    READING,
    Beat,
    RankHeartbeat,
    RankProgress,
    StallDetector,
    beat_file,
    read_beats,
    write_beat,
)


def repeat(
    detector: StallDetector,
    until: int,
    progress_of: Mapping[int, RankProgress],
    silent_from: Mapping[int, int] | None = None,
) -> None:
    """Heartbeats once a second without progress; a silent rank stops publishing."""
    for second in range(until):
        count = {rank: min(second, (silent_from or {}).get(rank, second)) for rank in progress_of}
        detector.update({rank: Beat(progress, count[rank]) for rank, progress in progress_of.items()}, float(second))


def test_no_stall_while_any_rank_makes_progress() -> None:
    detector = StallDetector(2, seconds=10, now=0.0)
    for second in range(100):
        detector.update(
            {0: Beat(RankProgress(1, 1, 1), second), 1: Beat(RankProgress(1 + second // 9, 1, 1), second)},
            float(second),
        )
        assert detector.verdict(float(second)) is None


def test_a_rank_without_heartbeats_is_named() -> None:
    detector = StallDetector(3, seconds=10, now=0.0)
    same = dict.fromkeys(range(3), RankProgress(7, 2, 1))
    repeat(detector, 10, same, silent_from={1: 2})
    assert detector.verdict(9.0) is None
    repeat(detector, 11, same, silent_from={1: 2})
    verdict = detector.verdict(10.0)
    assert verdict is not None
    assert "rank 1 stalled: its last heartbeat was 8 s ago" in verdict
    assert verdict.endswith("at step 7, micro-batch 2, computing")


def test_without_a_silent_rank_the_one_behind_or_last_to_get_there_is_named() -> None:
    behind = StallDetector(3, seconds=10, now=0.0)
    repeat(behind, 12, {0: RankProgress(7, 2, 1), 1: RankProgress(7, 2, 1), 2: RankProgress(7, 0, 0)})
    assert "rank 2 stalled: it is behind the others, at step 7, micro-batch 0, waiting" in str(behind.verdict(11.0))
    level = StallDetector(2, seconds=10, now=0.0)
    level.update({0: Beat(RankProgress(7, 1, 1), 1), 1: Beat(RankProgress(7, 0, 0), 1)}, 0.0)
    for second in range(1, 13):
        level.update(dict.fromkeys((0, 1), Beat(RankProgress(7, 1, 1), 1 + second)), float(second))
    assert "rank 1 stalled: it was the last to get there" in str(level.verdict(12.0))


def test_a_rank_that_never_published_a_heartbeat_is_named() -> None:
    detector = StallDetector(2, seconds=10, now=0.0)
    repeat(detector, 12, {0: RankProgress(1, 1, 1)})
    assert "rank 1 stalled: its last heartbeat was 11 s ago" in str(detector.verdict(11.0))


def test_heartbeats_are_written_and_read_and_torn_files_are_ignored(tmp_path: Path) -> None:
    beat = Beat(RankProgress(3, 2, 1), 17)
    write_beat(tmp_path, 0, beat)
    beat_file(tmp_path, 1).write_text('{"step": 3')
    assert read_beats(tmp_path, 3) == {0: beat}


def test_a_single_rank_that_hangs_is_reported_and_a_working_one_is_not(tmp_path: Path) -> None:
    verdicts: list[str] = []
    hung = threading.Event()

    def on_stall(verdict: str) -> None:
        verdicts.append(verdict)
        hung.set()

    with RankHeartbeat(tmp_path, 0, 1, 0.5, on_stall) as heartbeat:
        for step in range(1, 11):
            heartbeat.at(step, 1, COMPUTING)
            assert not hung.wait(0.1)
        heartbeat.at(11, 0, READING)
        assert hung.wait(30)
    assert "rank 0" in verdicts[0] and verdicts[0].endswith("at step 11, micro-batch 0, waiting for data")
