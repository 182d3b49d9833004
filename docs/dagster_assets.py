"""Dagster assets of a run: one for each step, with its figures, and checks from the scores of the evaluation.

    AVATAR_RECIPE=recipe.yaml AVATAR_RUN=/shared/runs/mine dagster dev -f docs/dagster_assets.py

A step that was stopped (exit code 75) or killed is asked to go on, one with an error that a person must correct is not.
Finished units and steps are never done again, so materialising an asset twice is cheap.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetsDefinition,
    Backoff,
    Definitions,
    Failure,
    MaterializeResult,
    RetryPolicy,
    asset,
    asset_check,
)

RECIPE, RUN = os.environ.get("AVATAR_RECIPE", "demo"), Path(os.environ.get("AVATAR_RUN", "runs/demo"))
COMMAND = os.environ.get("AVATAR_COMMAND", "omniavatar").split()
OPTIONS = os.environ.get("AVATAR_OPTIONS", "").split()  # such as "--ray auto"
STEPS = ("curate", "latents", "train", "generate", "eval")
FINAL_CODES = (1, 2, 70)
LEAST_SYNC_C = float(os.environ.get("AVATAR_LEAST_SYNC_C", "3"))


def run_step(step: str) -> dict[str, Any]:
    """The figures of a step. Raises Failure, that allows another try unless a person must do something first."""
    words = [*COMMAND, "run", "--recipe", RECIPE, "--run", str(RUN), "--from", step, "--to", step, *OPTIONS, "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    ended = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if done.returncode:
        sentence = ended.get("error", f"'{step}' ended with code {done.returncode}")
        raise Failure(sentence, allow_retries=done.returncode not in FINAL_CODES)
    return dict(ended["result"]["steps"][step])


def step_asset(step: str, before: str | None) -> AssetsDefinition:
    """The asset of a step, which needs the one before it."""

    @asset(
        name=step,
        deps=[before] if before else [],
        group_name="avatar",
        retry_policy=RetryPolicy(max_retries=20, delay=30, backoff=Backoff.EXPONENTIAL),
    )
    def materialise() -> MaterializeResult:
        result = run_step(step)
        return MaterializeResult(metadata={"seconds": result["seconds"], "figures": result["figures"]})

    return materialise


@asset_check(asset="eval")
def lips_follow_the_audio() -> AssetCheckResult:
    """Sync-C of the adapter is as high as is asked for, and falls when the audio of another clip takes its place."""
    value = json.loads((RUN / "report" / "summary.json").read_text())["metrics"]["adapter"]["sync_c"]
    comparisons = json.loads((RUN / "report" / "scores.json").read_text())["comparisons"]
    swapped = next(each for each in comparisons if each["b"] == "swapped_audio" and each["metric"] == "sync_c")
    return AssetCheckResult(
        passed=value >= LEAST_SYNC_C and swapped["difference"] > 0 and swapped["p_holm"] < 0.05,
        metadata={"sync_c": value, "difference_to_swapped": swapped["difference"], "p": swapped["p_holm"]},
    )


assets = [step_asset(step, before) for step, before in zip(STEPS, (None, *STEPS), strict=False)]
defs = Definitions(assets=assets, asset_checks=[lips_follow_the_audio])
