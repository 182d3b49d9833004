"""What is seen? The caption that came with the video, else the recipe's words; a captioning model would go here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CaptionConfig:
    """`default` describes every clip whose video brought no caption; empty leaves such clips pending on a captioner."""

    default: str = "A person is talking to the camera."


def caption_fields(config: CaptionConfig, source: Mapping[str, Any]) -> dict[str, Any]:
    """Clip fields caption and caption_model ("sidecar" or "recipe"; null when there is neither)."""
    if source["caption"]:
        return {"caption": source["caption"], "caption_model": "sidecar"}
    if config.default:
        return {"caption": config.default, "caption_model": "recipe"}
    return {"caption": None, "caption_model": None}
