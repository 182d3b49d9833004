"""The card says what the numbers rest on, and changes its name when that changes."""

import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.executors.config import ExecutorConfig
from common.media.write import write_video
from common.runs import RunFolder, read_json, save_provenance, write_json
from eval.config import EvalConfig, FeatureConfig, ScoreConfig
from eval.job import evaluate
from eval.reporting.card import READ_AS, card_markdown, examples, make_card, write_card
from eval.scoring.eval_table import CompareError
from eval.sets.catalog import TEST_SET_FILE, TestClip, TestSet, write_test_set

RECIPE = "name: r\nweights: miniature\ngenerate: {steps: 25, audio_guidance: 2.5}\n"
CONFIG = EvalConfig(FeatureConfig(), ScoreConfig(resamples=50, comparisons=("adapter>base",)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four clips of two methods that add noise to the real ones, the base twice as much; no judge has weights."""
    run, rows = RunFolder(tmp_path_factory.mktemp("judged")), []
    rng = np.random.default_rng(0)
    for number in range(4):
        real = rng.integers(40, 200, (1, 32, 32, 3)).repeat(10, 0)
        for method, noise in (("ground_truth", 0), ("adapter", 10 + number), ("base", 30)):
            path = f"videos/{method}/c{number}.mp4"
            pixels = np.clip(real + rng.normal(0, noise, real.shape), 0, 255).astype(np.uint8)
            write_video(run.root / path, pixels, np.zeros(6400, np.float32))
            row = {"method": method, "clip_id": f"c{number}", "video": path, "audio": ""}
            rows.append(row | {"reference": f"videos/ground_truth/c{number}.mp4", "seed": 0})
    pq.write_table(pa.Table.from_pylist(rows), run.videos / "manifest.parquet")
    adapter = run.checkpoints / "adapter"
    write_json(adapter / "config.json", {"rank": 1})
    save_provenance(run, RECIPE, {"adapter": adapter})
    evaluate(CONFIG, {}, run, ExecutorConfig(workers=1))
    return run


def test_the_card_holds_what_a_number_needs_to_be_quoted(run):
    page = write_card(run).read_text("utf-8")
    card = read_json(run.report / "card.json")
    assert card["inference"] == {"steps": 25, "audio_guidance": 2.5} and card["protocol"] == ["paper"]
    assert card["test_set"]["clips"] == 4 and card["hardware"]["cores"] >= 1 and card["versions"]["torch"]
    psnr = card["methods"]["adapter"]["psnr"]
    assert psnr["low"] < psnr["value"] < psnr["high"] and psnr["coverage"] == 1.0
    (test,) = [each for each in card["comparisons"] if each["metric"] == "psnr"]
    assert test["difference"] > 0
    assert f"{psnr['value']:.2f} [{psnr['low']:.2f}, {psnr['high']:.2f}]" in page
    assert set(card["models"]) == {"adapter", "weights"}
    assert "Small world" in page and "adapter | base" in page and card["id"] in page
    chosen = card["examples"]["psnr"]
    assert (chosen["best"]["clip_id"], chosen["worst"]["clip_id"]) == ("c0", "c3")


def test_another_adapter_setting_or_video_is_another_card(run, tmp_path):
    run = RunFolder(shutil.copytree(run.root, tmp_path / "copy"))
    first = make_card(run)
    write_json(run.checkpoints / "adapter" / "config.json", {"rank": 2})
    second = make_card(run)
    run.recipe_yaml.write_text(RECIPE.replace("25", "50"))
    third = make_card(run)
    write_video(run.videos / "ground_truth" / "c0.mp4", np.zeros((10, 32, 32, 3), np.uint8), np.zeros(6400, np.float32))
    assert len({each["id"] for each in (first, second, third, make_card(run))}) == 4


def test_a_listed_set_is_named_by_its_hash(run):
    chosen = TestSet("small_world", "whole", 0, tuple(TestClip(f"c{i}", f"v{i}", 0.0, 1.0) for i in range(4)))
    about = make_card(run, chosen)["test_set"]
    assert (about["name"], about["list"]) == ("small_world", chosen.sha256)
    assert (about["listed"], about["outside"], about["clips"]) == (4, 0, 4)


def test_the_list_that_videos_were_imported_with_is_named_with_what_lacks_and_what_is_not_of_it(run, tmp_path):
    run = RunFolder(shutil.copytree(run.root, tmp_path / "copy"))
    plain = make_card(run)
    clips = tuple(TestClip(f"c{i}", f"v{i}", 0.0, 1.0) for i in range(1, 6))  # not c0, and c4 and c5 were not judged
    chosen = TestSet("theirs", "whole", 0, clips)
    write_test_set(run.root / TEST_SET_FILE, chosen)
    card, page = make_card(run), write_card(run).read_text("utf-8")
    assert card["id"] != plain["id"] and plain["test_set"]["list"] is None
    assert f"theirs, 4 clips judged `{card['test_set']['judged']}`, list `{chosen.sha256}` of 5 clips" in page
    assert "3 of the 5 clips of the list were judged" in page and "1 of the judged clips are not in the list" in page
    assert not [text for text in plain["deviations"] if text.startswith("Test set")]


def test_lower_is_better_where_it_is():
    rows = [
        {"method": "adapter", "clip_id": f"c{i}", "metric": "sync_d", "value": float(i), "seed": 0} for i in range(3)
    ]
    assert {title: found["clip_id"] for title, found in examples(rows, "adapter")["sync_d"].items()} == {
        "best": "c0", "median": "c1", "worst": "c2",
    }  # fmt: skip


def test_videos_made_elsewhere_have_no_models_and_no_inference_settings(run, tmp_path):
    run = RunFolder(shutil.copytree(run.root, tmp_path / "copy"))
    shutil.rmtree(run.checkpoints)
    scores, versions = read_json(run.report / "scores.json"), read_json(run.root / "versions.json")
    write_json(run.report / "scores.json", scores | {"models": {"sync_scorer": "ab"}})
    write_json(run.root / "versions.json", versions | {"models": {"sync_scorer": "ab", "vae": None}})
    card = make_card(run)
    assert card["models"] == {"weights": "miniature"} and card["inference"] == {}


def test_a_run_that_nobody_judged_has_no_card(tmp_path):
    with pytest.raises(CompareError, match="judge the run first"):
        make_card(RunFolder(tmp_path))


def test_hostile_names_are_text_on_the_card(run):
    hostile = "a|b <script>alert(1)</script> [go](javascript:x) `c`\n# head"
    card = make_card(run)
    card |= {"run": hostile, "recipe": hostile, "flags": [hostile], "inference": {hostile: hostile}}
    card["methods"] = {hostile: card["methods"]["adapter"]}
    card["comparisons"] = [test | {"a": hostile} for test in card["comparisons"]]
    card["examples"] = {"psnr": {"best": {"clip_id": hostile, "value": 1.0}}}
    page = card_markdown(card)
    outside = re.sub(r"`[^`]*`", "", page.replace("\\`", ""))
    assert (
        "<script" not in outside.replace("\\<", "")
        and "](" not in outside.replace("\\]", "")
        and "\n# head" not in page
    )
    rows = [line.replace("\\|", "") for line in page.splitlines() if line.startswith("| a\\|b")]
    assert len(rows) == 1 and rows[0].count("|") == page.splitlines()[page.splitlines().index(READ_AS) - 3].count("|")
