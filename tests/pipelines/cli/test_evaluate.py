"""Videos of any system, from a list to a card, by the commands alone."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from common.executors.config import ExecutorConfig
from common.media.index import probe
from common.media.write import write_video
from common.runs import RunFolder, read_json
from eval.sets.catalog import read_test_set
from pipelines.cli.main import app
from pipelines.config import DrawnConfig
from pipelines.drawn import draw_kept_clips

ALONE = ["--set", "executor.workers=1"]  # in this process: others would import everything again
FAST = ["--set", "eval.scores.resamples=50", *ALONE]


def call(*words):
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """A list of what two systems made of six real videos, the second the noisier."""
    folder, lines = tmp_path_factory.mktemp("systems"), []
    rng = np.random.default_rng(0)
    for number in range(6):
        real = rng.integers(40, 200, (1, 32, 32, 3)).repeat(8, 0)
        for method, noise in (("real", 0), ("ours", 8), ("theirs", 30)):
            pixels = np.clip(real + rng.normal(0, noise, real.shape), 0, 255).astype(np.uint8)
            path = folder / method / f"{number}.mp4"
            path.parent.mkdir(exist_ok=True)
            write_video(path, pixels, np.zeros(8 * 640, np.float32))
            line = {"method": method, "clip_id": f"c{number}", "video": f"{method}/{number}.mp4"}
            lines.append(line | {"reference": f"real/{number}.mp4"})
    (folder / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines if line["method"] != "real"))
    return folder


def test_from_a_list_to_a_card(listed):
    run = listed / "run"
    assert call("eval", "import", listed / "list.jsonl", "--run", run) == "ours 6, theirs 6, ground_truth 6\n"
    here = ["--recipe", "folder", "--run", run]
    assert "18 videos to extract" in call("eval", "plan", *here)
    page = call("eval", "run", *here, *FAST).splitlines()[-1]
    assert page.endswith("index.html") and "nothing left to extract" in call("eval", "plan", *here)
    assert call("eval", "report", "--run", run).strip() == page
    lines = call("eval", "compare", f"{run}:ours", f"{run}:theirs").splitlines()
    psnr = next(line.split() for line in lines if "PSNR" in line)
    assert psnr[-3:] == ["0", "6", "clips"] and "1.00" in psnr
    card = call("eval", "card", "--run", run).strip()
    assert card.endswith("card.md") and read_json(RunFolder(run).report / "card.json")["test_set"]["clips"] == 6


def test_from_a_test_set_to_a_card_that_names_it(tmp_path):
    """Drawn clips, a list of them, what a system is given, what it makes of it, and what it is judged by."""
    world, judged, sets, out = (tmp_path / name for name in ("world", "judged", "set.csv", "set"))
    draw_kept_clips(DrawnConfig(0, 2, 0.4, half_body_every=0), RunFolder(world), ExecutorConfig(workers=1))
    told = call("eval", "sets", "small_world", "--run", world, "--out", sets)
    content, sha256 = sets.read_bytes(), read_test_set(sets).sha256
    assert told == f"small_world: 2 clips, {sha256}\n{sets}\n"
    call("eval", "sets", "small_world", "--run", world, "--out", sets)
    assert sets.read_bytes() == content
    here = ["--recipe", "demo", *ALONE]
    assert "2 of 2 clips" in call("eval", "inputs", sets, "--run", world, "--out", out, *here)
    quick = [f"generate.{setting}" for setting in ("steps=1", "chunk_frames=17", "overlap=5")]
    quick = [word for setting in quick for word in ("--set", setting)]
    assert "2 of 2 made" in call("generate", "--list", out / "samples.jsonl", "--out", tmp_path / "made", *quick)
    made = f"ours={tmp_path / 'made'}"
    assert call("eval", "import", out / "clips.csv", "--made", made, "--run", judged) == "ours 2, ground_truth 2\n"
    call("eval", "run", "--recipe", "folder", "--run", judged, *FAST)
    call("eval", "card", "--run", judged)
    card = read_json(RunFolder(judged).report / "card.json")
    about = {name: card["test_set"][name] for name in ("name", "list", "listed", "outside", "clips")}
    assert about == {"name": "small_world", "list": sha256, "listed": 2, "outside": 0, "clips": 2}
    assert card["methods"]["ours"]["psnr"]["n"] == 2 and card["methods"]["ours"]["psnr"]["value"] > 8
    first = next((tmp_path / "made").glob("*.mp4"))
    assert probe(first).duration == probe(out / "real" / first.name).duration == pytest.approx(9 / 25)


def test_what_is_made_says_of_which_method(listed):
    result = CliRunner().invoke(app, ["eval", "import", "x.csv", "--run", str(listed / "r"), "--made", "ours"])
    assert result.exit_code == 2 and "METHOD=FOLDER" in result.output


def test_what_was_not_judged_is_one_sentence(listed):
    result = CliRunner().invoke(app, ["eval", "compare", str(listed), str(listed)])
    assert result.exit_code == 1 and "judge the run first: omniavatar eval run" in str(result.exception)


def test_alone_it_is_still_the_step_of_a_recipe(tmp_path):
    result = CliRunner().invoke(app, ["eval", "--recipe", "folder", "--run", str(tmp_path)])
    assert result.exit_code == 1 and "no finished step 'curate'" in str(result.exception)


def test_a_sweep_of_nothing_finished_has_a_table(tmp_path):
    page = call("sweep", "ablations", "--out", tmp_path, "--table").strip()
    assert page == str(tmp_path / "results" / "table.md")
    assert "Not finished" in (tmp_path / "results" / "table.md").read_text("utf-8")
