"""Who calls by HTTP, as gRPC's handlers want to know it."""

from __future__ import annotations

from urllib.parse import quote


def grpc_peer(address: str | None) -> str:
    """An address, ``host:port``, as gRPC spells it: ``ipv4:10.0.0.1:40000``, ``ipv6:%5B::1%5D:40000``; None for that of
    a unix socket."""
    host, _, port = (address or "").rpartition(":")
    if not host:
        return "unix:"
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if ":" in host else f"ipv4:{host}:{port}"
