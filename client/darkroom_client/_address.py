"""Addresses of servers: HOST:PORT, [IPv6]:PORT, unix:PATH or unix-abstract:NAME. Imports no gRPC."""

import ipaddress
import os
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from darkroom_client.errors import InvalidOptions

_FORMS = "HOST:PORT, [IPv6]:PORT, unix:PATH or unix-abstract:NAME"
_UNIX = ("unix:", "unix-abstract:")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9.])?")
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # the variables that gRPC reads; the first one set counts
_EXEMPT = ("no_grpc_proxy", "no_proxy")


def checked_address(address: object, name: str = "address") -> str:
    """The address without surrounding spaces. `name` says where it is from.

    :raises InvalidOptions: if it has another form.
    """
    if not isinstance(address, str):
        raise InvalidOptions(f"{name} must be text, {_FORMS}, not {type(address).__name__}")
    address = address.strip()
    problem = _problem(address)
    if problem:
        raise InvalidOptions(f"{name} {address!r} {problem}: it must be {_FORMS}, the port from 1 to 65535")
    return address


def _problem(address: str) -> str | None:
    if address.startswith(_UNIX):
        return None if address.partition(":")[2] else "names no socket"
    if "://" in address:
        return "has a scheme"
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        return "has no port"
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535):
        return f"has no such port as {port!r}" if port else "has no port"
    return _host_problem(host)


def _host_problem(host: str) -> str | None:
    if not host:
        return "has no host"
    if host.startswith("[") and host.endswith("]"):
        return None if isinstance(_ip(host), ipaddress.IPv6Address) else f"has no IPv6 address in {host}"
    if ":" in host:
        return "has an IPv6 address without brackets"
    return None if _HOST.fullmatch(host) else f"has no host name in {host!r}"


def is_local(address: str) -> bool:
    """Whether a checked address is on this machine: a loopback address or a Unix socket."""
    if address.startswith(_UNIX):
        return True
    host = address.rpartition(":")[0]
    ip = _ip(host)
    return ip.is_loopback or ip.is_unspecified if ip else host == "localhost" or host.endswith(".localhost")


def is_loopback(address: str) -> bool:
    """Whether a checked address, listened on, is reached from this machine alone."""
    ip = _ip(address.rpartition(":")[0])
    return is_local(address) and not (ip and ip.is_unspecified)


def proxy_of(address: str) -> str | None:
    """The proxy that gRPC uses for a checked address, for messages: `HOST:PORT (VARIABLE)`, without a password."""
    name, proxy = _first_set(_PROXIES)
    host = address.rpartition(":")[0].strip("[]")
    exempt = [end.strip() for end in _first_set(_EXEMPT)[1].split(",")]
    if not proxy or is_local(address) or any(end and host.endswith(end) for end in exempt):
        return None
    return f"{urlsplit(proxy).netloc.rpartition('@')[2]} ({name})"


def _first_set(variables: Iterable[str]) -> tuple[str, str]:
    """Name and value of the first environment variable that is set; empty if none is."""
    return next(((name, os.environ[name]) for name in variables if os.environ.get(name)), ("", ""))


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
