"""Classification of download failures, with the rule and the advice that follow from each class.

Sites report errors as prose only, so a class is recognised by fragments of the message. The fragments are taken from
yt-dlp and YouTube; the first class that matches wins, so the order below matters.
"""

import re
from enum import StrEnum


class Rule(StrEnum):
    """Handling of a failure."""

    NEVER = "never"  # rejected
    LATER = "later"  # pending: the next run tries again
    OTHER_EGRESS = "other egress"  # pending: only another egress can help
    COOL_DOWN = "cool down"  # the egress cools down, the video goes back to the queue
    REFRESH = "refresh"  # look the video up once more, then failed
    BACK_OFF = "back off"  # retry after growing pauses, then failed
    AGAIN = "again"  # fetch once more from scratch, then rejected
    MEND = "mend"  # failed: needs a manual fix


class FailureClass(StrEnum):
    """Class of a failure; `rule` is its handling, `advice` what a user can do."""

    BOT_CHECK = "bot_check"
    RATE_LIMIT = "rate_limit"
    AGE = "age_restricted"
    MEMBERS = "members_only"
    PRIVATE = "private"
    GEO = "geo_blocked"
    POLICY = "policy"
    NOT_READY = "not_ready"
    REMOVED = "removed"
    NO_FORMAT = "no_format"
    NO_MEDIA = "no_media"
    FORBIDDEN = "forbidden"
    PRIVATE_ADDRESS = "private_address"
    LOCAL = "local"
    NETWORK = "network"
    POST_CHECK = "post_check"
    UNKNOWN = "unknown"

    @property
    def rule(self) -> Rule:
        """Handling of this class."""
        return RULES[self]

    @property
    def advice(self) -> str:
        """A sentence to append to the message of a failure, or ""."""
        return ADVICE.get(self, "")


RULES = {
    FailureClass.BOT_CHECK: Rule.COOL_DOWN,
    FailureClass.RATE_LIMIT: Rule.COOL_DOWN,
    FailureClass.AGE: Rule.NEVER,
    FailureClass.MEMBERS: Rule.NEVER,
    FailureClass.PRIVATE: Rule.NEVER,
    FailureClass.GEO: Rule.OTHER_EGRESS,
    FailureClass.POLICY: Rule.NEVER,
    FailureClass.NOT_READY: Rule.LATER,
    FailureClass.REMOVED: Rule.NEVER,
    FailureClass.NO_FORMAT: Rule.REFRESH,
    FailureClass.NO_MEDIA: Rule.NEVER,
    FailureClass.FORBIDDEN: Rule.REFRESH,
    FailureClass.PRIVATE_ADDRESS: Rule.MEND,
    FailureClass.LOCAL: Rule.MEND,
    FailureClass.NETWORK: Rule.BACK_OFF,
    FailureClass.POST_CHECK: Rule.AGAIN,
    FailureClass.UNKNOWN: Rule.MEND,
}
ADVICE = {
    FailureClass.GEO: "Add an egress in another country to download.egress.",
    FailureClass.FORBIDDEN: "Upgrade yt-dlp: sites change, and releases age within weeks.",
    FailureClass.NO_FORMAT: "Upgrade yt-dlp and check that a JavaScript runtime (deno or node) is installed.",
    FailureClass.PRIVATE_ADDRESS: "If it is yours, set curation.download.allow_private_addresses=true.",
    FailureClass.LOCAL: "Fix what the message names and run again.",
}

# Lower case, straight apostrophes.
FRAGMENTS: tuple[tuple[FailureClass, tuple[str, ...]], ...] = (
    (FailureClass.BOT_CHECK, ("confirm you're not a bot", "captcha", "unusual traffic")),
    (
        FailureClass.RATE_LIMIT,
        ("http error 429", "too many requests", "hit the request limit", "try again later", "rate-limited"),
    ),
    (FailureClass.AGE, ("confirm your age", "age-restricted", "inappropriate for some users", "age verification")),
    (
        FailureClass.MEMBERS,
        ("members-only", "join this channel", "available to this channel's members", "requires payment", "premium"),
    ),
    (FailureClass.PRIVATE, ("private video", "video is private")),
    (
        FailureClass.GEO,
        ("in your country", "in your location", "geo restrict", "geo-restrict", "from your location", "in your region"),
    ),
    (FailureClass.POLICY, ("violating youtube's", "copyright", "violates youtube's", "drm protected")),
    (
        FailureClass.NOT_READY,
        ("premieres in", "premiere will begin", "live event", "live stream is offline", "is being processed"),
    ),
    (FailureClass.FORBIDDEN, ("http error 403",)),
    (
        FailureClass.REMOVED,
        ("video unavailable", "has been removed", "account associated with this video", "account has been terminated",
         "is no longer available", "does not exist", "http error 404", "http error 410", "video is not available"),
    ),
    (FailureClass.NO_FORMAT, ("requested format is not available", "no video formats found", "only images are")),
    (FailureClass.NO_MEDIA, ("unsupported url", "unusual and will be skipped", "is not a valid url")),
    (
        FailureClass.LOCAL,
        ("no space left", "disk quota exceeded", "permission denied", "read-only file system", "unable to open for "
         "writing", "unable to write data", "ffmpeg", "postprocessing", "too many open files", "unable to rename"),
    ),
    (
        FailureClass.NETWORK,
        ("timed out", "timeout", "connection reset", "connection aborted", "connection refused", "connection broken",
         "incompleteread", "incomplete read", "bytes read", "remote end closed", "failed to resolve", "name resolution",
         "name or service not known", "network is unreachable", "no route to host", "http error 5", "ssl",
         "eof occurred", "did not get any data blocks", "below throttle limit", "content too short", "bytes, expected",
         "proxy", "broken pipe", "unable to connect", "transporterror"),
    ),
)  # fmt: skip


class Failure(Exception):
    """A failed attempt at a video. The text is that of the site or library; `reason` is one word for the ledger, more
    specific than the class where possible."""

    def __init__(self, kind: FailureClass, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.kind, self.reason = kind, reason or kind.value


def classify(message: str) -> FailureClass:
    """The class of an error message, UNKNOWN where none is recognised."""
    text = re.sub("[\u2018\u2019`]", "'", " ".join(message.lower().split()))
    text = re.sub(r"https?://\S+", "", text)  # a URL may contain any word
    found = (kind for kind, fragments in FRAGMENTS if any(fragment in text for fragment in fragments))
    return next(found, FailureClass.UNKNOWN)
