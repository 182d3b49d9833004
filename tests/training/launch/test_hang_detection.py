"""Who is found to hang, by a clock of the test's own; and real beats in real files."""

import threading
from collections.abc import Mapping
from pathlib import Path

from training.launch.hang_detection import (
    COMPUTING,
    READING,
    Beat,
    RankHeartbeat,
    RankProgress,
    Watch,
    beat_file,
    read_beats,
    write_beat,
)


def told(
    watch: Watch, until: int, places: Mapping[int, RankProgress], silent_from: Mapping[int, int] | None = None
) -> None:
    """Ranks at fixed places beat once a second; a silent one stops beating."""
    for second in range(until):
        count = {rank: min(second, (silent_from or {}).get(rank, second)) for rank in places}
        watch.look({rank: Beat(progress, count[rank]) for rank, progress in places.items()}, float(second))


def test_as_long_as_one_rank_moves_nobody_is_stuck() -> None:
    watch = Watch(2, seconds=10, now=0.0)
    for second in range(100):
        watch.look(
            {0: Beat(RankProgress(1, 1, 1), second), 1: Beat(RankProgress(1 + second // 9, 1, 1), second)},
            float(second),
        )
        assert watch.verdict(float(second)) is None


def test_a_rank_that_answers_no_more_is_the_one() -> None:
    watch = Watch(3, seconds=10, now=0.0)
    same = dict.fromkeys(range(3), RankProgress(7, 2, 1))
    told(watch, 10, same, silent_from={1: 2})
    assert watch.verdict(9.0) is None
    told(watch, 11, same, silent_from={1: 2})
    verdict = watch.verdict(10.0)
    assert verdict is not None
    assert "wait for rank 1: it stopped answering 8 s ago" in verdict
    assert verdict.endswith("at step 7, micro-batch 2, computing")


def test_else_the_one_that_is_behind_or_came_last() -> None:
    behind = Watch(3, seconds=10, now=0.0)
    told(behind, 12, {0: RankProgress(7, 2, 1), 1: RankProgress(7, 2, 1), 2: RankProgress(7, 0, 0)})
    assert "wait for rank 2: it is behind the others, at step 7, micro-batch 0, waiting" in str(behind.verdict(11.0))
    level = Watch(2, seconds=10, now=0.0)
    level.look({0: Beat(RankProgress(7, 1, 1), 1), 1: Beat(RankProgress(7, 0, 0), 1)}, 0.0)
    for second in range(1, 13):
        level.look(dict.fromkeys((0, 1), Beat(RankProgress(7, 1, 1), 1 + second)), float(second))
    assert "wait for rank 1: it came there last" in str(level.verdict(12.0))


def test_a_rank_that_was_never_heard_of_is_the_one() -> None:
    watch = Watch(2, seconds=10, now=0.0)
    told(watch, 12, {0: RankProgress(1, 1, 1)})
    assert "wait for rank 1: it stopped answering 11 s ago" in str(watch.verdict(11.0))


def test_beats_pass_through_files_and_torn_ones_are_passed_over(tmp_path: Path) -> None:
    beat = Beat(RankProgress(3, 2, 1), 17)
    write_beat(tmp_path, 0, beat)
    beat_file(tmp_path, 1).write_text('{"step": 3')
    assert read_beats(tmp_path, 3) == {0: beat}


def test_a_rank_alone_that_hangs_is_told_and_one_that_works_is_not(tmp_path: Path) -> None:
    verdicts: list[str] = []
    hung = threading.Event()

    def stuck(verdict: str) -> None:
        verdicts.append(verdict)
        hung.set()

    with RankHeartbeat(tmp_path, 0, 1, 0.5, stuck) as heartbeat:
        for step in range(1, 11):
            heartbeat.at(step, 1, COMPUTING)
            assert not hung.wait(0.1)
        heartbeat.at(11, 0, READING)
        assert hung.wait(30)
    assert "rank 0" in verdicts[0] and verdicts[0].endswith("at step 11, micro-batch 0, waiting for data")
