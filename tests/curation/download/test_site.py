"""Streams of a local site: which are chosen, that they come whole, and that joining moves nothing."""

from fractions import Fraction
from pathlib import Path

import av
import pytest

from common.runs import DiskFullError
from curation.config import EgressConfig
from curation.download.errors import Failure, FailureClass
from curation.download.site import Site, check_usable, describe
from tests.curation.conftest import draw_talk, write_talk
from tests.curation.web import serve

QUICK = EgressConfig(per_hour=1e9, pause_seconds=(0, 0), request_pause_seconds=0, max_bytes_per_second=0)


def make_site(folder: Path, max_height: int = 720, egress: EgressConfig = QUICK) -> Site:
    """A site that gives up soon."""
    return Site(egress, folder / "cache", max_height, "h264", tries=2, backoff=0.01, allow_private=True)


def stream_alone(source: Path, kind: str, target: Path, late: float) -> Path:
    """One stream of a file as a file of its own, its packets `late` seconds later."""
    with av.open(str(source)) as container, av.open(str(target), "w", format="mp4") as alone:
        stream = container.streams.get({kind: 0})[0]
        copy = alone.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                ticks = round(Fraction(late) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, copy
                alone.mux(packet)
    return target


def packets(file: Path, kind: str) -> list[tuple[Fraction, Fraction, bytes]]:
    """Decoding time, presentation time and bytes of every packet of one stream."""
    with av.open(str(file)) as container:
        stream = container.streams.get({kind: 0})[0]
        return [
            (packet.dts * packet.time_base, packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(stream)
            if packet.dts is not None and packet.pts is not None
        ]


def test_streams_that_are_apart_are_joined_with_their_times(tmp_path: Path) -> None:
    whole = write_talk(tmp_path / "whole.mp4", draw_talk(1, 2.0))
    pictures = stream_alone(whole, "video", tmp_path / "pictures.mp4", 0.0)
    sound = stream_alone(whole, "audio", tmp_path / "sound.m4a", 0.25)
    with serve() as web:
        url = web.add_dash("d", {360: pictures.read_bytes(), 720: b"", 1080: b""}, sound.read_bytes())
        site = make_site(tmp_path, max_height=480)
        info = site.look_up(url)
        file = site.fetch(info, tmp_path / "out", "-name")
        assert [path for path, _, _ in web.asked] == ["/d.mpd", "/media/d-360.mp4", "/media/d-sound.m4a"]
    assert describe(info)["format_id"] == "360+sound" and describe(info)["codecs"] == ["avc1.64001f", "mp4a.40.2"]
    assert file.name == "-name.joined.mp4" and [path.name for path in (tmp_path / "out").iterdir()] == [file.name]
    assert packets(file, "video") == packets(pictures, "video")
    assert packets(file, "audio") == packets(sound, "audio") and packets(sound, "audio")[0][1] > Fraction(1, 10)


@pytest.mark.parametrize("most, chosen", [(360, "360"), (719, "360"), (720, "720"), (4000, "1080"), (100, "360")])
def test_the_best_picture_within_the_height_is_chosen(tmp_path: Path, most: int, chosen: str) -> None:
    with serve() as web:
        url = web.add_dash("d", {360: b"", 720: b"", 1080: b""}, b"")
        assert describe(make_site(tmp_path, most).look_up(url))["format_id"] == f"{chosen}+sound"


def test_a_stream_that_cannot_be_joined_begins_from_nothing(tmp_path: Path) -> None:
    with serve() as web:
        site = make_site(tmp_path)
        info = site.look_up(web.add_dash("d", {360: b"no video at all"}, b"no sound either"))
        with pytest.raises(Failure, match="cannot be read") as caught:
            site.fetch(info, tmp_path / "out", "d")
    assert caught.value.kind is FailureClass.POST_CHECK and not list((tmp_path / "out").iterdir())


def test_an_exit_goes_its_own_way(tmp_path: Path) -> None:
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\nvideos.test\tFALSE\t/\tFALSE\t0\tname\tvalue\n")
    with serve() as web:
        web.add_video("v", b"")
        egress = EgressConfig(proxy=web.address, cookies=str(cookies), source_address="127.0.0.3")
        # Only through the proxy is there such a host.
        assert (
            make_site(tmp_path, egress=egress).look_up("http://videos.test/watch/v")["url"]
            == "http://videos.test/media/v.mp4"
        )
        assert set(web.clients) == {"127.0.0.3"} and set(web.cookies) == {"name=value"}
        with pytest.raises(Failure) as caught:
            make_site(tmp_path).look_up("http://127.0.0.1:9/watch/v")
        assert caught.value.kind is FailureClass.NETWORK


def test_cookies_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="The cookies nowhere.txt of egress here do not exist"):
        make_site(tmp_path, egress=EgressConfig(cookies="nowhere.txt"))


def test_a_full_disk_is_said_and_not_taken_for_the_videos_fault(tmp_path: Path) -> None:
    part = tmp_path / "out" / "v.f0.mp4.part"
    part.parent.mkdir()
    part.symlink_to("/dev/full")
    with serve() as web:
        site = make_site(tmp_path)
        info = site.look_up(web.add_video("v", bytes(100_000)))
        with pytest.raises(DiskFullError):
            site.fetch(info, part.parent, "v")


def test_a_page_with_several_videos_is_refused(tmp_path: Path) -> None:
    with serve() as web:
        videos = "".join(f'<video><source src="/media/{name}.mp4" type="video/mp4"></video>' for name in "ab")
        web.bodies["/list"] = ("text/html", f"<html><title>list</title>{videos}</html>".encode())
        with pytest.raises(Failure, match="a list of videos") as caught:
            make_site(tmp_path).look_up(f"{web.address}/list")
    assert caught.value.kind is FailureClass.NO_MEDIA


@pytest.mark.parametrize(
    "info, kind, reason",
    [
        ({"live_status": "is_upcoming"}, FailureClass.NOT_READY, "not_ready"),
        ({"live_status": "post_live"}, FailureClass.NOT_READY, "not_ready"),
        ({"vcodec": "h264", "acodec": "none"}, FailureClass.NO_MEDIA, "no_audio"),
    ],
)
def test_what_is_of_no_use_is_refused_before_it_is_fetched(
    info: dict[str, str], kind: FailureClass, reason: str
) -> None:
    with pytest.raises(Failure) as caught:
        check_usable("https://host.test/v", info)
    assert (caught.value.kind, caught.value.reason) == (kind, reason)
    check_usable("https://host.test/v", {"live_status": "was_live", "requested_formats": [{"acodec": "none"}, {}]})


def test_private_addresses_need_the_switch(tmp_path: Path) -> None:
    """A list of strangers must not make this machine ask its own services, by name, by number or by a redirect."""
    site = Site(QUICK, tmp_path / "cache", 720, "h264", tries=2, backoff=0.01)
    with serve() as web:
        page = web.add_video("v", b"")
        port = page.split(":")[2].split("/")[0]
        for address in (
            page,
            f"http://localhost:{port}/watch/v",
            f"http://2130706433:{port}/watch/v",
            "file:///etc/hosts",
        ):
            with pytest.raises(Failure) as caught:
                site.look_up(address)
            assert caught.value.kind is FailureClass.PRIVATE_ADDRESS
        with pytest.raises(Failure) as caught:  # what a redirect leads to is connected to without being looked at
            site._guarded(site._ydl.urlopen, page)
        assert caught.value.kind is FailureClass.PRIVATE_ADDRESS and web.asked == []
