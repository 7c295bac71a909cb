"""Address, credentials and gRPC channel of a server."""

import os
from pathlib import Path
from typing import Any, Unpack

import grpc
import grpc.aio

from darkroom.v1 import catalog_service_pb2_grpc, image_service_pb2_grpc
from darkroom_client._fork import refuse_after_fork
from darkroom_client.options import ConnectionOptions

# Any: the generated stubs are untyped.
_images: Any = image_service_pb2_grpc
_catalog: Any = catalog_service_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"


class Connection:
    """The channel to one server, opened by the first call.

    Message sizes have gRPC's default limits: 4 MiB to receive, which the API respects, and none to send.
    """

    def __init__(self, address: str | None, **options: Unpack[ConnectionOptions]) -> None:
        unknown = sorted(options.keys() - ConnectionOptions.__annotations__.keys())
        if unknown:
            raise TypeError(f"unknown keyword arguments: {', '.join(unknown)}")
        self.address = address or os.environ.get("DARKROOM_ADDRESS") or DEFAULT_ADDRESS
        token = options.get("token") or os.environ.get("DARKROOM_TOKEN")
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        certificate = options.get("root_certificate")
        uses_tls = options.get("tls", False) or certificate is not None
        self._credentials = _credentials(certificate) if uses_tls else None
        self._channel: grpc.aio.Channel | None = None

    def stubs(self) -> tuple[Any, Any]:
        """The stubs of ImageService and CatalogService. Needs a running event loop."""
        refuse_after_fork()
        if self._channel is None:
            self._channel = self._open()
        return _images.ImageServiceStub(self._channel), _catalog.CatalogServiceStub(self._channel)

    async def close(self) -> None:
        """Closes the channel, which cancels its calls. The next call opens another."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)

    def _open(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.address)
        return grpc.aio.secure_channel(self.address, self._credentials)


def _credentials(root_certificate: str | os.PathLike[str] | bytes | None) -> grpc.ChannelCredentials:
    if isinstance(root_certificate, bytes) or root_certificate is None:
        return grpc.ssl_channel_credentials(root_certificate)
    return grpc.ssl_channel_credentials(Path(root_certificate).read_bytes())
