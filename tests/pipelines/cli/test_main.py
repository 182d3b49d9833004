import resource
import subprocess
import sys

import pytest

from common.clips import write_clips
from common.errors import EXTRA_OF
from tests.pipelines.command_line import run_here


def _omniavatar(*arguments):
    command = [sys.executable, "-m", "pipelines.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_bad_input_is_one_sentence_and_a_failure(tmp_path):
    done = _omniavatar("query", "select 1", "--run", str(tmp_path / "none"))
    assert done.returncode == 1
    *before, sentence = done.stderr.strip().splitlines()
    assert sentence.startswith("error: ") and str(tmp_path / "none") in sentence
    assert all(" INFO " in line for line in before), "a traceback or warning"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "--recipe", "nope"), ("nope", "demo")),
        (("curate", "--recipe", "folder"), ("sources.path is empty",)),
        (
            ("curate", "--recipe", "folder", "--set", "sources.path=/no/such"),
            ("/no/such", "do not exist", "sources.path"),
        ),
        (("run", "--recipe", "demo", "--set", "models.vae=/no/vae"), ("models.vae", "/no/vae")),
        (("generate", "--image", "x.png"), ("--audio",)),
        (("train", "--recipe", "demo", "--set", "train.optimizer.lrr=1"), ("train.optimizer.lrr", "did you mean")),
    ],
)
def test_the_sentence_names_what_was_wrong(arguments, words, tmp_path):
    run = () if arguments[0] == "generate" else ("--run", str(tmp_path))
    done = run_here(*arguments, *run)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "\n" not in done.stderr
    assert all(word in done.stderr for word in words)


def test_a_step_without_its_inputs_says_what_to_run(tmp_path):
    done = run_here("latents", "--recipe", "demo", "--run", tmp_path)
    assert done.returncode == 1 and "omniavatar run --from curate" in done.stderr


def test_help_names_the_verbs():
    text = _omniavatar("--help").stdout
    assert all(verb in text for verb in ("demo", "run", "curate", "latents", "train", "generate", "eval", "query"))


def test_models_are_listed_without_loading_any():
    done = run_here("models", "list")
    assert done.returncode == 0 and "wan2.1-t2v-1.3b" in done.stdout and "forbids commercial use" in done.stdout


def test_wrong_weights_are_a_failure_and_a_line():
    done = run_here("models", "check", "--recipe", "folder", "--set", "models.vae=nowhere")
    assert done.returncode == 1 and "vae              WRONG  nowhere" in done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fetch", "transformer"), ("wan2.1-t2v-14b", "name one")),
        (("fetch", "one-align"), ("one-align", "--accept")),
        (("fetch", "lips"), ("lips", "wav2vec2-base-960h")),
    ],
)
def test_weights_are_not_fetched_on_a_wrong_word(arguments, words, tmp_path):
    done = run_here("models", *arguments, "--to", tmp_path / "weights")
    assert done.returncode == 1 and all(word in done.stderr for word in words)
    assert not (tmp_path / "weights").exists()


def test_what_a_training_costs_is_said_without_weights():
    done = run_here("train", "--recipe", "omniavatar-14b", "--plan", "--gpu", "A100-80GB", "--ranks", "64")
    assert done.returncode == 0 and "618.7 million trained" in done.stdout and "64 x A100-80GB" in done.stdout


def test_what_curating_a_list_takes_is_said_without_a_download(tmp_path):
    (tmp_path / "avspeech_train.csv").write_text("".join(f"{n:011d},1.0,6.0,0.5,0.5\n" for n in range(300)))
    source = ("--set", "sources.kind=avspeech", "--set", f"sources.path={tmp_path}/avspeech_train.csv")
    done = run_here("plan", *source, "--cpus", "4", "--run", tmp_path / "run")
    assert done.returncode == 0 and "300 videos listed, 300 of them to be fetched" in done.stdout
    assert (tmp_path / "run" / "report" / "plan.json").exists()
    done = run_here("status", "--run", tmp_path / "run")
    assert done.returncode == 0 and "no stage has started yet" in done.stdout


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run folder with a clip table and a source folder with one file."""
    run = tmp_path_factory.mktemp("small") / "run"
    write_clips(run / "clips.parquet", [{"clip_id": "c", "duration": 3.0, "decision": "kept", "reasons": []}])
    (run / "sources").mkdir()
    (run / "sources" / "a.mp4").write_bytes(b"0")
    return run


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("status --run RUN", 0),
        ("query", 0),
        ("query states --run RUN", 0),
        ("yield --run RUN", 0),
        ("plan --set sources.path=RUN/sources", 0),
        ("run --recipe demo --set train.stepz=1", 1),
        ("reselect --run RUN/absent", 1),
    ],
)
def test_questions_and_mistakes_are_answered_within_a_second_of_cpu(command, code, small_run):
    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    done = _omniavatar(*command.replace("RUN", str(small_run)).split())
    assert done.returncode == code, done.stderr
    assert spent() - before < 1.5


@pytest.mark.parametrize("value", [("id=c",), ("--value", "id=c")])
def test_a_named_query_takes_its_value(value, small_run):
    done = run_here("query", "clip", *value, "--run", small_run)
    assert done.returncode == 0 and "kept" in done.stdout
    assert "kept" not in run_here("query", "clip", "id=d", "--run", small_run).stdout


WITHOUT_EXTRAS = """
import sys
from importlib.machinery import PathFinder

find, absent = PathFinder.find_spec, set({absent})
PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] in absent else find(name, *rest)
)
from pipelines.cli.main import main
main()
"""


def _without(libraries, *arguments):
    """A command where these libraries cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_EXTRAS.format(absent=sorted(libraries)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_the_base_installation_generates(tmp_path):
    inputs = ("--prompt", "a man", "--seconds", "0.2", "--out", str(tmp_path / "a.mp4"), "--run", str(tmp_path))
    done = _without(EXTRA_OF, "generate", *inputs, "--set", "generate.steps=1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.mp4").stat().st_size > 0


@pytest.mark.parametrize(
    ("library", "extra", "options"), [("cv2", "curate", ()), ("ray", "cluster", ("--ray", "local"))]
)
def test_a_command_without_its_extra_says_the_line_that_adds_it(library, extra, options, small_run):
    sources = ("--recipe", "folder", "--set", f"sources.path={small_run}/sources", "--run", str(small_run))
    done = _without({library}, "curate", *sources, *options)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith(f"error: This command needs {library}")
    assert f"pip install 'omniavatar-stack[{extra}]'" in last
