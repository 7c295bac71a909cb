"""The sockets that uvicorn listens on, bound as gRPC binds its own."""

from __future__ import annotations

import socket
from typing import Any

from darkroom_server.api.listening import ABSENT
from darkroom_server.config.address import UnixAddress, parse_address


class Sockets:
    """Binds to addresses; `found` are the sockets, which listen."""

    def __init__(self) -> None:
        self.found: list[socket.socket] = []

    def add_insecure_port(self, address: str) -> int:
        """Bind to an address of `config.address`: all of a name's. Returns the port, 0 of a unix socket.

        :raises OSError: it cannot be bound
        """
        wanted = parse_address(address)
        if isinstance(wanted, UnixAddress):
            path = f"\0{wanted.path}" if wanted.abstract else wanted.path
            self._bind(socket.AF_UNIX, path)
            return 0
        port = wanted.port
        kinds = socket.getaddrinfo(wanted.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, place in kinds:
            port = self._bind(family, (place[0], port, *place[2:])) or port
        if not self.found:
            raise OSError(f"this machine has no address {wanted.host}")
        return port

    def add_secure_port(self, address: str, credentials: Any) -> int:
        """uvicorn's TLS is configured apart."""
        return self.add_insecure_port(address)

    def close(self) -> None:
        """Let go of all of them."""
        for each in self.found:
            each.close()

    def _bind(self, family: int, place: tuple[str | int, ...] | str) -> int:
        """The port; 0 if this machine has no such address, as ::1 where there is no IPv6."""
        try:
            made = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            return 0
        try:
            if family != socket.AF_UNIX:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind(place)
            made.listen()  # a unix socket is renamed: what comes before uvicorn asks waits in the backlog
        except OSError as error:
            made.close()
            if family == socket.AF_UNIX or error.errno not in ABSENT:
                raise
            return 0
        self.found.append(made)
        return 0 if family == socket.AF_UNIX else int(made.getsockname()[1])
