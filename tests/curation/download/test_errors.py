"""Every message sites are known to fail with ends in its class, and every class in its rule."""

import pytest

from curation.download.errors import FailureClass, Rule, classify

K = FailureClass
MESSAGES = [
    ("[youtube] abc: Private video. Sign in if you've been granted access to this video", K.PRIVATE),
    ("[youtube] abc: Video unavailable", K.REMOVED),
    ("[youtube] abc: Video unavailable. This video has been removed by the uploader", K.REMOVED),
    ("Video unavailable. This video is no longer available because the YouTube account associated with this video has "
     "been terminated.", K.REMOVED),
    ("[youtube] abc: This video has been removed for violating YouTube's Terms of Service", K.POLICY),
    ("[youtube] abc: This video has been removed for violating YouTube’s policy on hate speech.", K.POLICY),
    ("Video unavailable. This video is no longer available due to a copyright claim by X", K.POLICY),
    ("[youtube] abc: The uploader has not made this video available in your country\nYou might want to use a VPN or a "
     "proxy server (with --proxy) to workaround.", K.GEO),
    ("Video unavailable. It contains content from X, who has blocked it in your country on copyright grounds", K.GEO),
    ("[x] This video is not available from your location due to geo restriction", K.GEO),
    ("[youtube] abc: Sign in to confirm your age. This video may be inappropriate for some users.", K.AGE),
    ("[youtube] abc: This video is age-restricted and only available on YouTube", K.AGE),
    ("Join this channel to get access to members-only content like this video", K.MEMBERS),
    ("This video is available to this channel's members on level: Gold", K.MEMBERS),
    ("[youtube] abc: Premieres in 3 hours", K.NOT_READY),
    ("[youtube] abc: This live event will begin in 25 minutes.", K.NOT_READY),
    ("[youtube] abc: Requested format is not available. Use --list-formats for a list", K.NO_FORMAT),
    ("[generic] No video formats found!; please report this issue", K.NO_FORMAT),
    ("[youtube] abc: Sign in to confirm you’re not a bot. Use --cookies-from-browser or --cookies", K.BOT_CHECK),
    ("[youtube] abc: Sign in to confirm you're not a bot. This helps protect our community.", K.BOT_CHECK),
    ("Video unavailable. YouTube is requiring a captcha challenge before playback", K.BOT_CHECK),
    ("Unable to download webpage: HTTP Error 429: Too Many Requests (caused by <HTTPError 429>)", K.RATE_LIMIT),
    ("You've hit the request limit", K.RATE_LIMIT),
    ("[youtube] abc: Video unavailable. This content isn't available, try again later. The current session has been "
     "rate-limited by YouTube for up to an hour.", K.RATE_LIMIT),
    ("unable to download video data: HTTP Error 403: Forbidden", K.FORBIDDEN),
    ("HTTP Error 404: Not Found", K.REMOVED),
    ("HTTP Error 410: Gone", K.REMOVED),
    ("Unable to download webpage: HTTP Error 503: Service Unavailable", K.NETWORK),
    ("Got error: The read operation timed out. Giving up after 10 retries", K.NETWORK),
    ("[Errno 104] Connection reset by peer", K.NETWORK),
    ("IncompleteRead(3000 bytes read, 31506 more expected)", K.NETWORK),
    ("Failed to resolve 'host.test' ([Errno -2] Name or service not known)", K.NETWORK),
    ("The download speed is below throttle limit", K.NETWORK),
    ("unable to write data: [Errno 28] No space left on device", K.LOCAL),
    ("unable to open for writing: [Errno 13] Permission denied: 'a.mp4'", K.LOCAL),
    ("Postprocessing: ffmpeg exited with code 1", K.LOCAL),
    ("Unsupported URL: http://host.test/copyright/premium/captcha", K.NO_MEDIA),
    ("[drm] This video is DRM protected", K.POLICY),
    ("'NoneType' object is not subscriptable", K.UNKNOWN),
]  # fmt: skip


@pytest.mark.parametrize("message, kind", MESSAGES)
def test_messages_end_in_their_class(message: str, kind: FailureClass) -> None:
    assert classify(message) is kind
    assert classify(message.upper()) is kind


def test_every_class_but_the_check_of_the_file_has_a_message_and_all_have_a_rule() -> None:
    assert {kind for _, kind in MESSAGES} == set(FailureClass) - {K.POST_CHECK, K.PRIVATE_ADDRESS}
    assert {kind.rule for kind in FailureClass} == set(Rule)
    assert {kind for kind in FailureClass if kind.rule is Rule.COOL_DOWN} == {K.BOT_CHECK, K.RATE_LIMIT}
