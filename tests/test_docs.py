"""The documentation against the tree: launch scripts parse, paths exist, commands have their options, examples run."""

import ast
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from torch.distributed.run import get_args_parser

from common.query import run_query
from curation.reporting.summary import SOURCES_SCHEMA
from pipelines.cli.failures import BUG_EXIT, ERROR_EXIT, USAGE_EXIT
from pipelines.cli.main import app
from pipelines.dag import STEPS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FOLDERS = ("packages", "curation", "latents", "training", "eval", "pipelines", "tests", "docs")
DATA = ("weights", "results", "lists")  # folders whose pages are tables
# Beginnings of paths in a run folder, or where weights are fetched to.
MADE = (
    *("runs/", "cache/", "logs/", "weights/", "clips/", "report/", "checkpoints/", "videos/", "shards/", "ledger/"),
    *("train.yaml", "recipe.yaml", "adapter/", "base/"),
)
PAGES = [
    *ROOT.glob("*.md"),
    *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md"))),
]


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
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in pod["containers"][0]["env"]


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


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language; "" = no language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name == "README.md"], ids=name_of)
def test_a_folder_readme_is_one_screen(page: Path) -> None:
    lines = page.read_text("utf-8").splitlines()
    assert page.parent.name in DATA or max(map(len, lines)) <= 120
    assert page.parent == ROOT or page.parent.name in DATA or len(lines) <= 60


def paths(page: Path) -> Iterator[str]:
    """Targets of links, and what in backticks looks like a file or folder of the tree."""
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            yield target
    for words in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)):
        for word in words.replace(",", " ").split():
            if re.fullmatch(r"[\w.-]*[\w/.-]*(\.(py|md|yaml|j2|sh)|[a-z]/)", word) and not word.startswith("."):
                yield word


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_every_path_of_a_page_exists(page: Path) -> None:
    places = [page.parent, ROOT, ROOT / "packages", *(each for each in page.parent.iterdir() if each.is_dir())]
    missing = [
        path
        for path in paths(page)
        if not path.startswith(MADE) and not any((place / path).exists() for place in places)
    ]
    assert missing == []


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words after `omniavatar` of every command of a page, without the remark behind it."""
    for line in page.read_text("utf-8").splitlines():
        if line.strip().startswith("omniavatar "):
            shown = re.split(r"\s{3,}|\s+#\s", line.strip())[0]
            for part in re.split(r"[;&|]+", re.sub(r'"[^"]*"', '"..."', shown)):
                if part.strip().startswith("omniavatar "):
                    yield shlex.split(part)[1:]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_every_command_of_a_page_has_its_options(page: Path) -> None:
    for words in command_lines(page):
        command = typer.main.get_command(app)
        context = typer.Context(command)
        while hasattr(command, "get_command") and words and not words[0].startswith("-"):
            found = command.get_command(context, words[0])
            if found is None:
                break
            command, words = found, words[1:]
        options = {option for each in command.params for option in each.opts}
        asked = [word.partition("=")[0] for word in words if word.startswith("--") and word != "--"]
        assert command.name not in ("root", "main") and set(asked) <= options, (words, sorted(options))


def test_every_query_of_the_page_on_sql_runs(tmp_path: Path) -> None:
    pq.write_table(SOURCES_SCHEMA.empty_table(), tmp_path / "sources.parquet")
    queries = blocks(DOCS / "sql.md", "sql")
    assert len(queries) > 10
    for sql in queries:
        run_query(tmp_path, sql)


def test_the_stage_of_the_page_on_stages_works(tmp_path: Path) -> None:
    stage, test = blocks(DOCS / "stages.md", "python")
    names: dict[str, object] = {"__name__": "contrast"}
    exec(stage + "\n" + test, names)
    names["test_contrast"](tmp_path)  # type: ignore[operator]


def test_the_ray_job_is_what_kuberay_takes_and_starts_curation() -> None:
    job = yaml.safe_load((DOCS / "rayjob.yaml").read_text())
    schema = json.loads((ROOT / "tests/assets/rayjob.schema.json").read_text())
    jsonschema.validate(job, schema)
    cluster = job["spec"]["rayClusterSpec"]
    cluster["headGroupSpec"]["templte"] = {}  # a misspelled field is refused, as by kubectl
    with pytest.raises(jsonschema.ValidationError, match="templte"):
        jsonschema.validate(job, schema)
    program, verb, *words = shlex.split(job["spec"]["entrypoint"])
    known = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    options = {option for parameter in known.params for option in parameter.opts}
    assert program == "omniavatar" and {word for word in words if word.startswith("--")} <= options
    assert "mirror=s3://" in job["spec"]["entrypoint"] and cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"] == version("ray")
    pods = [group["template"]["spec"] for group in cluster["workerGroupSpecs"]] + [
        cluster["headGroupSpec"]["template"]["spec"]
    ]
    wait = int(yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    assert all(wait < pod["terminationGracePeriodSeconds"] for pod in pods)
    for pod in pods:
        (container,) = pod["containers"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted["runs"] == "/runs" and mounted.keys() == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", ["dagster_assets.py", "airflow_dag.py"])
def test_the_examples_for_schedulers_run_the_steps_there_are(name: str) -> None:
    """Read without being imported: Dagster and Airflow are no libraries of the project."""
    tree = ast.parse((DOCS / name).read_text())
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert ast.literal_eval(assigned["STEPS"]) == tuple(step.name for step in STEPS)
    assert set(ast.literal_eval(assigned["FINAL_CODES"])) == {ERROR_EXIT, USAGE_EXIT, BUG_EXIT}
    (words,) = [
        node.value.elts
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "words" and "'run'" in ast.unparse(node)
    ]
    run = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    known = {option for parameter in run.params for option in parameter.opts}
    used = {word.value for word in words if isinstance(word, ast.Constant) and word.value.startswith("--")}
    assert {"--from", "--to", "--json"} <= used <= known
