"""Scoring of cut clips: speech, speaker, sync, framing, text, quality, caption."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.executors.stage import Stage, Weights
from curation.config import CurationConfig
from curation.stages.captions import CaptionsStage
from curation.stages.framing import FramingStage, framing_fields, framing_judges
from curation.stages.quality import QualityStage
from curation.stages.speaker import ActiveSpeakerStage, LipsStage
from curation.stages.speech import SpeechStage
from curation.stages.sync import SyncStage
from curation.stages.text import TextStage

Row = dict[str, Any]
RunStage = Callable[[Stage[Any], Sequence[Row]], list[Row]]


def score_clips(
    config: CurationConfig,
    models: Mapping[str, Path | None],
    run_stage: RunStage,
    folder: Path,
    tracks: Path,
    clips: Sequence[Row],
) -> list[Row]:
    """Fill in the fields of cut clip rows (files in `folder`, their tracks in `tracks`); stages without
    weights are skipped.

    `run_stage(stage, rows)` runs rows through a stage, writes its outputs into them and returns those that were kept.
    """
    alive = run_stage(SpeechStage(Weights.of("speech_detector", models.get("speech_detector"))), clips)
    if model := models.get("active_speaker"):
        alive = run_stage(ActiveSpeakerStage(Weights.of("active_speaker", model), folder, tracks), alive)
    alive = run_stage(LipsStage(config.speaker, folder, tracks), alive)
    if model := models.get("sync_scorer"):
        scorer = Weights.of("sync_scorer", model)
        alive = run_stage(SyncStage(config.sync, config.speaker, scorer, folder, tracks), alive)
    for clip in alive:
        clip |= framing_fields(config.framing, clip)  # type: ignore[arg-type]
    if judges := framing_judges(models):
        alive = run_stage(FramingStage(config.framing, judges, folder, tracks), alive)
    reader = Weights.of("text_detector", models.get("text_detector"))
    alive = run_stage(TextStage(config.text, folder, tracks, reader), alive)
    if model := models.get("quality_scorer"):
        alive = run_stage(QualityStage(config.quality, Weights.of("quality_scorer", model), folder), alive)
    if model := models.get("captioner"):
        unnamed = [clip for clip in alive if clip["caption"] is None]
        stage = CaptionsStage(config.captions, Weights.of("captioner", model), folder)
        captioned = {clip["unit"] for clip in run_stage(stage, unnamed)}
        alive = [clip for clip in alive if clip["caption"] is not None or clip["unit"] in captioned]
    return alive
