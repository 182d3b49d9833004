import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.io.wavfile
import typer
from PIL import Image
from safetensors.torch import load_file

from common.errors import InputError
from common.media.audio import read_audio
from common.media.index import probe
from common.media.marks import read_marks
from common.runs import read_json
from miniature.world.clips import draw_clip
from omniavatar.video.video_file import write_avatar_video
from pipelines.cli.main import app
from pipelines.drawn import draw_long_input
from pipelines.recipe import read_recipe
from tests.pipelines.command_line import run_here
from training.launch.local import free_port

# The command line as two processes that import it once.
TWICE = """
import os, sys
import pipelines.generate.animate
from pipelines.cli.main import app
child = os.fork()
os.environ["RANK"] = "0" if child else "1"
app(sys.argv[1:], standalone_mode=False)
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
NO_WEIGHTS = ("--set", "models.vae=no/such/vae")


def _command(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def _generate(folder: Path, request, *more: object) -> list[object]:
    inputs = ["--image", request.image, "--audio", request.audio, "--prompt", request.prompt]
    return ["generate", *inputs, "--out", folder / "a.mp4", "--run", folder / "run", *more]


@pytest.fixture(scope="module")
def request_(tmp_path_factory):
    return draw_long_input(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, request_) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    _command(*_generate(folder, request_, "--set", "generate.steps=5", "--measure"))
    return folder


def test_it_ends_in_a_video_as_long_as_its_audio(undisturbed, request_):
    video = probe(undisturbed / "a.mp4")
    assert video.duration == pytest.approx(len(read_audio(request_.audio)) / 16_000) and video.has_audio
    facts = read_json(undisturbed / "a.json")
    assert facts["chunk_starts"] == [0, 48, 72, 96, 120, 144] and facts["frames"] == 150
    assert set(facts["models"]) == {"transformer", "vae", "text_encoder", "tokenizer", "audio_encoder", "adapter"}
    marks = json.loads(read_marks(undisturbed / "a.mp4")["generator"])
    assert marks["steps"] == 5 and marks["models"]["vae"] == facts["models"]["vae"][:16]
    assert facts["drift"]["identity"]["lowest"] > 0.5 and len(facts["drift"]["seam"]["z"]) == 5


def test_killed_in_the_middle_it_ends_in_the_same_bytes(undisturbed, request_, tmp_path):
    line = [str(part) for part in _generate(tmp_path, request_, "--set", "generate.steps=5", "--measure")]
    # Less urgent than this process, which must see the second chunk before the last is there.
    command = ["nice", "-n", "15", sys.executable, "-m", "pipelines.cli.main", *line]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    chunks, until = tmp_path / "run" / "cache" / "chunks", time.monotonic() + 120
    while len(list(chunks.rglob("chunk_*.safetensors"))) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = {path.name: path.stat().st_mtime_ns for path in chunks.rglob("chunk_*.safetensors")}
    assert not (tmp_path / "a.mp4").exists() and 2 <= len(made) < 6
    _command(*_generate(tmp_path, request_, "--set", "generate.steps=5", "--measure"))
    assert (tmp_path / "a.mp4").read_bytes() == (undisturbed / "a.mp4").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (undisturbed / "a.json").read_bytes()
    assert {path.name: path.stat().st_mtime_ns for path in chunks.rglob("chunk_*")}.items() >= made.items()


def test_two_processes_make_one_video_together(request_, tmp_path):
    """Their own tokens and parts of blocks each, over gloo, steps left out: the frames of one process that streams."""
    scipy.io.wavfile.write(tmp_path / "short.wav", 16_000, read_audio(request_.audio)[:16_000])
    request = replace(request_, audio=tmp_path / "short.wav")
    settings = ["steps=3", "chunk_frames=21", "load.offload=blocks", "cache_threshold=0.2", "cache_polynomial=[1,0]"]
    by_hand = [part for setting in settings for part in ("--set", f"generate.{setting}")]
    _command(*_generate(tmp_path / "alone", request, *by_hand))
    line = [str(part) for part in _generate(tmp_path / "two", request, *by_hand)]
    together = ["--set", "generate.load.share_sequence=true", "--set", "generate.load.shard=true"]
    command = [sys.executable, "-c", TWICE, *line, *together]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=os.environ | meeting, check=True, timeout=200)
    alone, two = (sorted((tmp_path / name / "run").rglob("chunk_*.safetensors")) for name in ("alone", "two"))
    assert len(alone) == len(two) == 2
    for one, other in zip(alone, two, strict=True):
        difference = load_file(one)["frames"].int() - load_file(other)["frames"].int()
        assert difference.abs().max() <= 1
    assert probe(tmp_path / "two" / "a.mp4").duration == pytest.approx(1.0) and (tmp_path / "two" / "a.json").exists()
    assert read_json(tmp_path / "two" / "a.json")["settings"]["cache_threshold"] == 0.2


def test_a_preset_comes_before_what_is_set_by_hand(request_, tmp_path):
    scipy.io.wavfile.write(tmp_path / "short.wav", 16_000, read_audio(request_.audio)[:6400])
    by_hand = ("--set", "generate.steps=1", "--set", "generate.chunk_frames=21")
    request = replace(request_, audio=tmp_path / "short.wav")
    _command(*_generate(tmp_path, request, "--preset", "official", *by_hand))
    facts = read_json(tmp_path / "a.json")
    assert "drift" not in facts  # measured with --measure only
    assert facts["preset"] == "official" and facts["frames"] == 1 + 18  # 0.7 s with the lead-in
    settings = facts["settings"]
    assert (settings["steps"], settings["lead_in"], settings["keep_reference"], settings["blend"]) == (
        1,
        0.3,
        True,
        False,
    )
    assert probe(tmp_path / "a.mp4").duration == pytest.approx(19 / 25)
    assert abs(read_audio(tmp_path / "a.mp4")[:5000]).max() < 0.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--image", "none.png", "--audio", "v.wav"), "no image at none.png"),
        (("--prompt", "a man"), "--seconds"),
        (("--prompt", "a man", "--audio", "none.wav"), "none.wav"),
        (("--audio", "v.wav"), "Neither an image nor a prompt"),
        (("--prompt", "a", "--seconds", "-3"), "seconds is -3"),
        (("--list", "none.txt"), "no list at none.txt"),
        (("--image", "none.png", "--audio", "v.wav", "--out", "a.mov"), "ends in .mov"),
        (("--image", "none.png", "--audio", "v.wav", "--out", "/proc/none/a.mp4"), "cannot be written"),
    ],
)
def test_bad_input_is_reported_before_weights_are_looked_for(arguments, words):
    with pytest.raises((InputError, FileNotFoundError), match=words):
        _command("generate", *arguments, *NO_WEIGHTS)


def test_a_list_with_a_bad_line_is_a_failure(tmp_path):
    (tmp_path / "list.txt").write_text("a@@b@@c@@d\n")
    code = app(["generate", "--list", str(tmp_path / "list.txt")], standalone_mode=False)
    assert code == 1 and (tmp_path / "list" / "results.csv").exists()


def test_an_unknown_preset_is_refused():
    with pytest.raises((ValueError, typer.BadParameter), match="papre.*paper"):
        _command("generate", "--prompt", "a", "--seconds", "1", "--preset", "papre")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is printed for one face of a third of a second, seven steps."""
    folder = tmp_path_factory.mktemp("calibrate")
    drawn = draw_clip(1_000_000, seconds=1)
    Image.fromarray(drawn.frames[0]).save(folder / "face.png")
    write_avatar_video(folder / "voice.mp4", drawn.frames[:8], drawn.audio[: 8 * 640])
    (folder / "list.txt").write_text(f"{drawn.caption}@@face.png@@voice.mp4")
    settings = [
        part for setting in ("steps=7", "chunk_frames=13", "overlap=1") for part in ("--set", f"generate.{setting}")
    ]
    done = run_here("calibrate", "--list", folder / "list.txt", "--thresholds", "0,0.2,99", *settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_thresholds_compute_less_and_are_less_like(printed: list[str]) -> None:
    rows = [[float(number) for number in re.findall(r"[\d.]+", line)] for line in printed[2:-1]]
    (_, all_steps, _, same, _), (_, some, _, like, lowest), (_, least, _, unlike, _) = rows
    assert all_steps == 7 and same == 100 and least == 2 and 2 < some < 7
    assert unlike < like < same and lowest <= like


def test_what_is_printed_is_a_setting_and_fits_the_model(printed: list[str]) -> None:
    change, error = map(float, re.findall(r"\d+\.\d+", printed[0]))
    assert 0.05 < change < 0.5 and error < 0.2 * change
    setting = re.match(r'--set "(.*)" --set', printed[-1])
    assert setting and len(read_recipe("demo", (setting[1],)).generate.cache_polynomial) == 5


def test_thresholds_must_be_numbers() -> None:
    done = run_here("calibrate", "--thresholds", "0.1;0.2")
    assert done.returncode == 2 and "0.1;0.2" in done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("generate --image none.png --audio v.wav", "no image at none.png"),
        ("generate --list none.txt", "no list at none.txt"),
        ("generate --prompt a --seconds 1 --recipe dmo", "did you mean 'demo'"),
        ("generate --prompt a --seconds 1 --set models.vae=none", "models.vae is none"),
        ("watch --run none", "none/clips.parquet does not exist"),
    ],
)
def test_a_mistake_is_reported_before_engines_are_imported(line, words, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "pipelines.cli.main", *line.split()]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    before = os.times()
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    after = os.times()
    assert done.returncode == 1 and words in done.stderr.splitlines()[-1]
    imported = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines() if row.startswith("import time:")}
    assert not imported & {"torch", "transformers", "diffusers", "cv2", "scipy", "matplotlib"}
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1.5


def test_a_plan_needs_no_weights_and_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pipelines.cli.main import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print(time.process_time(), sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "generate", "--plan", "--recipe", "omniavatar-14b", "--gpu", "RTX 4090"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    *plan, last = done.stdout.splitlines()
    assert any(line.startswith("mode     offloaded: text encoder streamed from its file") for line in plan)
    seconds, loaded = last.split(" ", 1)
    assert loaded == "[]" and float(seconds) < 1.5


def test_all_cards_and_a_wrong_one() -> None:
    done = run_here("generate", "--plan", "--recipe", "omniavatar-1.3b", "--gpu", "all", "--host-memory", 32)
    assert done.returncode == 0 and "RTX 4060 " in done.stdout and "does not fit" not in done.stdout
    assert "no figures of the device 'Voodoo 2'" in run_here("generate", "--plan", "--gpu", "Voodoo 2").stderr
    with pytest.raises(typer.BadParameter, match="belong to --plan"):
        _command("generate", "--gpu", "H200")
