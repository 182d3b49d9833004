"""The recipe's `curation:` section."""

from dataclasses import dataclass
from typing import Any

from common.runs import plain
from curation.captions import CaptionConfig
from curation.cut import CutConfig
from curation.download import DownloadConfig
from curation.duplicates import DuplicatesConfig
from curation.framing import FramingConfig
from curation.people import PeopleConfig
from curation.quality import QualityConfig
from curation.scan import ScanConfig
from curation.select import SelectConfig
from curation.speaker import SpeakerConfig
from curation.sync import SyncConfig
from curation.text import TextConfig


@dataclass(frozen=True)
class CurationConfig:
    """One object per stage, each beside the code that reads it.

    `keep_out`: fingerprints of clips that must not be trained on, as `report/test_fingerprints.jsonl` of another run.
    `test_list`: a test split drawn by `curation.split`; without one the split is `select`'s.
    """

    download: DownloadConfig = DownloadConfig()
    scan: ScanConfig = ScanConfig()
    cut: CutConfig = CutConfig()
    people: PeopleConfig = PeopleConfig()
    speaker: SpeakerConfig = SpeakerConfig()
    sync: SyncConfig = SyncConfig()
    framing: FramingConfig = FramingConfig()
    text: TextConfig = TextConfig()
    quality: QualityConfig = QualityConfig()
    captions: CaptionConfig = CaptionConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    select: SelectConfig = SelectConfig()
    keep_out: str = ""
    test_list: str = ""

    @property
    def rules(self) -> dict[str, Any]:
        """What decides which clips there are and how they are cut: all of it but where files lie and come from."""
        return {name: value for name, value in plain(self).items() if name not in ("download", "keep_out", "test_list")}
