"""Views of a run with the meaning of their columns, and named queries: `omniavatar query [NAME]`.

Each query reads the few columns it needs and forms no large intermediate, so that ten million clips take seconds.
`$name` stands for a value passed with the query.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class View:
    """A view of a run: one row of what, and column -> meaning with its unit."""

    meaning: str
    columns: dict[str, str]


@dataclass(frozen=True)
class Query:
    """A named query: what it answers, its SQL over the views of a run, and its values with their defaults."""

    meaning: str
    sql: str
    values: dict[str, Any] = field(default_factory=dict)


QUERIES = {
    "states": Query(
        "units of every stage by state, with the worker time they took",
        """SELECT stage, state, count(*) AS units, to_seconds(round(sum(seconds), 1)) AS time,
           max(attempt) AS most_attempts FROM outcomes GROUP BY ALL ORDER BY ALL""",
    ),
    "failures": Query(
        "failed and pending units by class of error or reason, the most frequent first",
        """SELECT stage, state, coalesce(nullif(error_class, ''), reason) AS class, count(*) AS units,
           any_value(message) AS example FROM outcomes WHERE state IN ('failed', 'pending')
           GROUP BY ALL ORDER BY units DESC, stage, state, class""",
    ),
    "funnel": Query(
        "units that entered and passed every stage, in the order of the stages",
        """SELECT stage, count(*) AS units, count(*) FILTER (state = 'kept') AS kept,
           round(100 * kept / units, 1) AS kept_pct FROM outcomes GROUP BY stage ORDER BY min(recorded)""",
    ),
    "decisions": Query(
        "clips by decision, with their length",
        """SELECT decision, count(*) AS clips, to_seconds(round(sum(duration), 1)) AS length FROM clips
           GROUP BY ALL ORDER BY clips DESC, decision""",
    ),
    "reasons": Query(
        "why clips are not kept, a clip under each of its reasons",
        """WITH groups AS (
             SELECT decision, reasons, count(*) AS clips FROM clips WHERE decision <> 'kept' GROUP BY ALL),
           listed AS (SELECT decision, unnest(reasons) AS reason, clips FROM groups)
           SELECT decision, reason, sum(clips)::BIGINT AS clips FROM listed
           GROUP BY ALL ORDER BY clips DESC, decision, reason""",
    ),
    "hours": Query(
        "kept clips by data set and split, with their length",
        """SELECT source, split, count(*) AS clips, to_seconds(round(sum(duration), 1)) AS length FROM clips
           WHERE decision = 'kept' GROUP BY ALL ORDER BY ALL""",
    ),
    "scores": Query(
        "histograms of the scores: clips from `at_least` up to the next line",
        """SELECT 'sync_c' AS score, floor(sync_c * 4) / 4 AS at_least, count(*) AS clips FROM clips GROUP BY ALL
           UNION ALL SELECT 'iqa_1to5', floor(iqa_1to5 * 10) / 10, count(*) FROM clips GROUP BY ALL
           UNION ALL SELECT 'ase_1to5', floor(ase_1to5 * 10) / 10, count(*) FROM clips GROUP BY ALL ORDER BY ALL""",
    ),
    "best": Query(
        "the 100 best kept clips by sync_c, three of a video at most, found among the 2,000 best of all",
        """WITH top AS (
             SELECT video_id, clip_id, sync_c, iqa_1to5, duration FROM clips WHERE decision = 'kept'
             ORDER BY sync_c DESC, clip_id LIMIT 2000)
           SELECT * FROM top QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY sync_c DESC, clip_id) <= 3
           ORDER BY sync_c DESC, clip_id LIMIT 100""",
    ),
    "clip": Query("all columns of one clip: id=<clip_id>", "SELECT * FROM clips WHERE clip_id = $id", {"id": ""}),
    "unit": Query(
        "outcomes of one unit in every stage: id=<unit>",
        "SELECT * FROM outcomes WHERE unit = $id ORDER BY recorded",
        {"id": ""},
    ),
}

# Those of clips and tracks are in their tables' modules; `common.query.VIEWS` has all.
DESCRIBED_VIEWS = {
    "sources": View(
        "one row per listed source video (sources.parquet; before it exists, the outcomes of the stage probe)",
        {
            "video_id": "id of the video",
            "path": "file of the video",
            "url": "address it was downloaded from",
            "source": "data set: avspeech_train, avspeech_test, hdtf, folder, miniature",
            "row_index": "row of the data set's list",
            "state": "kept, rejected or failed",
            "reason": "why it is not kept",
            "message": "the error in words",
            "bytes": "size of the file",
            "sha256": "hash of the file",
            "duration": "seconds",
            "fps": "average frame rate",
            "frames": "number of frames",
            "width": "pixels",
            "height": "pixels",
            "codec": "video codec",
            "audio_codec": "audio codec",
            "audio_rate": "audio sample rate, Hz",
            "video_start": "start time of the video stream, seconds",
            "audio_start": "start time of the audio stream, seconds",
            "variable_frame_rate": "whether the frames are unevenly spaced",
            "max_frame_gap": "longest time between two frames, seconds",
            "clips": "clips cut from it",
            "clips_kept": "those that are kept",
        },
    ),
    "outcomes": View(
        "the ledger: the last outcome of every unit in every stage (ledger/)",
        {
            "unit": "id of the unit: video_id, clip_id, ... by stage",
            "stage": "name of the stage",
            "fingerprint": "hash of the stage's version, parameters and models",
            "input_hash": "hash of the unit's input",
            "state": "kept, rejected, failed or pending",
            "reason": "one word for a rejection, or the role a pending unit waits for",
            "attempt": "number of the attempt",
            "error_class": "class of the exception of a failed unit",
            "message": "the error in words",
            "host": "machine it ran on",
            "seconds": "wall time",
            "cpu_seconds": "CPU time",
            "gpu_seconds": "wall time x GPUs reserved",
            "peak_mb": "peak resident memory of the worker, MB",
            "outputs": "scores and references, as JSON",
            "recorded": "time of the outcome, UTC",
        },
    ),
    "shards": View(
        "one row per training sample (shards/index.parquet)",
        {
            "clip_id": "clip of the sample",
            "video_id": "video of the clip",
            "split": "train or test",
            "shard": "tar file",
            "offset": "of the sample in the tar file, bytes",
            "size": "of the sample with headers and padding, bytes",
            "checksum": "xxh3 of the part before the first tensor",
            "frames": "video frames",
            "latent_frames": "frames of the VAE latents",
            "latent_height": "of the latents",
            "latent_width": "of the latents",
            "tokens_per_frame": "transformer tokens per latent frame",
            "tokens": "transformer tokens",
            "text_tokens": "tokens of the caption embedding",
            "audio_frames": "frames of audio features; 0 for a waveform",
            "seconds": "length of the clip",
            "head_bytes": "before the first tensor",
            "whole_bytes": "of the tensors before the latents",
            "latents_bytes": "of the latents",
            "audio_bytes": "of the audio",
            "text_bytes": "of the caption embedding",
            "references_bytes": "of the reference latents",
        },
    ),
    "steps": View(
        "one row per training step, and one per validation (logs/train*.jsonl)",
        {
            "step": "number of the optimizer step",
            "epoch": "pass over the data",
            "phase": "phase of the training",
            "loss": "mean loss of the samples",
            "lr": "learning rate",
            "grad_norm": "norm of the gradient",
            "heldout_loss": "mean loss of held-out samples (rows of a validation)",
            "audio_gap": "rise of heldout_loss with the audio of another clip",
            "silence_gap": "rise of heldout_loss with silence",
            "tokens_per_s": "transformer tokens per second over all ranks",
            "seconds": "wall time of the step",
            "data_wait": "of which the first rank waited for data, seconds",
            "data_wait_share": "the same as a share",
            "mfu": "model FLOPs utilisation",
            "hfu": "hardware FLOPs utilisation, with recomputation",
            "peak_tflops": "peak of the device behind mfu and hfu",
            "peak_source": "where that peak comes from",
            "imbalance": "work of the slowest rank over the mean",
            "peak_memory": "bytes on the device of the first rank",
            "skipped": "steps skipped so far for a spiking loss",
            "bad": "samples that could not be read so far",
            "quarantined": "samples that are no longer drawn",
            "log": "file of the row",
        },
    ),
    "metrics": View(
        "one row per method, clip and metric (report/metrics.parquet)",
        {
            "method": "who made the video: adapter, base, real, ...",
            "clip_id": "the clip; empty for a metric of a whole set",
            "metric": "name of the metric",
            "value": "NULL unless status is ok",
            "status": "ok, or why there is no value",
            "n": "frames, windows or videos behind the value",
            "protocol": "how it was measured",
            "seed": "of what was drawn",
        },
    ),
}
