"""The second system's DAG by the command line: train, done again, another setting, names of steps, status, --plan."""

import json
from pathlib import Path

from tests.pipelines.command_line import run_here

TINY = """
name: tiny-avatar
weights: miniature
avatar:
  people: {train: 1}
  voices: {each: 1, seconds: 0.36}
  teachers: {omniavatar: {steps: 1, chunk_frames: 17, audio_guidance: 1.0}}
  relief: {steps: 0}
  fit: {field_steps: 1, particle_stages: [[1, 1.0, 6.0, 0.25, 0.04]]}
  embedding: {steps: 1, embedding: 2, width: 8, audio_width: 8}
  driver: ridge
"""


def test_train_runs_the_second_systems_steps_and_a_change_redoes_what_depends_on_it(tmp_path: Path) -> None:
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(TINY)
    arguments = ("--recipe", recipe, "--run", run, "--json")
    done = run_here("train", *arguments)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout.splitlines()[-1])["result"]["steps"]) == [
        "embed",
        "fit",
        "joint",
        "motion",
        "refine",
        "teach",
    ]
    model, fit = run / "motion.safetensors", next((run / "fits").rglob("*.safetensors"))
    stamps = model.stat().st_mtime_ns, fit.stat().st_mtime_ns
    assert run_here("train", *arguments).returncode == 0
    assert (model.stat().st_mtime_ns, fit.stat().st_mtime_ns) == stamps
    assert run_here("train", *arguments, "--set", "avatar.seed=0", "--set", "avatar.driver=tcn").returncode == 0
    assert model.stat().st_mtime_ns > stamps[0] and fit.stat().st_mtime_ns == stamps[1]
    fit.unlink()
    assert run_here("run", *arguments, "--from", "fit", "--to", "joint").returncode == 0 and fit.exists()
    status = json.loads(run_here("status", "--run", run, "--json").stdout.splitlines()[-1])["result"]
    assert {stage["stage"] for stage in status["stages"]} == {"avatars", "teach", "fit"}
    rows = run_here("query", "--run", run, "select stage, count(*) from steps group by 1", "--json").stdout
    assert "motion" in rows


def test_other_commands_say_what_the_second_system_has(tmp_path: Path) -> None:
    wrong = run_here("latents", "--recipe", "audioavatar-small", "--run", tmp_path / "run")
    assert wrong.returncode == 1 and "the steps are teach, fit, embed, motion, refine, joint, eval" in wrong.stderr
    assert not (tmp_path / "run").exists()
    plan = run_here("train", "--plan", "--recipe", "audioavatar-small", "--run", tmp_path / "run")
    assert plan.returncode == 0 and "48" in plan.stdout
