"""Rows that travel between stages: a source video, and a clip of it, field by field.

A `ClipRow` has the fields of the clip table (`common.clips.CLIP_FIELDS`) and those that stages pass to each other.
Per-frame values are in files that a row names: `scan_file`, `tracks_file`.
"""

from typing import Any, NamedTuple, TypedDict

Segment = dict[str, Any]  # see `curation.sources.remote.remote_row`


class _ProbeFields(TypedDict, total=False):
    """Fields of `common.media.index.Probe`."""

    duration: float
    fps: float
    frames: int
    width: int
    height: int
    codec: str
    audio_codec: str
    audio_rate: int
    audio_channels: int
    video_start: float
    audio_start: float
    audio_end: float
    variable_frame_rate: bool
    max_frame_gap: float
    has_audio: bool
    interlaced: bool
    color_transfer: str
    presentation: str
    digital_source_type: str  # only where the file says so


class SourceRow(_ProbeFields, total=False):
    """One source video. `unit` is its id; a remote video has a `url` and, once downloaded, a `path`."""

    unit: str
    path: str
    url: str
    source: str
    row_index: int | None
    caption: str | None
    segments: list[Segment]
    audio_span: list[float]  # first and last moment with sound, where they are not those of the picture
    refused: dict[str, str]
    bytes: int
    mtime_ns: int
    sha256: str
    # of the download: name in the folder, time of the request (UTC), name of the egress
    file: str
    asked: str
    exit: str
    # of the scan: start times of shots in seconds, and the file of per-frame results
    cuts: list[float]
    shot_ends: list[float]  # when the shot before each cut ends, where that is earlier: a dissolve, a fade
    shot_judge: str
    face_judge: str
    scan_file: str
    scan_sha256: str
    decision: str
    reasons: list[str]
    message: str


class ClipRow(TypedDict, total=False):
    """One clip. `unit` is its clip_id."""

    unit: str
    path: str  # of the source video
    source_sha256: str
    presentation: str  # of the source; see `common.media.index.Probe`
    size: list[int] | None  # width, height of a cropped clip; null = as the source
    x: float | None  # annotated face centre, fractions of the clip's frame
    y: float | None
    point_at: float | None  # seconds on the clip's clock
    tracks_file: str
    tracks_sha256: str  # of the boxes of this clip's tracks
    people: dict[str, Any]  # the fields about faces until the speaker is known
    room_below: list[float]  # per track: heights of the face that fit below the chin, median
    speaking_pct: list[float]  # per track
    lips: list[list[float]]  # per track: motion, agreement
    sync_scores: list[list[float]]  # per track: confidence, distance, offset
    cut_sha256: str
    hashes: list[str]
    loudness: list[int]
    message: str
    # the clip table
    clip_id: str
    video_id: str
    source: str
    row_index: int | None
    t_start: float
    t_end: float
    duration: float
    fps_src: float
    width: int
    height: int
    crop: list[int] | None
    codec: str
    color_transfer: str | None
    digital_source_type: str | None
    audio_rate: int
    video_start_pts: float
    audio_start_pts: float
    shot_id: int
    shot_judge: str
    face_judge: str
    face_track_id: int | None
    n_faces_median: float
    face_px: float | None
    face_area_pct: float | None
    yaw_p05: float
    yaw_p50: float
    yaw_p95: float
    pitch_p05: float
    pitch_p50: float
    pitch_p95: float
    roll_p05: float
    roll_p50: float
    roll_p95: float
    xy_agreement: float | None
    framing: str | None
    wrist_visible_pct: float
    sync_c: float
    sync_c_valid: float
    sync_d: float
    sync_offset: int
    sync_offset_applied: int
    sync_windows: int
    sync_offset_first: int
    sync_offset_middle: int
    sync_offset_last: int
    sync_drift: int | None
    sync_drift_c: float
    speaker_evidence: str
    lip_motion: float | None
    lip_agreement: float | None
    asd_speaking_pct: float | None
    iqa_1to5: float
    ase_1to5: float
    iqa_variant: str
    text_judge: str
    text_area_pct: float
    text_near_face_pct: float | None
    sharpness: float
    static_pct: float | None
    speech_judge: str
    speech_pct: float
    voice_certainty: float | None
    snr_db: float | None
    music_ratio: float
    clipping_pct: float
    loudness_lufs: float | None
    silence_start: float
    silence_end: float
    dup_group: str | None
    test_overlap: str | None
    caption: str | None
    caption_model: str | None
    caption_prompt: str
    caption_decoding: str
    split: str
    decision: str
    reasons: list[str]
    stage_versions: dict[str, str]
    bytes_uri: str
    sha256: str
    run_id: str


class Scan(NamedTuple):
    """What was seen of one source, frame by frame.

    `faces` [(seconds, [[x0, y0, x1, y1], ...]), ...] in pixels, for each frame that faces were looked for in; `motion`
    of every frame but the first, the largest change of a cell of a 32x32 grid of luma (0..255) since the frame before.
    `points`, one list per entry of `faces`, has the five keypoints [x, y, ...] of each face; None from a detector that
    has none to give.
    """

    faces: list[tuple[float, list[list[float]]]]
    motion: list[int]
    points: list[list[list[float]]] | None = None

    def with_points(self) -> list[tuple[float, list[list[float]]]]:
        """`faces`, the keypoints of each after its box where there are any."""
        if self.points is None:
            return self.faces
        return [
            (time, [box + five for box, five in zip(boxes, points, strict=True)])
            for (time, boxes), points in zip(self.faces, self.points, strict=True)
        ]
