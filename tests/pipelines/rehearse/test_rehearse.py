"""A rehearsal on tiny random weights: what it prepares, in this process; every command of it, marked soak."""

import os
from dataclasses import replace

import pytest

from common.errors import InputError
from common.media.index import probe
from common.runs import read_json
from omniavatar.config import ENCODER_ROLES
from pipelines.models.check import check
from pipelines.recipe import read_recipe
from pipelines.rehearse import results as results_module
from pipelines.rehearse.measure import Measured
from pipelines.rehearse.rehearse import Options, rehearse
from pipelines.rehearse.report import outlook, outlook_lines, table_lines
from pipelines.rehearse.stages import STEPS, Clip
from tests.pipelines.rehearse.sizes import TINY

CLIP = Clip(64, 64, 17)
GENERATE = ("generate",)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unmeasured(monkeypatch):
    """Commands are not run; what they would have been."""
    commands = []

    def run(arguments, log, patience):
        commands.append(arguments)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("chunk 1 of 1: 2/2 in 4.0 s\n")
        return Measured(0, 8.0, 6.0, 3_000_000_000, 0, 1_000_000)

    monkeypatch.setattr(results_module, "run_measured", run)
    return commands


def test_weights_recipe_and_inputs_are_there_when_the_commands_run(home, unmeasured):
    recipe, said = read_recipe("omniavatar-1.3b"), []
    rehearse(recipe, Options(GENERATE, home / "trial", keep=True), said.append, TINY, CLIP)
    assert [command[:2] for command in unmeasured] == [("models", "check"), ("generate", "--recipe")]
    own = read_recipe(str(home / "trial" / "rehearsal.yaml"))
    assert own.generate.steps == 2 and own.generate.load.memory == "resident"
    found = {finding.role: finding for finding in check(own.named_models())}
    assert all(found[role].facts for role in own.models)
    assert (home / "trial" / "inputs" / "portrait.png").exists()
    assert not (home / "weights").exists()  # where the recipe expects its own
    stored = read_json(home / "trial" / "rehearsal.json")["stages"]
    assert {name: row["host"] for name, row in stored.items()} == dict.fromkeys(("check", "generate"), 3_000_000_000)

    again: list[str] = []
    rehearse(recipe, Options(GENERATE, home / "trial"), again.append, TINY, CLIP)
    assert len(unmeasured) == 2 and "generate: measured already" in again
    assert any("removed 8" in sentence for sentence in again)
    assert not (home / "trial" / "random-weights").exists()


def test_the_table_sets_what_was_measured_beside_the_forecast(home, unmeasured):
    recipe = read_recipe("omniavatar-1.3b")
    content = rehearse(recipe, Options(GENERATE, home / "trial"), lambda text: None, TINY, CLIP)
    content = content | {"whole": content["sizes"] | {"layers": 8}}
    table = table_lines(content)
    assert table[0].split() == ["stage", "seconds", "CPU", "s", "host", "GB", "forecast", "read", "GB"]
    assert table[2].split() == ["generate", "8.0", "6.0", "3.00", "0.46", "0.00"]
    assert any("-85 % off" in line for line in table)
    assert outlook(recipe, content, 60)["generate"] > 10 * outlook(recipe, content, 6)["generate"] * 0.9
    assert outlook_lines(recipe, content, 60)[0].startswith("60 s of video, 25 steps: ")


def test_only_what_is_absent_is_written(home, unmeasured):
    shipped = read_recipe("demo").named_models()
    own = {role: str(path) for role, path in shipped.items() if path}
    recipe = replace(read_recipe("omniavatar-1.3b"), models=own | {"vae": "nowhere/Wan2.1_VAE.pth"})
    recipe = replace(recipe, models=recipe.models | {"transformer": str(shipped["transformer"])})
    said: list[str] = []
    with pytest.raises(InputError, match="shapes are known of these"):  # no path names a published base
        rehearse(recipe, Options(("latents",), home / "trial"), said.append, TINY, CLIP)
    named = recipe.models | {"vae": "weights/wan2.1-t2v-1.3b/Wan2.1_VAE.pth"}
    rehearse(replace(recipe, models=named), Options(("latents",), home / "trial", keep=True), said.append, TINY, CLIP)
    written = [file.name for file in (home / "trial" / "random-weights").rglob("*") if file.is_file()]
    assert sorted(written) == ["Wan2.1_VAE.pth", "random-weights.json"]
    assert set(read_recipe(str(home / "trial" / "rehearsal.yaml")).models) == set(ENCODER_ROLES)


def test_a_full_disk_and_a_missing_role_are_said_before_anything_is_written(home, unmeasured):
    recipe = read_recipe("omniavatar-14b")
    with pytest.raises(InputError, match=r"no room for 4 blocks .* 18.* MB go to .*, where only 2\.0 MB are free"):
        rehearse(recipe, Options(GENERATE, home / "trial", free=2_000_000), lambda text: None, TINY, CLIP)
    with pytest.raises(InputError, match=r"2\.0 MB are free; free .* more"):
        rehearse(recipe, Options(GENERATE, home / "trial", layers=4, free=2_000_000), lambda text: None, TINY, CLIP)
    with pytest.raises(ValueError, match="needs weights for adapter"):
        without = replace(recipe, models=recipe.models | {"adapter": ""})
        rehearse(without, Options(GENERATE, home / "trial"), lambda text: None, TINY, CLIP)
    assert unmeasured == [] and [file for file in home.rglob("*") if file.is_file()] == []


@pytest.mark.soak
def test_every_command_of_a_rehearsal(home):
    recipe, said = read_recipe("omniavatar-1.3b"), []
    content = rehearse(recipe, Options(STEPS, home / "trial", keep=True), said.append, TINY, CLIP)
    states = {name: (row["state"], row["message"]) for name, row in content["stages"].items()}
    names = ("check", "generate", "latents", "train", "resume", "export", "reload")
    assert states == dict.fromkeys(names, ("passed", ""))
    video = probe(home / "trial" / "reloaded.mp4")
    assert (video.height, video.width) == (64, 64)
    assert set(outlook(recipe, content, 60)) == {"generate", "latents", "train"}
    # One of the files is lost, another cut short: they are named, written again, and nothing else is done again.
    root = home / "trial" / "random-weights"
    (root / "wav2vec2-base-960h" / "model.safetensors").unlink()
    os.truncate(root / "wan2.1-t2v-1.3b" / "Wan2.1_VAE.pth", 5000)
    said.clear()
    rehearse(recipe, Options(STEPS, home / "trial"), said.append, TINY, CLIP)
    assert sum("it is written again" in sentence for sentence in said) == 2
    assert sum("measured already" in sentence for sentence in said) == len(names)
    assert not (home / "trial" / "run").exists()
