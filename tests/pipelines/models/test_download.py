import hashlib
import os
import random
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import pytest

from common.untrusted.addresses import AddressError
from pipelines.models.download import DownloadError, RemoteFile, RetryPolicy, _check_redirect, download

CONTENT = random.Random(0).randbytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
QUICK = RetryPolicy(attempts=3, pause=0.01)


@pytest.fixture
def target(web, tmp_path):
    web.files["w.bin"] = CONTENT
    return tmp_path / "deep" / "w.bin"


def _get(web, target, **known):
    return download(RemoteFile(web.url("w.bin"), **known), target, retries=QUICK)


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(web, target):
    assert _get(web, target, bytes=len(CONTENT), sha256_starts=DIGEST) == DIGEST
    assert target.read_bytes() == CONTENT and os.listdir(target.parent) == ["w.bin"]


def test_resets_in_the_middle_are_gone_on_with_by_range(web, target):
    web.mishaps["w.bin"].extend(["cut 100000", "cut 50000", "cut 0"])
    heard = []
    download(RemoteFile(web.url("w.bin")), target, heard.append, QUICK)
    assert target.read_bytes() == CONTENT and sum(heard) == len(CONTENT)
    assert web.ranges("w.bin") == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]


def test_a_connection_torn_down_is_gone_on_with(web, target):
    web.mishaps["w.bin"].extend(["reset 100000", "reset 50000"])
    assert _get(web, target) == DIGEST and target.read_bytes() == CONTENT


def test_a_later_call_goes_on_with_what_an_earlier_one_left(web, target):
    web.mishaps["w.bin"].extend(["cut 200000", "503", "503", "503"])
    with pytest.raises(DownloadError, match="3 times in a row .* HTTP 503. 200000 bytes are kept"):
        _get(web, target)
    assert not target.exists()
    heard = []
    assert download(RemoteFile(web.url("w.bin")), target, heard.append, QUICK) == DIGEST
    assert web.ranges("w.bin")[-1] == "bytes=200000-" and heard[0] == 200_000


def test_a_part_of_a_file_that_has_changed_since_is_thrown_away(web, target):
    web.mishaps["w.bin"].extend(["cut 200000", "503", "503", "503"])
    with pytest.raises(DownloadError):
        _get(web, target)
    web.files["w.bin"] = CONTENT[::-1]
    _get(web, target)
    assert target.read_bytes() == CONTENT[::-1]


def test_a_part_that_is_already_whole_is_only_renamed(web, target):
    target.parent.mkdir()
    target.with_name("w.bin.part").write_bytes(CONTENT)
    assert _get(web, target, sha256_starts=DIGEST) == DIGEST  # HTTP 416
    target.rename(target.with_name("w.bin.part"))
    assert _get(web, target, bytes=len(CONTENT)) == DIGEST and len(web.requests) == 1


def test_a_server_without_ranges_sends_it_again_from_the_start(web, target):
    web.mishaps["w.bin"].extend(["cut 100000", "whole"])
    assert _get(web, target) == DIGEST and target.read_bytes() == CONTENT


@pytest.mark.parametrize("by_date", [False, True])
def test_a_busy_server_is_left_alone_as_long_as_it_asks(web, target, by_date, monkeypatch):
    wait = format_datetime(datetime.now(UTC) + timedelta(seconds=90)) if by_date else "1"
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    web.mishaps["w.bin"].append(f"429 {wait}")
    assert _get(web, target) == DIGEST
    assert len(waits) == 1 and 1 <= waits[0] <= 90 and (waits[0] > 1) == by_date


def test_a_server_that_asks_for_an_hour_is_not_waited_for(web, target):
    web.mishaps["w.bin"].append("429 3600")
    with pytest.raises(DownloadError, match="rate limited for 3600 s"):
        _get(web, target)


@pytest.mark.parametrize(
    ("status", "words"), [("404", "has no such file"), ("403", "forbids it"), ("401", "requires authentication")]
)
def test_a_refusal_is_stated_at_once(web, target, status, words):
    web.mishaps["w.bin"].append(status)
    with pytest.raises(DownloadError, match=f"{words} .HTTP {status}"):
        _get(web, target)
    assert len(web.requests) == 1


def test_an_address_where_nobody_answers_is_named_with_the_reason(target):
    with pytest.raises(DownloadError, match=r"127.0.0.1:9/w.bin cannot be fetched now: 3 times .*ConnectError"):
        download(RemoteFile("http://127.0.0.1:9/w.bin"), target, retries=QUICK)


@pytest.mark.parametrize(
    ("known", "mishap", "words"),
    [
        ({"bytes": 300_001}, "", "has 300000 bytes, expected 300001"),
        ({"bytes": 300_000}, "short 1000", "has 1000 bytes, expected 300000"),
        ({"sha256_starts": "00ff"}, "", f"SHA-256 {DIGEST}, expected 00ff"),
    ],
)
def test_another_file_than_expected_is_refused_and_not_kept(web, target, known, mishap, words):
    web.mishaps["w.bin"].append(mishap)
    with pytest.raises(DownloadError, match=words):
        _get(web, target, **known)
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("file:///etc/passwd", "no address of the web"),
        ("ftp://example.com/w", "no address of the web"),
        ("data:text/plain,hi", "no address of the web"),
        ("http://169.254.169.254/latest/meta-data/", "leads to 169.254.169.254"),
        ("http://10.0.0.1/w", "leads to 10.0.0.1"),
        ("http://2130706433:1/w", "leads to 2130706433"),
        ("http://[::ffff:127.0.0.1]:1/w", "this machine or a private network"),
        ("http://localhost:1/w", "leads to localhost"),
        ("http://0.0.0.0:1/w", "this machine or a private network"),
    ],
)
def test_a_redirect_to_elsewhere_is_refused(location, said):
    request = httpx2.Request("GET", "http://127.0.0.1:2/w")
    answer = httpx2.Response(302, headers={"Location": location}, request=request)
    with pytest.raises(AddressError, match=said):
        _check_redirect(request.url, answer)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://169.254.169.254/latest/meta-data/"])
def test_a_refused_redirect_ends_the_download_at_once(web, target, location):
    web.files["w.bin"] = location
    with pytest.raises(DownloadError, match="its server redirects elsewhere"):
        _get(web, target)
    assert not target.exists() and len(web.requests) == 1


def test_a_name_that_leads_to_this_machine_is_not_followed(web, target, monkeypatch):
    real = socket.getaddrinfo
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *rest, **more: real("127.0.0.1", *rest, **more))
    web.files["w.bin"] = "http://innocent.example:1/w"
    with pytest.raises(DownloadError, match="A connection to 127.0.0.1, .* is refused"):
        _get(web, target)


def test_redirects_stay_encrypted():
    request = httpx2.Request("GET", "https://example.com/w")
    answer = httpx2.Response(302, headers={"Location": "http://example.com/w"}, request=request)
    with pytest.raises(AddressError, match="not encrypted any more"):
        _check_redirect(request.url, answer)
    answer.headers["Location"] = "https://cdn.example.com/w"
    _check_redirect(request.url, answer)


def test_a_redirect_within_the_server_is_followed_and_a_loop_ends(web, target):
    web.files["a"], web.files["b"] = "w.bin", "b"
    assert download(RemoteFile(web.url("a")), target, retries=QUICK) == DIGEST
    with pytest.raises(DownloadError, match="maximum allowed redirects"):
        download(RemoteFile(web.url("b")), target, retries=QUICK)


@pytest.mark.parametrize("known", [{"most": 299_999}])
def test_more_bytes_than_a_file_can_have_are_not_kept(web, target, known):
    with pytest.raises(DownloadError, match="sends more than .* bytes: it is another file"):
        _get(web, target, **known)
    assert os.listdir(target.parent) == []
    assert _get(web, target, most=300_000) == DIGEST
