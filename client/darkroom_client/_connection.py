"""Address, credentials and gRPC channel of a server."""

import asyncio
import os
import ssl
from pathlib import Path
from typing import Any, Unpack

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from darkroom.v1 import catalog_service_pb2_grpc, image_service_pb2_grpc
from darkroom_client._address import checked_address, is_local
from darkroom_client._fork import refuse_after_fork
from darkroom_client._status import closed
from darkroom_client._tracing import trace_headers
from darkroom_client.errors import DarkroomError, InvalidOptions
from darkroom_client.options import ConnectionOptions

# Any: the generated stubs are untyped.
_images: Any = image_service_pb2_grpc
_catalog: Any = catalog_service_pb2_grpc
_health: Any = health_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"
_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a new client connects at once, whatever happened to others
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # which is the time that one attempt to connect may take
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),  # finds dead connections; the server allows a ping each 10 s
    ("grpc.http2.ping_timeout_ms", 20_000),  # gRPC does not enforce keepalive_timeout_ms (grpc/grpc#39239)
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # no limit
)


class Connection:
    """The channel to one server, opened by the first call and bound to its event loop.

    Message sizes have gRPC's default limits: 4 MiB to receive, which the API respects, and none to send.

    :raises InvalidOptions: if an argument is not valid.
    """

    def __init__(self, address: str | None, **options: Unpack[ConnectionOptions]) -> None:
        unknown = sorted(options.keys() - ConnectionOptions.__annotations__.keys())
        if unknown:
            raise TypeError(f"unknown keyword arguments: {', '.join(unknown)}")
        self.address = _address(address)
        self.retries = _retries(options.get("retries"))
        token = _token(options.get("token") or os.environ.get("DARKROOM_TOKEN") or "")
        self._token = (("authorization", f"Bearer {token}"),) if token else ()
        self._credentials = _credentials(options)
        self._channel: grpc.aio.Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the channel's
        self._closed = False

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """That of a call that is made now: the token, and the trace that it belongs to."""
        return (*self._token, *trace_headers())

    @property
    def images(self) -> Any:
        """The stub of ImageService. This and the other stubs need a running event loop.

        :raises DarkroomError: the client is closed, or was used in another event loop.
        """
        return _images.ImageServiceStub(self._open())

    @property
    def catalog(self) -> Any:
        """The stub of CatalogService."""
        return _catalog.CatalogServiceStub(self._open())

    @property
    def health(self) -> Any:
        """The stub of gRPC's health service."""
        return _health.HealthStub(self._open())

    async def close(self) -> None:
        """Closes the channel for good, which cancels its calls."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None and self._loop is asyncio.get_running_loop():  # else it ended with its loop
            await channel.close(None)

    def _open(self) -> grpc.aio.Channel:
        refuse_after_fork()
        if self._closed:
            raise closed(self.address)
        loop = _running_loop()
        if self._channel is None:
            self._loop, self._channel = loop, self._new_channel()
        if self._loop is not loop:
            raise DarkroomError("this AsyncClient was used in another event loop: make one in each, or use Client")
        return self._channel

    def _new_channel(self) -> grpc.aio.Channel:
        options = (*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not is_local(self.address))))
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.address, options)
        return grpc.aio.secure_channel(self.address, self._credentials, options)


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise DarkroomError("an AsyncClient makes its calls in a running event loop: elsewhere use Client") from None


def _address(given: str | None) -> str:
    if given:
        return checked_address(given)
    return checked_address(os.environ.get("DARKROOM_ADDRESS") or DEFAULT_ADDRESS, "DARKROOM_ADDRESS")


def _retries(given: Any) -> int | None:
    if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 0):
        raise InvalidOptions(f"retries must be a whole number from 0, or None, not {given!r}")
    return given


def _token(given: Any) -> str:
    """The token without surrounding spaces and line ends, as files have them. No error quotes it."""
    if not isinstance(given, str):
        raise InvalidOptions(f"token must be text, not {type(given).__name__}")
    token = given.strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InvalidOptions("token must be ASCII letters, digits and signs, without spaces or line breaks in it")
    return token


def _credentials(options: ConnectionOptions) -> grpc.ChannelCredentials | None:
    """None without TLS."""
    root = _pem("root_certificate", options.get("root_certificate"))
    certificate = _pem("client_certificate", options.get("client_certificate"))
    key = _pem("client_key", options.get("client_key"))
    if (certificate is None) != (key is None):
        given, missing = ("client_certificate", "client_key") if key is None else ("client_key", "client_certificate")
        raise InvalidOptions(f"{given} needs {missing} beside it")
    for name, pem in (("root_certificate", root), ("client_certificate", certificate)):
        if pem is not None and not _is_certificate(pem):
            raise InvalidOptions(f"{name}: {_told(options.get(name))} no certificate in PEM format")
    if key is not None and b"PRIVATE KEY" not in key:
        raise InvalidOptions(f"client_key: {_told(options.get('client_key'))} no private key in PEM format")
    if not options.get("tls", False) and root is None and certificate is None:
        return None
    return grpc.ssl_channel_credentials(root, key, certificate)


def _is_certificate(pem: bytes) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        return False
    return True


def _told(given: Any) -> str:
    return "the bytes given are" if isinstance(given, bytes) else f"{given} is"


def _pem(name: str, given: Any) -> bytes | None:
    """The bytes given, or those of the file at the path given."""
    if given is None or isinstance(given, bytes):
        return given
    try:
        return Path(given).read_bytes()
    except OSError as error:
        raise InvalidOptions(f"{name}: {given} cannot be read: {error.strerror}") from None
    except TypeError:
        raise InvalidOptions(f"{name} must be a path or bytes, not {type(given).__name__}") from None
