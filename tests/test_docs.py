"""The launch scripts in docs/: they parse, and what they start exists with the options they give it."""

import re
import shlex
import subprocess
from pathlib import Path

import typer
import yaml
from torch.distributed.run import get_args_parser

from pipelines.cli.main import app

DOCS = Path(__file__).parent.parent / "docs"


def check_torchrun(words: list[str]) -> None:
    """The words after `torchrun`: its own parser takes them, and they start the training of a run."""
    options = get_args_parser().parse_args(words)
    assert options.module and options.training_script == "training.train"
    assert len(options.training_script_args) == 1


def test_the_slurm_script_is_bash_and_starts_a_rank() -> None:
    script = DOCS / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    (rank,) = re.findall(r"bash -c '(.*?)'", text, re.DOTALL)
    subprocess.run(["bash", "-n", "-c", rank], check=True)
    assert 'exec python -m training.train "$RUN"' in rank
    # sbatch reads its options up to the first line that is no comment.
    head = text[: text.index("set -u")]
    assert head.count("#SBATCH") == text.count("#SBATCH") and "--signal=USR1@" in head
    assert all(line.startswith("#") for line in head.splitlines())


def test_the_kubernetes_job_meets_at_its_own_service_and_starts_torchrun() -> None:
    service, job = yaml.safe_load_all((DOCS / "kubernetes.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    program, *words = pod["containers"][0]["command"]
    assert program == "torchrun"
    check_torchrun(words)
    options = get_args_parser().parse_args(words)
    name = job["metadata"]["name"]
    assert options.rdzv_endpoint.startswith(f"{name}-0.{service['metadata']['name']}:")
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["selector"] == {"job-name": name}
    assert spec["completions"] == spec["parallelism"] == int(options.nnodes)
    assert options.shutdown_timeout < pod["terminationGracePeriodSeconds"]


def test_every_command_of_the_page_exists() -> None:
    commands = re.findall(r"`((?:torchrun|omniavatar) [^`]+)`", (DOCS / "launch.md").read_text())
    assert len(commands) >= 4
    train = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    known = {option for parameter in train.params for option in parameter.opts}
    for program, verb, *words in map(shlex.split, commands):
        if program == "torchrun":
            check_torchrun([verb, *words])
        else:
            assert verb == "train" and {word for word in words if word.startswith("--")} <= known
    for file in re.findall(r"docs/[\w.]+", (DOCS / "launch.md").read_text()):
        assert (DOCS.parent / file).exists()
