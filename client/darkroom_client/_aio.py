"""The asyncio client."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack
from weakref import WeakSet

import grpc.aio

from darkroom.v1 import catalog_service_pb2 as catalog
from darkroom.v1 import image_service_pb2
from darkroom_client import _assembly
from darkroom_client import catalog as records
from darkroom_client._connection import Connection
from darkroom_client._job_calls import JobCalls
from darkroom_client._signatures import lists_keywords
from darkroom_client._status import to_exception
from darkroom_client._stream import AsyncStream
from darkroom_client.events import Loading
from darkroom_client.options import ConnectionOptions

_T = TypeVar("_T")


class AsyncClient(JobCalls[AsyncStream]):
    """A client of a Darkroom server for asyncio::

        async with AsyncClient() as client:
            picture = await client.generate("a red circle on a blue background").image()

    Bound to the event loop of its first use. Catalog methods return the records of `darkroom_client.catalog`.

    :param address: the server's HOST:PORT. Default: DARKROOM_ADDRESS, else 127.0.0.1:50051.
    :param options: `token`, `root_certificate` and `tls`: see `darkroom_client.options.ConnectionOptions`.
    """

    @lists_keywords
    def __init__(self, address: str | None = None, **options: Unpack[ConnectionOptions]) -> None:
        self._connection = Connection(address, **options)
        self._streams: WeakSet[AsyncStream] = WeakSet()

    @property
    def address(self) -> str:
        """The server's HOST:PORT."""
        return self._connection.address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels all calls and closes the connection."""
        for stream in list(self._streams):
            stream.hang_up()
        await self._connection.close()

    async def cancel(self, request_id: str) -> bool:
        """Cancels a job. Returns False for a job that has already ended.

        :raises RequestNotFound: if there is no such job.
        """
        images, _ = self._connection.stubs()
        response = await self._call(images.Cancel, image_service_pb2.CancelRequest(request_id=request_id))
        return bool(response.cancelled)

    async def server_info(self) -> records.ServerInfo:
        """The server's version, devices, limits and plugins.

        :raises DarkroomError: if the call fails.
        """
        info: records.ServerInfo = _assembly.record(
            await self._call_catalog("GetServerInfo", catalog.GetServerInfoRequest())
        )
        return info

    async def models(self) -> list[records.Model]:
        """The server's models; `model` takes their names.

        :raises DarkroomError: if the call fails.
        """
        return await self._list("Models")

    async def tasks(self) -> list[records.Task]:
        """The server's tasks; `task` takes their names.

        :raises DarkroomError: if the call fails.
        """
        return await self._list("Tasks")

    async def schedulers(self) -> list[records.Scheduler]:
        """The server's noise schedulers; `scheduler` takes their names.

        :raises DarkroomError: if the call fails.
        """
        return await self._list("Schedulers")

    async def loras(self) -> list[records.Lora]:
        """The server's LoRAs; `loras` takes their names.

        :raises DarkroomError: if the call fails.
        """
        return await self._list("Loras")

    async def control_nets(self) -> list[records.ControlNet]:
        """The server's ControlNets; `controls` takes their names.

        :raises DarkroomError: if the call fails.
        """
        return await self._list("ControlNets")

    async def preprocessors(self) -> list[records.Preprocessor]:
        """The server's preprocessors of control maps; `preprocess` and `controls` take their names.

        :raises DarkroomError: if the call fails.
        """
        return await self._list("Preprocessors")

    async def load_model(self, model: str, on_progress: Callable[[Loading], object] | None = None) -> records.Model:
        """Loads a model before its first job. Needs an operator's token.

        :param on_progress: called with each Loading event.
        :raises ModelNotFound: if there is no such model.
        :raises DarkroomError: if the call fails.
        """
        call = self._connection.stubs()[1].LoadModel(
            catalog.LoadModelRequest(model=model), metadata=self._connection.metadata
        )
        loaded = catalog.Model()
        try:
            async for response in call:
                loaded.MergeFrom(response.model)
                if on_progress is not None and response.HasField("loading"):
                    on_progress(_assembly.loading_event(response.loading))
        except grpc.aio.AioRpcError as error:
            raise to_exception(error, self.address, connected=False) from error
        finally:
            call.cancel()
        record: records.Model = _assembly.record(loaded)
        return record

    async def unload_model(self, model: str) -> int:
        """Unloads a model as soon as no job uses it. Returns the bytes freed. Needs an operator's token.

        :raises ModelNotFound: if there is no such model.
        """
        response = await self._call_catalog("UnloadModel", catalog.UnloadModelRequest(model=model))
        return int(response.freed_bytes)

    def _start(self, rpc: str, request: Any, timeout: float | None, *, detached: bool) -> AsyncStream:
        images, _ = self._connection.stubs()
        call = getattr(images, rpc)(request, timeout=timeout, metadata=self._connection.metadata)
        request_id = request.request_id

        async def cancel_job() -> bool:
            return await self.cancel(request_id)

        cancel = cancel_job if detached else None
        stream = AsyncStream(call, request_id=request_id, address=self.address, cancel_job=cancel)
        self._streams.add(stream)
        return stream

    async def _list(self, kind: str) -> list[Any]:
        """The records that `List…` returns, in its first field."""
        response = await self._call_catalog(f"List{kind}", getattr(catalog, f"List{kind}Request")())
        return list(map(_assembly.record, getattr(response, response.DESCRIPTOR.fields[0].name)))

    async def _call_catalog(self, rpc: str, request: Any) -> Any:
        return await self._call(getattr(self._connection.stubs()[1], rpc), request)

    async def _call(self, method: Callable[..., Awaitable[_T]], request: Any) -> _T:
        try:
            return await method(request, metadata=self._connection.metadata)
        except grpc.aio.AioRpcError as error:
            raise to_exception(error, self.address, connected=False) from error
