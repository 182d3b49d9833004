"""Who stands still: every rank says where it is, and all notice when nobody moves any more.

A rank that hangs leaves the others waiting for it in a collective. Each rank writes `logs/heartbeat-RANK.json`, from a
thread, and reads those of its peers; times are taken by the reader's own clock, so machines need not agree on one.
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

DOING = READING, COMPUTING, SAVING = ("waiting for data", "computing", "validating or saving")
LONGEST_INTERVAL = 5.0  # seconds between two beats


class RankProgress(NamedTuple):
    """Where a rank is. Later places compare greater; `doing` is an index into DOING."""

    step: int = 0
    micro_batch: int = 0
    doing: int = 0

    def __str__(self) -> str:
        return f"step {self.step}, micro-batch {self.micro_batch}, {DOING[self.doing]}"


class Beat(NamedTuple):
    """What a rank says of itself: its place, and a number that grows as long as the process is alive."""

    progress: RankProgress
    number: int


class Watch:
    """What one rank knows of all: since when each has not moved, and since when it has not been heard of.

    `seconds` without any movement is too long; `now` is this rank's clock.
    """

    def __init__(self, world: int, seconds: float, now: float) -> None:
        self.seconds = seconds
        self.beats = dict.fromkeys(range(world), Beat(RankProgress(), -1))
        self.moved = dict.fromkeys(range(world), now)
        self.heard = dict.fromkeys(range(world), now)

    def look(self, beats: Mapping[int, Beat], now: float) -> None:
        """Take in what the ranks say now; a rank of which nothing could be read is left out."""
        for rank, beat in beats.items():
            if beat.progress != self.beats[rank].progress:
                self.moved[rank] = now
            if beat != self.beats[rank]:
                self.heard[rank] = now
            self.beats[rank] = beat

    def verdict(self, now: float) -> str | None:
        """None while somebody moves; else which rank the others wait for, and why it is thought to be that one."""
        still = now - max(self.moved.values())
        if still < self.seconds:
            return None
        silent = [rank for rank, heard in self.heard.items() if now - heard >= self.seconds / 2]
        if silent:
            rank = min(silent, key=self.heard.__getitem__)
            why = f"it stopped answering {now - self.heard[rank]:.0f} s ago (process or machine stopped)"
        else:
            # Who is behind; when all are at one place, who came there last.
            rank = min(self.beats, key=lambda rank: (self.beats[rank].progress, -self.moved[rank]))
            level = len({beat.progress for beat in self.beats.values()}) == 1
            why = "it came there last" if level else "it is behind the others"
        return f"no rank has moved for {still:.0f} s; they wait for rank {rank}: {why}, at {self.beats[rank].progress}"


class RankHeartbeat:
    """Says where this rank is while the context is open; `stuck` is called, from a thread, with the verdict."""

    def __init__(self, logs: Path, rank: int, world: int, seconds: float, stuck: Callable[[str], None]) -> None:
        self.logs, self.rank, self.world, self.seconds, self.stuck = logs, rank, world, seconds, stuck
        self.progress = RankProgress()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def at(self, step: int, micro_batch: int, doing: str) -> None:
        """This rank has come to a new place."""
        self.progress = RankProgress(step, micro_batch, DOING.index(doing))

    def now(self, doing: str) -> None:
        """This rank does something else at the same place."""
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
        watch = Watch(self.world, self.seconds, time.monotonic())
        count = 0
        while not self.ended.wait(min(LONGEST_INTERVAL, self.seconds / 10)):
            count += 1
            with suppress(OSError):  # a full disk is for the checkpoint to report
                write_beat(self.logs, self.rank, Beat(self.progress, count))
            watch.look(read_beats(self.logs, self.world), time.monotonic())
            verdict = watch.verdict(time.monotonic())
            if verdict is not None:
                self.stuck(verdict)
                return


def beat_file(logs: Path, rank: int) -> Path:
    """Where a rank says that it is alive, and where."""
    return logs / f"heartbeat-{rank}.json"


def write_beat(logs: Path, rank: int, beat: Beat) -> None:
    """Replace a rank's file at once; not synced, since nobody needs it after a power cut. Raises OSError."""
    file = beat_file(logs, rank)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps({**beat.progress._asdict(), "number": beat.number}))
    os.replace(temporary, file)


def read_beats(logs: Path, world: int) -> dict[int, Beat]:
    """The beats of the ranks that can be read."""
    beats = {}
    for rank in range(world):
        with suppress(OSError, ValueError, KeyError):
            said = json.loads(beat_file(logs, rank).read_text())
            beats[rank] = Beat(RankProgress(said["step"], said["micro_batch"], said["doing"]), said["number"])
    return beats
