"""TLS of HTTP's door: the certificates of gRPC's, read again whenever they change."""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Any

from darkroom_server.api.credentials import Certificates
from darkroom_server.config.tls import TlsError, checked

if TYPE_CHECKING:
    from darkroom_server.config.settings import TlsSettings

log = logging.getLogger(__name__)


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """A context for a server. Renewed files are used from the next connection on. With a client CA it is TLS 1.3 alone,
    without sessions.

    :raises TlsError: a file cannot be used
    """
    certificates = Certificates(settings)
    certificates.have_changed()
    first = latest = _context(settings)

    def on_hello(connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        nonlocal latest
        try:
            if certificates.have_changed():
                latest = _context(settings)
        except (TlsError, OSError) as error:  # half written: the other half changes the files again
            log.warning("the renewed certificate is not used: %s", error)
        connection.context = latest

    first.sni_callback = on_hello
    return first


def _context(settings: TlsSettings) -> ssl.SSLContext:
    checked(settings.certificate, settings.key, settings.client_ca)  # for its words
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.certificate, settings.key)
    if settings.client_ca is not None:
        context.load_verify_locations(settings.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        # A session that goes on shows no certificate, and could outlive a CA that is withdrawn. Before TLS 1.3 they
        # cannot be turned off here.
        context.minimum_version, context.num_tickets = ssl.TLSVersion.TLSv1_3, 0
    return context
