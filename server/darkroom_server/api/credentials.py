"""The server's TLS credentials: read from files, and again whenever they change."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import grpc

from darkroom_server.config.tls import TlsError, checked

if TYPE_CHECKING:
    from pathlib import Path

    from darkroom_server.config.settings import TlsSettings

log = logging.getLogger(__name__)


class _Stamp(NamedTuple):
    """What changes when a file is written anew."""

    inode: int
    size: int
    modified: int


class Certificates:
    """Key, certificate and client CA of the files. gRPC asks for them at each connection; those that are open go on."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._files = [settings.certificate, settings.key, *([settings.client_ca] if settings.client_ca else [])]
        self._seen: list[_Stamp | None] = []

    def credentials(self) -> grpc.ServerCredentials:
        """:raises TlsError: a file cannot be used"""
        self._seen = self._stamps()
        return grpc.dynamic_ssl_server_credentials(self._read(), self.renewed, self._settings.client_ca is not None)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The files' contents if they have changed and are whole; None to go on with the last. On a thread of gRPC."""
        try:
            if not self.have_changed():
                return None
            configuration = self._read()
        except TlsError as error:  # half written: the other half changes the stamps again
            log.warning("the renewed certificate is not used: %s", error)
            return None
        except Exception:
            log.exception("the certificate cannot be read again")
            return None
        log.info("the certificate has been renewed: %s", self._settings.certificate)
        return configuration

    def have_changed(self) -> bool:
        """Whether the files are others than at the last call."""
        stamps = self._stamps()
        changed, self._seen = stamps != self._seen, stamps
        return changed

    def _read(self) -> grpc.ServerCertificateConfiguration:
        contents = checked(self._settings.certificate, self._settings.key, self._settings.client_ca)
        pair = [(contents.key, contents.certificate)]
        return grpc.ssl_server_certificate_configuration(pair, contents.client_ca)

    def _stamps(self) -> list[_Stamp | None]:
        return [_stamp(path) for path in self._files]


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()  # of what a link points to: some renew by changing links
    except OSError:
        return None
    return _Stamp(found.st_ino, found.st_size, found.st_mtime_ns)
