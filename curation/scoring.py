"""Scoring of cut clips: speech, speaker, sync, framing, text, quality, caption."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common.executors.flow import Step
from common.executors.stage import Weights
from curation.config import CurationConfig, FramingConfig
from curation.stages.captions import CaptionsStage
from curation.stages.framing import FramingStage, framing_fields, framing_judges
from curation.stages.quality import QualityStage
from curation.stages.speaker import ActiveSpeakerStage, LipsStage
from curation.stages.speech import SpeechStage
from curation.stages.sync import SyncStage
from curation.stages.text import TextStage

Row = dict[str, Any]


def scoring_steps(config: CurationConfig, models: Mapping[str, Path | None], folder: Path, tracks: Path) -> list[Step]:
    """The steps that fill in the fields of cut clip rows (files in `folder`, their tracks in `tracks`); those without
    weights are left out."""
    framed = partial(with_framing, config.framing)
    steps = [Step(SpeechStage(Weights.of("speech_detector", models.get("speech_detector"))))]
    if model := models.get("active_speaker"):
        steps.append(Step(ActiveSpeakerStage(Weights.of("active_speaker", model), folder, tracks)))
    scorer = models.get("sync_scorer")
    steps.append(Step(LipsStage(config.speaker, folder, tracks), then=None if scorer else framed))
    if scorer:
        sync = SyncStage(config.sync, config.speaker, Weights.of("sync_scorer", scorer), folder, tracks)
        steps.append(Step(sync, then=framed))
    if judges := framing_judges(models):
        steps.append(Step(FramingStage(config.framing, judges, folder, tracks)))
    reader = Weights.of("text_detector", models.get("text_detector"))
    steps.append(Step(TextStage(config.text, folder, tracks, reader)))
    if model := models.get("quality_scorer"):
        steps.append(Step(QualityStage(config.quality, Weights.of("quality_scorer", model), folder)))
    if model := models.get("captioner"):
        captions = CaptionsStage(config.captions, Weights.of("captioner", model), folder)
        steps.append(Step(captions, passes=has_caption))
    return steps


def with_framing(config: FramingConfig, clip: Row) -> Row:
    """The row of a clip whose speaker is known, with its framing as far as the face tells."""
    return clip | framing_fields(config, clip)  # type: ignore[arg-type]


def has_caption(clip: Row) -> bool:
    """Whether no captioner has to be asked."""
    return clip["caption"] is not None
