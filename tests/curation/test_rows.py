"""The typed rows are those of the tables."""

from typing import get_type_hints

from common.clips import CLIP_NAMES
from common.media.index import Probe
from curation.rows import ClipRow, SourceRow


def test_a_clip_row_has_every_field_of_the_clip_table() -> None:
    assert CLIP_NAMES - set(get_type_hints(ClipRow)) == set()


def test_a_source_row_has_every_field_of_the_probe_with_its_type() -> None:
    assert get_type_hints(SourceRow).items() >= get_type_hints(Probe).items()
