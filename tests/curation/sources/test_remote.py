"""YouTube ids out of the addresses people paste."""

import pytest

from curation.sources.remote import youtube_id


@pytest.mark.parametrize(
    "url, name",
    [
        ("https://www.youtube.com/watch?v=CPCoMyuBRM0", "CPCoMyuBRM0"),
        ("https://www.youtube.com/watch?v=uBWJJvynXpA&t=6s", "uBWJJvynXpA"),
        ("https://m.youtube.com/watch?t=6s&v=-_WJJvynXpA", "-_WJJvynXpA"),
        ("https://youtu.be/_BWJJvynXpA?si=x", "_BWJJvynXpA"),
        ("https://www.youtube.com/shorts/uBWJJvynXpA", "uBWJJvynXpA"),
        ("https://www.youtube.com/embed/uBWJJvynXpA", "uBWJJvynXpA"),
        ("https://www.youtube.com/watch?v=tooshort", None),
        ("https://www.youtube.com/playlist?list=PL123", None),
        ("https://host.test/watch?v=uBWJJvynXpA", None),
    ],
)
def test_the_id_is_found_whatever_else_is_there(url: str, name: str | None) -> None:
    assert youtube_id(url) == name
