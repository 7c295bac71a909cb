"""Who calls by HTTP, as gRPC's handlers want to know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True)
class Caller:
    """The headers, with keys in lower case, and the address, as ``host:port``; None by a unix socket."""

    metadata: Sequence[tuple[str, str]]
    address: str | None

    @property
    def peer(self) -> str:
        """The address as gRPC spells it: ``ipv4:10.0.0.1:40000``, ``ipv6:%5B::1%5D:40000``."""
        host, _, port = (self.address or "").rpartition(":")
        if not host:
            return "unix:"
        return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if ":" in host else f"ipv4:{host}:{port}"
