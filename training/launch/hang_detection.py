"""Hang detection: each rank publishes its progress, and its peers report which rank stalled.

A rank that hangs leaves the others waiting for it in a collective. Each rank writes `logs/heartbeat-RANK.json` from a
thread and reads those of its peers. Times are measured with the reader's own clock, so clocks need not be in sync.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from common.runs import temporary_beside

DOING = READING, COMPUTING, SAVING = ("waiting for data", "computing", "validating or saving")
LONGEST_INTERVAL = 5.0  # seconds between two heartbeats


class RankProgress(NamedTuple):
    """Progress of a rank; further progress compares greater. `doing` is an index into DOING."""

    step: int = 0
    micro_batch: int = 0
    doing: int = 0

    def __str__(self) -> str:
        return f"step {self.step}, micro-batch {self.micro_batch}, {DOING[self.doing]}"


class Beat(NamedTuple):
    """What a rank publishes: its progress, and a counter that grows while the process is alive."""

    progress: RankProgress
    number: int


class StallDetector:
    """One rank's view of all ranks: when each last made progress, and when each last published a heartbeat.

    No progress of any rank for `seconds` is a stall; `now` is the time by this rank's clock.
    """

    def __init__(self, world: int, seconds: float, now: float) -> None:
        self.seconds = seconds
        self.beats = dict.fromkeys(range(world), Beat(RankProgress(), -1))
        self.moved = dict.fromkeys(range(world), now)
        self.answered = dict.fromkeys(range(world), now)

    def update(self, beats: Mapping[int, Beat], now: float) -> None:
        """Record the heartbeats just read; ranks whose file could not be read are absent from `beats`."""
        for rank, beat in beats.items():
            if beat.progress != self.beats[rank].progress:
                self.moved[rank] = now
            if beat != self.beats[rank]:
                self.answered[rank] = now
            self.beats[rank] = beat

    def verdict(self, now: float) -> str | None:
        """None while any rank makes progress; else which rank stalled the others, and the evidence for it."""
        stalled = now - max(self.moved.values())
        if stalled < self.seconds:
            return None
        silent = [rank for rank, answered in self.answered.items() if now - answered >= self.seconds / 2]
        if silent:
            rank = min(silent, key=self.answered.__getitem__)
            why = f"its last heartbeat was {now - self.answered[rank]:.0f} s ago (process or machine stopped)"
        else:
            # The rank furthest behind; when all have the same progress, the one that reached it last.
            rank = min(self.beats, key=lambda rank: (self.beats[rank].progress, -self.moved[rank]))
            level = len({beat.progress for beat in self.beats.values()}) == 1
            why = "it was the last to get there" if level else "it is behind the others"
        return f"no rank made progress for {stalled:.0f} s; rank {rank} stalled: {why}, at {self.beats[rank].progress}"


class RankHeartbeat:
    """Publishes this rank's progress while the context is open; a thread calls `on_stall` with the verdict."""

    def __init__(self, logs: Path, rank: int, world: int, seconds: float, on_stall: Callable[[str], None]) -> None:
        self.logs, self.rank, self.world, self.seconds, self.on_stall = logs, rank, world, seconds, on_stall
        self.progress = RankProgress()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def at(self, step: int, micro_batch: int, doing: str) -> None:
        """Record new progress of this rank."""
        self.progress = RankProgress(step, micro_batch, DOING.index(doing))

    def now(self, doing: str) -> None:
        """Record that this rank does something else at the same step and micro-batch."""
        self.progress = self.progress._replace(doing=DOING.index(doing))

    def __enter__(self) -> "RankHeartbeat":
        if self.seconds > 0:
            self.thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()

    def _beat(self) -> None:
        detector = StallDetector(self.world, self.seconds, time.monotonic())
        count = 0
        while not self.ended.wait(min(LONGEST_INTERVAL, self.seconds / 10)):
            count += 1
            with suppress(OSError):  # a full disk is for the checkpoint to report
                write_beat(self.logs, self.rank, Beat(self.progress, count))
            detector.update(read_beats(self.logs, self.world), time.monotonic())
            verdict = detector.verdict(time.monotonic())
            if verdict is not None:
                self.on_stall(verdict)
                return


def beat_file(logs: Path, rank: int) -> Path:
    """Heartbeat file of a rank."""
    return logs / f"heartbeat-{rank}.json"


def write_beat(logs: Path, rank: int, beat: Beat) -> None:
    """Replace a rank's file atomically; not synced, since it has no use after a power cut. Raises OSError."""
    file = beat_file(logs, rank)
    temporary = temporary_beside(file)
    temporary.write_text(json.dumps({**beat.progress._asdict(), "number": beat.number}))
    os.replace(temporary, file)


def read_beats(logs: Path, world: int) -> dict[int, Beat]:
    """The heartbeats of all ranks whose file can be read."""
    beats = {}
    for rank in range(world):
        with suppress(OSError, ValueError, KeyError):
            beat = json.loads(beat_file(logs, rank).read_text())
            beats[rank] = Beat(RankProgress(beat["step"], beat["micro_batch"], beat["doing"]), beat["number"])
    return beats
