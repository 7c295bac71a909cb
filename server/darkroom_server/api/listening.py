"""Binds a server to its address, with the system's reason where that fails.

gRPC hides the reason; so each address is bound here first and let go. A unix socket is owned by a lock file beside it,
which the system unlocks however the process ends. gRPC makes the socket under another name, as it deletes that name
when it stops, whoever's socket it then is; renaming puts it in the place of one that a killed server left.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import stat
from typing import TYPE_CHECKING, Any, Protocol

from darkroom_server.config.address import TcpAddress, parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from darkroom_server.api.credentials import Certificates

ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # an address of a name that this machine does not have


@contextlib.contextmanager
def to_listen(address: str) -> Iterator[None]:
    """Around what listens on an address. :raises CannotListen: for an OSError, with the system's reason"""
    try:
        yield
    except OSError as error:
        raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from error


class CannotListen(Exception):
    """The address cannot be listened on; the message says why."""


class Binds(Protocol):
    """A server that listens, as gRPC's."""

    def add_insecure_port(self, address: str) -> int:
        """Bind to an address of `config.address`; returns the port. :raises OSError, RuntimeError: it cannot"""

    def add_secure_port(self, address: str, credentials: Any) -> int:
        """The same with TLS."""


class Listener:
    """Holds an address for a server from `bind` to `close`; `address` is where it listens, with the port found."""

    def __init__(self, listen: str, certificates: Certificates | None = None) -> None:
        """With `certificates` it speaks TLS on a port; not on unix sockets."""
        self._certificates = certificates
        self._wanted = parse_address(listen)
        self._lock: int | None = None  # file descriptor
        self._files: list[str] = []  # ours
        self.address = listen

    async def bind(self, server: Binds) -> None:
        """Bind a server that is not started yet.

        :raises CannotListen: with the system's reason
        """
        try:
            if isinstance(self._wanted, TcpAddress):
                await self._bind_port(server, self._wanted)
            elif self._wanted.abstract:
                _probe(socket.AF_UNIX, f"\0{self._wanted.path}")
                server.add_insecure_port(str(self._wanted))
            else:
                self._bind_file(server, self._wanted.path)
        except (OSError, RuntimeError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise CannotListen(f"cannot listen on {self._wanted}: {reason}") from error

    def close(self) -> None:
        """Remove the socket's file and its lock. To be called after the server has stopped."""
        for path in self._files:
            with contextlib.suppress(OSError):
                os.unlink(path)
        if self._lock is not None:
            os.close(self._lock)
        self._files, self._lock = [], None

    async def _bind_port(self, server: Binds, wanted: TcpAddress) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        absent = []
        for family, _, _, _, name in found:
            try:
                _probe(family, name)
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
                absent.append(error)
        if len(absent) == len(found):  # a name may stand for ::1, too, where there is no IPv6
            raise absent[0]
        if self._certificates is None:
            port = server.add_insecure_port(str(wanted))
        else:
            port = server.add_secure_port(str(wanted), self._certificates.credentials())
        self.address = str(TcpAddress(wanted.host, port))

    def _bind_file(self, server: Binds, path: str) -> None:
        lock, made = f"{path}.lock", f"{path}.new"
        self._lock = _locked(lock)
        self._files = [lock]
        _refuse_what_is_no_stale_socket(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made)  # of a server that was killed between the next lines
        _probe(socket.AF_UNIX, made)
        os.unlink(made)
        server.add_insecure_port(f"unix:{made}")
        os.rename(made, path)
        self._files = [path, lock]  # the lock goes last


def _probe(family: int, name: object) -> None:
    """Bind and let go. :raises OSError: it cannot be bound"""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if family != socket.AF_UNIX:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC: connections that close do not count
        probe.bind(name)  # type: ignore[arg-type]


def _locked(path: str) -> int:
    """The descriptor of the lock file, locked. :raises OSError: another process has it, or it cannot be made"""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(lock, path):  # else its owner has just removed it
                return lock
        except BlockingIOError as error:
            os.close(lock)
            raise OSError(errno.EADDRINUSE, "another server is listening there") from error
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _refuse_what_is_no_stale_socket(path: str) -> None:
    """:raises OSError: something else is there, or a socket on which somebody listens without a lock"""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.settimeout(1)
            caller.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return
    raise OSError(errno.EADDRINUSE, "another server is listening there")
