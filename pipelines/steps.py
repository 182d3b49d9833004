"""Steps of the flow: each hands sections of the recipe to the job that does the work.

Engines are imported inside the steps: reading a recipe or skipping a done step should not wait for torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common.runs import write_json
from omniavatar.config import BASE_ROLES, ENCODER_ROLES
from pipelines.config import LIKENESS_ROLES
from pipelines.dag import Context
from pipelines.drawn import draw_long_input
from pipelines.roles import require


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
    from common.clips import stream_clips
    from latents.job import CLIP_COLUMNS, encode_clips

    recipe, run = context.recipe, context.run
    models = require(context.models, ENCODER_ROLES)
    clips = stream_clips(run.clips_parquet, (*CLIP_COLUMNS, "decision"))
    kept = (row for row in clips if row.pop("decision") == "kept")
    outcomes = encode_clips(recipe.latents, kept, models, run, recipe.executor)
    return {"clips": len(outcomes), "encoded": sum(outcome.state == "kept" for outcome in outcomes)}


def train(context: Context) -> Mapping[str, Any]:
    """Shards -> adapter, going on from the recipe's adapter when it names one."""
    from training.launch.local import launch

    recipe, run = context.recipe, context.run
    base = require(context.models, ("transformer",))["transformer"]
    model = replace(recipe.train.model, base=base, adapter=context.models["adapter"])
    data = replace(recipe.train.data, audio_encoder=context.models.get("audio_encoder"))
    config = replace(recipe.train, model=model, data=data)
    if recipe.executor.kind == "ray":
        from training.launch.on_ray import launch_on_ray  # with all that a rank imports, which a launcher never uses

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
