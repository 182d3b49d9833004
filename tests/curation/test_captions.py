"""Where a caption comes from is part of it."""

from curation.captions import CaptionConfig, caption_fields


def test_the_video_s_own_caption_wins() -> None:
    fields = caption_fields(CaptionConfig("A person."), {"caption": "A woman in red nods."})
    assert fields == {"caption": "A woman in red nods.", "caption_model": "sidecar"}


def test_the_recipe_s_words_fill_in() -> None:
    assert caption_fields(CaptionConfig("A person."), {"caption": None}) == {
        "caption": "A person.", "caption_model": "recipe",
    }  # fmt: skip


def test_without_either_a_captioner_is_waited_for() -> None:
    assert caption_fields(CaptionConfig(""), {"caption": None}) == {"caption": None, "caption_model": None}
