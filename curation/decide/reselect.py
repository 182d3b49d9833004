"""Reselection: new decisions from the stored scores of a finished run under other thresholds, without recomputation."""

from pathlib import Path

from common.errors import MissingFileError
from common.query import connect
from common.runs import RunFolder
from curation.config import SelectConfig
from curation.decide.split import read_split
from curation.decide.table import write_decided
from curation.reporting.summary import CurationSummary, summarise


def reselect(config: SelectConfig, run: RunFolder, test_list: str = "") -> CurationSummary:
    """Write clips.parquet with new decisions; `test_list` as in `CurationConfig`.

    Raises FileNotFoundError before the first `curate`.
    """
    if not run.clips_parquet.exists():
        raise MissingFileError(f"{run.clips_parquet} does not exist; run the curation job, which writes it.")
    held = read_split(Path(test_list)) if test_list else None
    with connect(run.root) as connection:
        write_decided(config, held, connection, "clips", run.clips_parquet, {})
    return summarise(run)
