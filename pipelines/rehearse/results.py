"""Stages run one after the other, and `rehearsal.json`: what each took, kept for a rehearsal that goes on later."""

import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.process.signals import exit_reason, oom_kills
from common.progress import duration_text
from common.runs import read_json, write_json
from pipelines.rehearse.measure import run_measured
from pipelines.rehearse.stages import Stage, figures_after, problem_after

RESULTS = "rehearsal.json"
PASSED, FAILED, LEFT_OUT = "passed", "failed", "left out"
LIKE = {"reload": "generate", "resume": "train"}  # stages that take about as long
FIRST_GUESS = 60.0  # seconds of a stage that was never measured, and for each of these bytes of weights one more
BYTES_A_SECOND = 150e6


class Results:
    """The content of `rehearsal.json`. Stages of another `key` (weights, settings) are measured again; how long they
    took is remembered."""

    def __init__(self, to: Path, key: str) -> None:
        self.to, self.file = to, to / RESULTS
        before = read_json(self.file) if self.file.exists() else {}
        stages: dict[str, dict[str, Any]] = before.get("stages", {})
        self.took = {name: row["seconds"] for name, row in stages.items() if row["state"] == PASSED}
        self.took = before.get("took", {}) | self.took
        self.stages = stages if before.get("key") == key else {}
        self.content: dict[str, Any] = {"key": key, "stages": self.stages, "took": self.took}

    def run(
        self,
        stages: Sequence[Stage],
        forecasts: Mapping[str, Mapping[str, int]],
        deadline: float,
        say: Callable[[str], None],
    ) -> None:
        """Run the stages that have not passed yet, until `deadline` on the monotonic clock."""
        names = {stage.name for stage in stages}
        for name in [name for name, row in self.stages.items() if name not in names and row["state"] != PASSED]:
            del self.stages[name]  # of steps that are not asked for now only measurements stay
        again = self._to_run(stages)
        for stage in stages:
            if stage.name not in again:
                say(f"{stage.name}: measured already")
                continue
            self.stages[stage.name] = {"state": LEFT_OUT, "message": "not begun"}
            write_json(self.file, self.content)
            row = self._run(stage, deadline, say)
            self.stages[stage.name] = {"command": stage.command, "forecast": dict(forecasts[stage.name]), **row}
            if row["state"] == PASSED:
                self.took[stage.name] = row["seconds"]
            write_json(self.file, self.content)

    def _to_run(self, stages: Sequence[Stage]) -> set[str]:
        """Names of the stages without a result, and of those whose products they need and that are gone."""
        again = {stage.name for stage in stages if self.stages.get(stage.name, {}).get("state") != PASSED}
        if "resume" in again and any(stage.name == "train" for stage in stages):
            again.add("train")  # what it goes on from
        by_name = {stage.name: stage for stage in stages}
        for stage in reversed(stages):
            needed = by_name.get(stage.needs)
            if stage.name in again and needed and not all(path.exists() for path in needed.products):
                again.add(needed.name)
        return again

    def _run(self, stage: Stage, deadline: float, say: Callable[[str], None]) -> dict[str, Any]:
        if stage.needs and self.stages[stage.needs]["state"] != PASSED:
            return _left_out(f"{stage.needs} has not passed", stage, say)
        remaining, expected = deadline - time.monotonic(), self._expected(stage)
        if remaining < expected:
            why = f"takes about {duration_text(expected)}, {duration_text(remaining)} remain"
            return _left_out(why, stage, say)
        for path in stage.replaced:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        log = self.to / "logs" / f"{stage.name}.log"
        say(f"{stage.name}: {stage.command}")
        kills = oom_kills()
        measured = run_measured(stage.arguments, log, remaining)
        row = asdict(measured) | {"state": PASSED, "message": "", "log": str(log)}
        if measured.out_of_time:
            row |= {"state": LEFT_OUT, "message": "stopped at the end of --minutes"}
        elif measured.code < 0:
            row |= {"state": FAILED, "message": f"it {exit_reason(measured.code, kills)}"}
        elif measured.code:
            row |= {"state": FAILED, "message": last_sentence(log)}
        elif problem := problem_after(stage, self.to):
            row |= {"state": FAILED, "message": problem}
        else:
            row |= figures_after(stage, self.to, log)
        if row["message"]:
            say(f"{stage.name}: {row['state']}: {row['message']}")
        return row

    def _expected(self, stage: Stage) -> float:
        measured = self.took.get(stage.name) or self.took.get(LIKE.get(stage.name, ""))
        if stage.name in ("check", "export"):
            return float(measured or 0.0)
        return float(measured or FIRST_GUESS + self.content.get("weights_bytes", 0) / BYTES_A_SECOND)


def _left_out(why: str, stage: Stage, say: Callable[[str], None]) -> dict[str, Any]:
    say(f"{stage.name}: left out: {why}")
    return {"state": LEFT_OUT, "message": why}


def last_sentence(log: Path) -> str:
    """The error that a command ended with, or its last line."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(internal )?error: |  WRONG|.* WRONG ", line)]
    return (errors or lines or ["it printed nothing"])[-1].strip()
