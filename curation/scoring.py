"""What is to be known of a clip before anybody decides: sound, speaker, sync, framing, text, quality, caption."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.executors.stage import Stage
from common.runs import hash_path
from curation.config import CurationConfig
from curation.stages.captions import captions_stage
from curation.stages.framing import framing_fields, framing_roles, framing_stage
from curation.stages.people import find_tracks
from curation.stages.quality import quality_stage
from curation.stages.speaker import active_speaker_stage, lips_stage
from curation.stages.speech import speech_stage
from curation.stages.sync import sync_stage
from curation.stages.text import text_stage

Row = dict[str, Any]
Do = Callable[[Stage, Sequence[Row]], list[Row]]


def judge_clips(
    config: CurationConfig, models: Mapping[str, Path | None], do: Do, folder: Path, clips: Sequence[Row]
) -> list[Row]:
    """Fill in the fields of cut clip rows (files in `folder`); a stage whose weights are absent is left out.

    `do(stage, rows)` brings rows through a stage, writes its outputs into them and returns those that were kept.
    """
    people = config.people
    alive = do(speech_stage(), clips)
    if model := models.get("active_speaker"):
        alive = do(active_speaker_stage(people, folder, model, hash_path(model)), alive)
    alive = do(lips_stage(config.speaker, people, folder), alive)
    if model := models.get("sync_scorer"):
        alive = do(sync_stage(config.sync, people, folder, model, hash_path(model), config.speaker), alive)
    for clip in alive:
        clip |= framing_fields(config.framing, find_tracks(people, clip), clip)
    if roles := framing_roles(models):
        hashed = {role: (path, hash_path(path)) for role, path in roles.items()}
        alive = do(framing_stage(config.framing, people, folder, hashed), alive)
    alive = do(text_stage(config.text, people, folder), alive)
    if model := models.get("quality_scorer"):
        alive = do(quality_stage(config.quality, folder, model, hash_path(model)), alive)
    if model := models.get("captioner"):
        unnamed = [clip for clip in alive if clip["caption"] is None]
        named = {clip["unit"] for clip in do(captions_stage(config.captions, folder, model, hash_path(model)), unnamed)}
        alive = [clip for clip in alive if clip["caption"] is not None or clip["unit"] in named]
    return alive
