"""Addresses to listen on: HOST:PORT, [IPv6]:PORT, unix:PATH, unix-abstract:NAME."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address, ip_address
from typing import TypeAlias

HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9.])?")  # a name, or an IPv4 address
MAX_PORT = 65_535
MAX_UNIX_PATH = 99  # bytes: those of `sun_path` on any system, less a suffix while the socket is made
FORMS = "HOST:PORT, [IPv6]:PORT, unix:PATH or unix-abstract:NAME"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str  # a name or an IP address, without brackets
    port: int  # 0: any free one

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is reached from this machine only."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str  # of the socket's file; or the name of an abstract socket, which has no file and no permissions
    abstract: bool = False

    def __str__(self) -> str:
        return f"unix-abstract:{self.path}" if self.abstract else f"unix:{self.path}"

    is_loopback = True


Address: TypeAlias = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """:raises ValueError: no address to listen on; the message says what is wrong"""
    scheme, colon, rest = text.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        return _unix(rest, abstract=scheme == "unix-abstract")
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        raise ValueError(f"{text!r} has no port; {FORMS} is needed")
    return TcpAddress(_host(host), _port(port))


def _unix(path: str, abstract: bool) -> UnixAddress:
    if path.startswith("//") and not abstract:  # as a URI
        path = path.removeprefix("//")
        if not path.startswith("/"):
            raise ValueError(f"unix://{path}: after unix:// the path must be absolute; unix:{path} is a relative one")
    if not path:
        raise ValueError(f"{'unix-abstract: has no name' if abstract else 'unix: has no path'}; {FORMS} is needed")
    if "\0" in path or len(os.fsencode(path)) > MAX_UNIX_PATH:
        raise ValueError(f"{path!r} must have up to {MAX_UNIX_PATH} bytes, without zeros, as the system's sockets do")
    return UnixAddress(path, abstract)


def _host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(IPv6Address(host[1:-1]))
        except AddressValueError as error:
            raise ValueError(f"{host} is no IPv6 address: {error}") from error
    if not host:
        raise ValueError("a host is needed before the port: 127.0.0.1, or 0.0.0.0 for all of this machine's addresses")
    if ":" in host:
        raise ValueError(f"{host!r} is no host; an IPv6 address goes in brackets: [::1]:50051")
    if not HOST.fullmatch(host):
        raise ValueError(f"{host!r} is no host: a name or an IP address is needed")
    return host


def _port(port: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", port) or int(port) > MAX_PORT:
        raise ValueError(f"the port must be a number from 0 to {MAX_PORT}, not {port!r}")
    return int(port)
