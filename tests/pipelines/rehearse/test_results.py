import time

import pytest

from pipelines.rehearse import results as results_module
from pipelines.rehearse.measure import Measured
from pipelines.rehearse.results import Results, last_sentence
from pipelines.rehearse.stages import Stage

FORECASTS = dict.fromkeys(("encode", "learn", "play"), {"host": 1, "device": 0})


@pytest.fixture
def ran(monkeypatch):
    """Names of the commands that were run; each writes its product, except "learn" while `failing` holds it."""
    names, failing = [], set()

    def run(arguments, log, patience):
        names.append(arguments[0])
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("some lines\nerror: it needs more memory.\nmore\n")
        if arguments[0] in failing:
            return Measured(1, 2.0, 1.0, 10, 0, 0)
        if len(arguments) > 1:
            open(arguments[1], "w").close()
        return Measured(0, 2.0, 1.0, 10, 0, 0)

    monkeypatch.setattr(results_module, "run_measured", run)
    return names, failing


def stages(folder):
    shards = folder / "shards"
    return [
        Stage("encode", "latents", ("encode", str(shards)), (shards,)),
        Stage("learn", "train", ("learn",), (), "encode"),
        Stage("play", "generate", ("play",)),
    ]


def rehearse(folder, key="one", seconds=1000.0):
    said = []
    results = Results(folder, key)
    results.run(stages(folder), FORECASTS, time.monotonic() + seconds, said.append)
    return results.stages, said


def test_what_has_passed_is_kept_for_the_same_weights(tmp_path, ran):
    names, failing = ran
    failing.add("learn")
    rows, said = rehearse(tmp_path)
    assert [row["state"] for row in rows.values()] == ["passed", "failed", "passed"]
    assert rows["learn"]["message"] == "error: it needs more memory."
    failing.clear()
    rows, said = rehearse(tmp_path)
    assert names == ["encode", "learn", "play", "learn"] and "encode: measured already" in said
    assert {row["state"] for row in rows.values()} == {"passed"} and rows["encode"]["forecast"] == FORECASTS["encode"]
    rehearse(tmp_path, key="other weights")
    assert names[4:] == ["encode", "learn", "play"]


def test_a_stage_whose_input_is_gone_runs_the_one_before_it_again(tmp_path, ran):
    names, failing = ran
    failing.add("learn")
    rehearse(tmp_path)
    failing.clear()
    (tmp_path / "shards").unlink()
    rehearse(tmp_path)
    assert names == ["encode", "learn", "play", "encode", "learn"]


def test_after_a_failure_only_what_needs_it_is_left_out(tmp_path, ran):
    names, failing = ran
    failing.add("encode")
    rows, said = rehearse(tmp_path)
    assert names == ["encode", "play"]
    assert rows["learn"] == rows["learn"] | {"state": "left out", "message": "encode has not passed"}


def test_a_killed_command_is_named_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(results_module, "run_measured", lambda *_: Measured(-9, 2.0, 1.0, 10, 0, 0))
    rows, _ = rehearse(tmp_path)
    assert rows["play"]["state"] == "failed" and rows["play"]["message"] == "it was killed by signal SIGKILL"


def test_what_does_not_fit_into_the_time_is_left_out_and_said(tmp_path, ran):
    names, _ = ran
    rows, said = rehearse(tmp_path, seconds=30.0)
    assert names == [] and {row["state"] for row in rows.values()} == {"left out"}
    assert any(sentence.startswith("encode: left out: takes about 1.0 min, 30.0 s remain") for sentence in said)
    rehearse(tmp_path)
    rows, _ = rehearse(tmp_path, key="other weights", seconds=30.0)  # how long they took is remembered
    assert {row["state"] for row in rows.values()} == {"passed"}


def test_the_last_sentence_of_a_log_is_its_error(tmp_path):
    log = tmp_path / "log"
    log.write_text("vae              WRONG  weights/vae.pth\n  is truncated\nadapter   ok\n")
    assert last_sentence(log) == "vae              WRONG  weights/vae.pth"
    log.write_text("")
    assert last_sentence(log) == "it printed nothing"
