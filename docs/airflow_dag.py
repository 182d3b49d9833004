"""Airflow DAG of a run: one task for each step, on this machine or as a job of a Ray cluster.

Copy it into the folder of the DAGs. A step is idempotent: a task that is cleared and run again goes on. One that was
stopped (code 75) or killed is tried again; codes 1, 2 and 70 need a person and fail the task for good. With AVATAR_RAY,
the address of a job server, the tasks are jobs: `ray job submit` ends with 1 for whatever the job ended with, so the
code is read from the last line that --json makes.
"""

import json
import os
import subprocess
from datetime import datetime, timedelta
from typing import Any

from airflow.exceptions import AirflowException, AirflowFailException
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG

RECIPE, RUN = os.environ.get("AVATAR_RECIPE", "demo"), os.environ.get("AVATAR_RUN", "/shared/runs/demo")
COMMAND = os.environ.get("AVATAR_COMMAND", "omniavatar").split()
RAY = os.environ.get("AVATAR_RAY", "")
STEPS = ("curate", "latents", "train", "generate", "eval")
FINAL_CODES = (1, 2, 70)
JOB = ["ray", "job", "submit", "--address", RAY, "--runtime-env-json"]
STOP_WAIT = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}


def run_step(step: str) -> dict[str, Any]:
    """Run a step and return its seconds and figures. Raises AirflowFailException where no other try is of use."""
    words = [*COMMAND, "run", "--recipe", RECIPE, "--run", RUN, "--from", step, "--to", step, "--json"]
    if RAY:
        words = [*JOB, json.dumps(STOP_WAIT), "--", *words, "--ray", "auto"]
    ended: dict[str, Any] = {}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)  # into the log of the task
            if line.startswith('{"command":'):
                ended = json.loads(line)
    code = ended.get("exit_code", process.returncode)
    if code:
        kind = AirflowFailException if code in FINAL_CODES and ended else AirflowException
        raise kind(ended.get("error", f"{step} ended with code {code}"))
    return dict(ended["result"]["steps"][step])


with DAG(
    "avatar",
    start_date=datetime(2026, 1, 1),
    schedule=None,
    catchup=False,
    max_active_runs=1,  # one command at a time writes into a run folder
    default_args={"retries": 20, "retry_delay": timedelta(seconds=30), "retry_exponential_backoff": True},
) as dag:
    tasks = [PythonOperator(task_id=step, python_callable=run_step, op_args=[step]) for step in STEPS]
    for first, then in zip(tasks, tasks[1:], strict=False):
        first >> then
