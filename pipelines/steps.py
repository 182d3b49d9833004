"""Steps of the flow: each hands sections of the recipe to the job that does the work.

Engines are imported inside the steps: reading a recipe or skipping a done step should not wait for torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common.constants import AUDIO_RATE
from common.errors import UserError
from common.runs import read_json, write_json
from curation.config import ROLES as CURATION_ROLES
from eval.config import ROLES as EVAL_ROLES
from omniavatar.config import BASE_ROLES, ENCODER_ROLES, GENERATION_ROLES, Request
from pipelines.config import LIKENESS_ROLES
from pipelines.dag import Context, Step, step_seconds

LONG_SEED_OFFSET, LONG_SECONDS = 7_008, 6.0


class MissingWeightsError(UserError, ValueError):
    """A step cannot run without a model that the recipe does not name."""


def curate(context: Context) -> Mapping[str, Any]:
    """Sources -> scored clips with a decision each; drawn sources are also held against their truth.

    A recipe with `drawn` clips has nothing to judge.
    """
    from curation.job import curate as run_curation
    from curation.reporting.report import write_curation_report
    from miniature.world.faults import draw_sources
    from miniature.world.truth import score_truth
    from pipelines.drawn import draw_kept_clips

    recipe, run = context.recipe, context.run
    if recipe.drawn is not None:
        draw_kept_clips(recipe.drawn, run, recipe.executor)
        return asdict(recipe.drawn)
    sources = recipe.sources
    if recipe.small_world is not None:
        folder = Path(run.root) / "sources"
        draw_sources(folder, recipe.small_world)
        sources = replace(sources, path=str(folder))
    summary = run_curation(recipe.curation, sources, context.models, run, recipe.executor, context.keep)
    if recipe.small_world is not None:
        write_json(run.report / "faults.json", score_truth(run, Path(sources.path)))
    write_curation_report(run, recipe.curation.select)
    return asdict(summary)


def latents(context: Context) -> Mapping[str, Any]:
    """Kept clips -> shards."""
    from common.clips import read_clips
    from latents.job import encode_clips

    recipe, run = context.recipe, context.run
    models = require(context.models, ENCODER_ROLES)
    kept = [row for row in read_clips(run.clips_parquet) if row["decision"] == "kept"]
    outcomes = encode_clips(recipe.latents, kept, models, run, recipe.executor)
    return {"clips": len(kept), "encoded": sum(outcome.state == "kept" for outcome in outcomes)}


def train(context: Context) -> Mapping[str, Any]:
    """Shards -> adapter, going on from the recipe's adapter when it names one."""
    from training.launch.local import launch
    from training.launch.on_ray import launch_on_ray

    recipe, run = context.recipe, context.run
    base = require(context.models, ("transformer",))["transformer"]
    model = replace(recipe.train.model, base=base, adapter=context.models["adapter"])
    data = replace(recipe.train.data, audio_encoder=context.models.get("audio_encoder"))
    config = replace(recipe.train, model=model, data=data)
    if recipe.executor.kind == "ray":
        launch_on_ray(run, config, recipe.ranks, recipe.executor)
    else:
        launch(run, config, recipe.ranks)
    return {"ranks": recipe.ranks}


def generate(context: Context) -> Mapping[str, Any]:
    """Videos of held-out clips by the trained adapter, its control and the base; and one long video."""
    from pipelines.generate.videos import make_videos

    recipe, run = context.recipe, context.run
    models = require(context.models, BASE_ROLES) | {"adapter": run.checkpoints / "adapter"}
    judges = {role: context.models.get(role) for role in LIKENESS_ROLES}
    videos = recipe.videos
    if videos.long is None and recipe.small_world is not None:
        videos = replace(videos, long=draw_long_input(run.cache / "demo"))
    return make_videos(videos, recipe.generate, {**judges, **models}, run, recipe.executor)


def judge(context: Context) -> Mapping[str, Any]:
    """Videos -> metrics -> the report."""
    from eval.job import evaluate

    recipe, run = context.recipe, context.run
    table = evaluate(recipe.eval, context.models, run, recipe.executor)
    return {"rows": table.num_rows}


def report(context: Context) -> Path:
    """Write `report/index.html` and `report/summary.json` from what the run folder holds now."""
    from eval.reporting.report import write_report

    run = context.run
    faults = read_json(run.report / "faults.json") if (run.report / "faults.json").exists() else {}
    return write_report(run, faults | {"seconds": step_seconds(run)})


def draw_long_input(folder: Path, number: int = 0, seconds: float = LONG_SECONDS) -> Request:
    """A face and a voice nobody trained on, as the files a user would bring: portrait.png and voice.wav.

    Each `number` is another face with another voice.
    """
    import cv2
    import numpy as np
    import scipy.io.wavfile

    from miniature.world.clips import HELD_OUT_SEED, draw_clip

    folder.mkdir(parents=True, exist_ok=True)
    seed = HELD_OUT_SEED + LONG_SEED_OFFSET + 2 * number
    person, voice = draw_clip(seed, 1.0), draw_clip(seed + 1, seconds)
    # The frame with the mouth most closed: a portrait as people take them.
    portrait = person.frames[int(person.mouth[:, 0].argmin())]
    cv2.imwrite(str(folder / "portrait.png"), cv2.cvtColor(portrait, cv2.COLOR_RGB2BGR))
    scipy.io.wavfile.write(folder / "voice.wav", AUDIO_RATE, (voice.audio * 32767).astype(np.int16))
    return Request(folder / "portrait.png", folder / "voice.wav", person.caption)


def require(models: Mapping[str, Path | None], roles: tuple[str, ...]) -> dict[str, Path]:
    """These roles of `models`, each with its path. Raises MissingWeightsError for those that have none."""
    present = {role: path for role in roles if (path := models.get(role)) is not None}
    missing = [role for role in roles if role not in present]
    if missing:
        raise MissingWeightsError(
            f"This step needs weights for {', '.join(missing)}; name them in the recipe, e.g. "
            f"--set models.{missing[0]}=PATH, or use the small world's with weights: miniature."
        )
    return present


STEPS = (
    Step("curate", ("small_world", "drawn", "sources", "curation"), tuple(CURATION_ROLES), "clips.parquet", curate),
    Step("latents", ("latents",), ENCODER_ROLES, "shards/index.parquet", latents),
    Step("train", ("train", "ranks"), ("transformer", "adapter"), "checkpoints/adapter", train),
    Step("generate", ("generate", "videos"), GENERATION_ROLES, "videos/manifest.parquet", generate, LIKENESS_ROLES),
    Step("eval", ("eval",), tuple(EVAL_ROLES), "report/metrics.parquet", judge),
)
