"""Addresses that a list of strangers, or a redirect, must not lead to: this machine, private networks, other schemes.

What counts is the address that is connected to, at the moment of the connection: a name may resolve to anything, and
to something else a second later. Python's own audit events show it for every library that uses Python's sockets.
"""

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit
from urllib.request import getproxies

from common.errors import InputError

PUBLIC_SCHEMES = ("http", "https", "s3", "gs", "gcs", "abfs", "abfss")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
SHOWN = 120  # characters of an address in a message


class AddressError(InputError):
    """An address is not of the public network, and private ones are not allowed."""


@dataclass
class Guard:
    """`proxies`: their addresses may be private. `programs`: what may be started; `refused`: every refusal so far."""

    proxies: Sequence[str]
    programs: Sequence[str]
    refused: list[AddressError] = field(default_factory=list)


_guard: ContextVar[Guard | None] = ContextVar("guard", default=None)
_hooks: list[Any] = []  # an audit hook stays until the process ends, so there is one


def is_private(address: str) -> bool:
    """Whether an IP address is anything but one of the public network; an IPv4 address inside an IPv6 one counts."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or nat64
        if inner is not None:
            return is_private(str(inner))
    return not ip.is_global or ip.is_multicast


def refuse_private(url: str) -> None:
    """Raises AddressError for an address that says by itself that it is not public: its scheme, or its host's number.

    Numbers are read as connections read them: 2130706433, 0177.1 and [::ffff:127.0.0.1] are 127.0.0.1.
    """
    try:
        parts = urlsplit(url)
        hosts = [parts.hostname or "", *map(_host_of, parse_qs(parts.query).get("endpoint_override", []))]
    except ValueError as error:
        raise AddressError(f"{url[:SHOWN]!r} is no address ({error}).") from error
    if parts.scheme.lower() not in PUBLIC_SCHEMES:
        raise AddressError(f"{url[:SHOWN]!r} begins with {parts.scheme}://; expected https://, s3:// or gs://.")
    for host in filter(None, hosts):
        if _literal_is_private(host):
            raise AddressError(f"{url[:SHOWN]!r} leads to {host}, which is this machine or a private network.")


def _host_of(place: str) -> str:
    return urlsplit(place if "//" in place else f"//{place}").hostname or ""


def _literal_is_private(host: str) -> bool:
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        return is_private(name)
    except ValueError:
        pass
    try:
        return is_private(socket.inet_ntoa(socket.inet_aton(name)))  # also reads decimal, octal and short forms
    except OSError:
        return False


@contextmanager
def public_addresses_only(proxies: Sequence[str] = (), programs: Sequence[str] = ()) -> Iterator[Guard]:
    """In this context no connection of this process reaches a private address, nor does a program start that might.

    The proxies of the environment, and `proxies` (URLs), are the user's own and excepted; behind one, names are
    resolved where this process cannot see it. `programs` may be started. Raises AddressError where one is tried.
    """
    if not _hooks:
        _hooks.append(_audit)
        sys.addaudithook(_audit)
    guard = Guard((*proxies, *getproxies().values()), programs)
    token = _guard.set(guard)
    try:
        yield guard
    finally:
        _guard.reset(token)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("socket.connect", "subprocess.Popen"):
        return
    guard = _guard.get()
    if guard is None:
        return
    if event == "subprocess.Popen":
        program = os.path.basename(str(arguments[0]))
        if program not in guard.programs:
            raise FileNotFoundError(f"{program} is not started: it might connect to a private address")
        return
    place = arguments[1]
    if isinstance(place, tuple) and is_private(str(place[0])) and not _is_proxy(place, guard.proxies):
        error = AddressError(f"A connection to {place[0]}, which is this machine or a private network, is refused.")
        guard.refused.append(error)
        raise error


def _is_proxy(place: tuple[Any, ...], proxies: Sequence[str]) -> bool:
    for proxy in proxies:
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port or place[1], type=socket.SOCK_STREAM)
        except OSError:
            continue
        if place[:2] in [entry[4][:2] for entry in found]:
            return True
    return False
