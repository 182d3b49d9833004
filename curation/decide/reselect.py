"""Reselection: new decisions from the stored scores of a finished run under other thresholds, without recomputation."""

from common.clips import read_clips, write_clips
from common.runs import RunFolder
from curation.config import SelectConfig
from curation.decide.select import select
from curation.decide.split import apply_split
from curation.reporting.summary import CurationSummary, summarise


def reselect(config: SelectConfig, run: RunFolder, test_list: str = "") -> CurationSummary:
    """Write clips.parquet with new decisions; `test_list` as in `CurationConfig`.

    Raises FileNotFoundError before the first `curate`.
    """
    rows = read_clips(run.clips_parquet)
    rows = [row | decided for row, decided in zip(rows, select(config, rows), strict=True)]
    apply_split(test_list, rows)
    write_clips(run.clips_parquet, rows)
    return summarise(run)
