"""Files of certificates: whether a server can use them."""

from __future__ import annotations

import ssl
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple


class TlsError(ValueError):
    """A file cannot be used; the message names it, and says why."""


class TlsFiles(NamedTuple):
    """Contents of the files, PEM."""

    certificate: bytes  # with the intermediate ones behind it
    key: bytes
    client_ca: bytes | None


def checked(certificate: Path, key: Path, client_ca: Path | None) -> TlsFiles:
    """The contents of files that belong together. What is checked is what is returned, whatever is written meanwhile.

    :raises TlsError: one cannot be used
    """
    contents = TlsFiles(_read(certificate), _read(key), _read(client_ca) if client_ca else None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if b"ENCRYPTED" in contents.key:
        raise TlsError(f"{key} has a password; the server has nobody to ask for it")
    with TemporaryDirectory() as folder:  # the library reads files only
        chain, private = Path(folder, "certificate"), Path(folder, "key")
        chain.write_bytes(contents.certificate)
        private.touch(0o600)
        private.write_bytes(contents.key)
        try:
            context.load_cert_chain(chain, private)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise TlsError(f"{key} is not the key of the certificate in {certificate}") from None
            raise TlsError(f"{certificate} and {key} are no certificate and its private key in PEM format") from None
    if contents.client_ca is not None:
        try:
            context.load_verify_locations(cadata=contents.client_ca.decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError):
            raise TlsError(f"{client_ca} is no certificate in PEM format") from None
    return contents


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path} cannot be read: {error.strerror}") from None
