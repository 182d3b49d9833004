"""Configuration of curation: the recipe's `curation:` section."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from common.constants import Reader
from common.errors import InputError
from common.ranges import Correlation, Count, Percent, Positive, Share, Signed
from common.runs import plain
from perception.config import Variant

ROLES: Mapping[str, str] = {
    "face_detector": "OpenCV's frontal-face cascade looks for faces",
    "speech_detector": "energy and pitch tell speech from other sounds",
    "shot_detector": "dissolves and fades between shots are mostly missed",
    "text_detector": "still strokes set in a line count as burned-in text",
    "active_speaker": "lips and audio alone decide who of several people speaks",
    "sync_scorer": "clips have no Sync-C: sound that is late, early or another's stays",
    "pose": "no points of body and hands",
    "quality_scorer": "clips have no IQA: poor pictures stay",
    "captioner": "clips without a caption of their own get the recipe's",
}
"""Model roles that curation may use, and how a run differs without each."""

Shots = Literal["content", "transnet", "both"]
Required = Literal["sync_scorer", "quality_scorer", "captioner"]


@dataclass(frozen=True)
class SourcesConfig:
    """Source videos.

    Local: `kind` "folder", every video file below `path`; "list", `path` is a text file with one video per
    line, relative to the list. Remote: "urls", a text file with one address per line (https://, or s3:// and
    gs:// for object storage), optionally followed by an id; "avspeech", avspeech_train.csv or avspeech_test.csv;
    "hdtf", the folder of HDTF's text files; "hdtf100" and "hdtf400_15s", the test sets in it (see
    `curation.sources.hdtf`; cut them with cut.use_segments: exact), the first drawn with `seed`. In text files
    empty lines and lines that begin with # are skipped. `name` goes into the `source` field of the clips; empty
    means folder, urls, avspeech_train, avspeech_test or hdtf.
    """

    path: str = ""
    kind: Literal["folder", "list", "urls", "avspeech", "hdtf", "hdtf100", "hdtf400_15s"] = "folder"
    name: str = ""
    seed: int = 0


HOUR = 3600.0


@dataclass(frozen=True)
class EgressConfig:
    """One egress (network path to the sites) with its rate limits; each has one download worker.

    `proxy` (URL), `source_address` (a local IP address) and `cookies` (a file in Netscape format, which the site's
    responses update) define it; empty means this machine without an account. At most `per_hour` look-ups,
    `pause_seconds` (least, most) between two videos, `request_pause_seconds` between the requests of one look-up.
    Media are fetched at `max_bytes_per_second` at most (0: no limit); a transfer slower than `min_bytes_per_second` is
    aborted.
    """

    name: str = "here"
    proxy: str = ""
    cookies: str = ""
    source_address: str = ""
    per_hour: Positive = 300.0
    pause_seconds: tuple[float, float] = (2.0, 8.0)
    request_pause_seconds: float = 0.5
    max_bytes_per_second: int = 3_000_000
    min_bytes_per_second: int = 10_000

    def __post_init__(self) -> None:
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise InputError(f"an egress is named {self.name!r}: expected letters, digits, '-' and '_'.")
        if self.per_hour <= 0:
            raise InputError(f"egress {self.name}: per_hour is {self.per_hour}: expected a positive number.")
        if not 0 <= self.pause_seconds[0] <= self.pause_seconds[1]:
            raise InputError(f"egress {self.name}: pause_seconds is {self.pause_seconds}: expected 0 <= least <= most.")


@dataclass(frozen=True)
class CooldownConfig:
    """Back-off of an egress after a bot check or a rate limit: it pauses for `cooldown_seconds`, doubled after each
    further refusal up to `max_cooldown_seconds`; after `give_up_after` refusals in a row it leaves the queue to the
    other egresses or to the next run."""

    cooldown_seconds: float = 1800.0
    max_cooldown_seconds: float = 6 * HOUR
    give_up_after: Count = 6


@dataclass(frozen=True)
class DownloadConfig:
    """Downloads: formats, egresses, retries.

    Files go to `folder` (empty: the run's cache) as `<video id>.<suffix>`; files that exist there are used. The best
    resolution up to `max_height` pixels is chosen, of equals the one in `prefer_codec`. `sweep` looks each video up
    before it is fetched; look-ups count against the rate limits (`sweep_per_hour` replaces their rate for it, 0
    keeps it), so for a forecast a sample is enough (`curation.reporting.plan`). `canary`, the address of a video that
    is known to be there, is looked up before an egress resumes after a cooldown; without one the next video serves for
    that. Network errors are tried `network_tries` times, with a back-off from `backoff_seconds` that doubles.
    Downloads are held back while `most_ahead_gb` of videos wait for their curation; 0 = no limit.
    `allow_private_addresses` lets addresses, and what they redirect to, lead to this machine, to private networks and
    to schemes such as file:// and hdfs://; only for lists you wrote yourself.
    """

    folder: str = ""
    egress: tuple[EgressConfig, ...] = (EgressConfig(),)
    cooldown: CooldownConfig = CooldownConfig()
    canary: str = ""
    max_height: Count = 720
    prefer_codec: Literal["h264", "vp9", "av1"] = "h264"
    sweep: bool = False
    sweep_per_hour: float = 0.0
    network_tries: Count = 4
    backoff_seconds: float = 5.0
    most_ahead_gb: float = 200.0
    allow_private_addresses: bool = False

    def __post_init__(self) -> None:
        names = [egress.name for egress in self.egress]
        if not names or len(set(names)) < len(names):
            raise InputError(f"egress names are {names}: expected at least one, each with its own name.")
        if self.network_tries < 1 or self.max_height < 1:
            raise InputError(f"network_tries {self.network_tries}, max_height {self.max_height}: expected 1 or more.")

    @property
    def format_settings(self) -> dict[str, Any]:
        """The settings that determine which bytes are fetched; the fingerprint of the download stage holds them."""
        return {"max_height": self.max_height, "prefer_codec": self.prefer_codec}


@dataclass(frozen=True)
class ScanConfig:
    """`shots` says what finds where one shot ends and the next begins: "content", changes between frames; "transnet",
    the network of the role shot_detector, which also sees dissolves and fades (22 ms CPU a frame), from a probability
    of `transition_score` on; "both", either. `shot_threshold`, `shot_min_content`: as PySceneDetect's adaptive detector
    has them (ratio of a change to those around it; least change). `min_shot` frames between two cuts; `face_interval`
    seconds between the frames that faces are looked for in; `reader` decodes."""

    shots: Shots = "content"
    transition_score: Share = 0.3
    shot_threshold: Positive = 3.0
    shot_min_content: float = 15.0
    min_shot: Count = 15
    face_interval: Positive = 0.2
    reader: Reader = "pyav"


@dataclass(frozen=True)
class CutConfig:
    """`max_seconds`: a longer shot is cut into equal pieces. `min_seconds`: a shorter one stays a row without a file
    or scores; keep it at or below `select.min_seconds`.

    `use_segments`, where a data set names spans of the video: "expand" keeps the pieces of shots that such a span
    touches (OmniAvatar's clips reach 20 s, AVSpeech's spans 10 s), "exact" cuts the spans themselves, "ignore" takes
    all shots. Where the data set names a square to crop, the clip is that, `crop_side` px wide."""

    min_seconds: float = 2.0
    max_seconds: float = 20.0
    use_segments: Literal["expand", "exact", "ignore"] = "expand"
    crop_side: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.min_seconds <= self.max_seconds / 2:
            raise InputError(
                f"cut.min_seconds {self.min_seconds} and cut.max_seconds {self.max_seconds}: expected "
                "0 < min_seconds <= max_seconds / 2, or pieces of a long shot would be too short."
            )
        if self.crop_side < 2 or self.crop_side % 2:
            raise InputError(f"cut.crop_side {self.crop_side}: expected an even number of pixels, such as 512.")


@dataclass(frozen=True)
class PeopleConfig:
    """`min_overlap` of boxes in successive looks, `max_gap` seconds without a detection inside a track; a face counts
    as a person when its track spans `min_share` of the clip and was seen in `min_density` of the looks meanwhile: a
    pattern that passes for a face now and then is none."""

    min_overlap: Share = 0.4
    max_gap: float = 1.0
    min_share: Share = 0.5
    min_density: Share = 0.5


@dataclass(frozen=True)
class SpeakerConfig:
    """What counts as evidence that a face speaks: `min_speaking_pct` of its frames by the active-speaker network,
    a SyncNet confidence of `min_sync_c`, or lips that move by `min_lip_motion` (see `perception.sync.lips`), which real
    ones do `lip_lead` frames before they are heard."""

    min_speaking_pct: Percent = 25.0
    min_sync_c: Signed = 3.0
    min_lip_motion: float = 0.4
    lip_lead: int = 3


@dataclass(frozen=True)
class SyncConfig:
    """`max_shift` frames searched each way; an offset of at most `max_correction` frames is put right when the
    confidence is at least `min_correction_c`."""

    max_shift: Count = 15
    max_correction: int = 10
    min_correction_c: Signed = 3.0


@dataclass(frozen=True)
class FramingConfig:
    """Without body points: "semi" when `semi_from` heights of the face fit below the chin, "full" from `full_from`
    (a standing adult has about eight). With them, looked for `frames_per_second` times a second: a joint counts
    from a score of `min_score`, and decides when it is seen in `min_share` of the frames.
    """

    semi_from: float = 1.8
    full_from: float = 6.5
    frames_per_second: Positive = 2.0
    min_score: Share = 0.3
    min_share: Share = 0.5


@dataclass(frozen=True)
class TextConfig:
    """A frame is looked at every `interval` seconds. Without a text detector it is compared with one `seconds_apart`:
    text does not move in between, people do."""

    interval: Positive = 1.0
    seconds_apart: Positive = 0.4


@dataclass(frozen=True)
class QualityConfig:
    """`frames_per_second` rated, each as a whole: a face crop scores far lower (paper, table 1).

    `frames` "even" takes just these, as Q-Align's authors do; "key" takes the stored key frame nearest to each, which
    costs a fraction of the decoding. `variant` names one of the three prompts in use; their numbers differ.
    """

    frames_per_second: Positive = 1.0
    frames: Literal["even", "key"] = "even"
    variant: Variant = "scorer"


PROMPT = (
    "These are frames of one video of a talking person, in order. Describe the video in one line of three parts joined "
    "by ' - ': first what the first frame shows (the person, clothes, pose, framing), then how the person behaves "
    "(expression, gestures, movement), then the background. Name only what can be seen."
)


@dataclass(frozen=True)
class CaptionConfig:
    """`default` describes every clip that no caption came with while no captioner is set; empty leaves such clips
    pending on a captioner. The captioner sees `frames` frames spread over the clip and answers `prompt`, which asks
    for OmniAvatar's order (first frame, behaviour, background), greedily in at most `max_tokens` tokens."""

    default: str = "A person is talking to the camera."
    frames: Count = 3
    prompt: str = PROMPT
    max_tokens: Count = 160


@dataclass(frozen=True)
class DuplicatesConfig:
    """Two clips are duplicates when their lengths differ by at most `max_seconds_apart`, at most `max_different_bits`
    of 192 image-hash bits differ (a crop to 95 % anywhere in the frame changes up to 40) and their loudness curves
    correlate by `min_audio_correlation`: different clips may look alike or sound alike, but rarely both. Clips that
    were cut differently overlap when two of their frames differ in at most `max_overlap_bits` of 64 and `min_overlap`
    seconds of audio correlate by `min_overlap_correlation` (lower: a shift by a fraction of 0.1 s blurs the curve)."""

    max_different_bits: int = 40
    min_audio_correlation: Correlation = 0.97
    max_seconds_apart: float = 0.2
    max_overlap_bits: int = 12
    min_overlap: Positive = 3.0
    min_overlap_correlation: Correlation = 0.8


@dataclass(frozen=True)
class SelectConfig:
    """Thresholds; a clip is refused when it is below a `min_` or above a `max_`.

    `min_sync_c`, `min_iqa` (on 1 to 5; the paper's "40" of 0..100 is 2.6) and 3 to 20 s are OmniAvatar's; `max_offset`
    is the largest remaining audio offset, `max_drift` the largest change of the offset from the first third to the
    last, in frames. At `chance_sync_c` and below no shift fits better than another does by chance. Lips that move less
    than `min_lip_motion` are still (`perception.sync.lips`); `min_speaking_pct` of its frames the face must speak by
    the active-speaker network. `max_xy_distance` (of the frame) is what the speaking face may be away from the data
    set's point. `min_side` and `min_face_px` in pixels of the source. Above `max_static_pct` a video counts as still;
    frames that do change must come at `min_fps`. `min_speech_pct` of the time somebody speaks. Music: a voice detector
    is sure of less than `min_voice_certainty` of what it takes for speech, or tones held at one pitch make up more than
    `max_music_ratio` of the energy. Burned-in text: more than `max_text_area_pct` of the image by its strokes, or
    `max_text_boxes_pct` by the boxes of a text detector, which are half as large again. `require`: roles without whose
    score a clip that nothing refuses stays pending; with none of them what is there decides. `reject_generated`: videos
    that say of themselves that a model made them are refused, for a model trained on them learns the faults of others.
    `test_share` of the videos, drawn by a hash of their id and `split_seed`, become the test split with all clips.
    """

    min_seconds: float = 3.0
    max_seconds: Positive = 20.0
    min_sync_c: Signed = 4.0
    chance_sync_c: Signed = 2.0
    max_offset: int = 1
    max_drift: int = 1
    min_lip_motion: float = 0.4
    min_speaking_pct: Percent = 25.0
    max_xy_distance: float = 0.15
    min_iqa: float = 2.6
    max_faces: int = 1
    min_face_px: float = 32.0
    min_side: int = 256
    min_speech_pct: Percent = 30.0
    min_voice_certainty: Share = 0.75
    max_music_ratio: float = 0.36
    max_text_area_pct: Percent = 0.7
    max_text_boxes_pct: Percent = 1.0
    max_static_pct: Percent = 80.0
    min_fps: float = 20.0
    reject_generated: bool = True
    require: tuple[Required, ...] = ("sync_scorer", "quality_scorer", "captioner")
    test_share: Share = 0.1
    split_seed: int = 0


@dataclass(frozen=True)
class CurationConfig:
    """The `curation:` section: one object per stage.

    `keep_out`: fingerprints of clips that must not be trained on, as `report/test_fingerprints.jsonl` of another run.
    `test_list`: a test split drawn by `curation.decide.split`; without one the split is `select`'s.
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
        """Settings that determine which clips exist and how they are cut: all but file locations and downloads."""
        return {name: value for name, value in plain(self).items() if name not in ("download", "keep_out", "test_list")}
