"""Which addresses are private, however they are written, and that a connection to one is refused when it is made."""

import socket
import subprocess
import sys
import urllib.request

import pytest

from common.untrusted.addresses import AddressError, is_private, public_addresses_only, refuse_private


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"]
    + ["::1", "::", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe"]
    + ["2002:7f00:1::"],
)
def test_what_is_private(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "142.250.1.1", "2a00:1450:4001:82a::200e", "::ffff:8.8.8.8"])
def test_what_is_public(address: str) -> None:
    assert not is_private(address)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "FILE://localhost/etc/passwd", "ftp://host/a", "hdfs://name/a", "concat://a", "data:a"]
    + [f"http://{host}/a.mp4" for host in ("127.0.0.1", "localhost", "LOCALHOST.", "a.localhost", "[::1]", "0")]
    + [f"https://{host}/" for host in ("2130706433", "0177.0.0.1", "0x7f.1", "127.1", "[::ffff:10.0.0.1]")]
    + ["http://user@169.254.169.254:80/latest", "http://metadata.google.internal/", "http://[::1"]
    + ["s3://bucket/a.mp4?endpoint_override=127.0.0.1:9000", "s3://b/a?endpoint_override=http%3A%2F%2F10.0.0.1"],
)
def test_addresses_that_say_so_themselves(url: str) -> None:
    with pytest.raises(AddressError):
        refuse_private(url)


@pytest.mark.parametrize(
    "url", ["https://host.example/a.mp4", "http://8.8.8.8/a", "s3://bucket/a?region=eu", "gs://b/a"]
)
def test_addresses_that_may_be_tried(url: str) -> None:
    refuse_private(url)


def test_the_connection_decides_not_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves to a public address first and to this machine when it is connected to."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        here = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: here)
        with public_addresses_only() as guard, pytest.raises(AddressError, match=r"127\.0\.0\.1"):
            urllib.request.urlopen(f"http://public.example:{port}/", timeout=5)
        assert len(guard.refused) == 1
        with public_addresses_only([f"http://proxy.example:{port}"]):  # the user's own proxy may be anywhere
            socket.create_connection(("127.0.0.1", port), 5).close()
        socket.create_connection(("127.0.0.1", port), 5).close()  # and outside of the context nothing is refused


def test_no_program_is_started_that_would_connect_instead() -> None:
    with public_addresses_only(programs=[sys.executable.rpartition("/")[2]]):
        with pytest.raises(FileNotFoundError, match="ffmpeg"):
            subprocess.run(["/usr/bin/ffmpeg", "-version"], check=False)
        subprocess.run([sys.executable, "-c", ""], check=True)
