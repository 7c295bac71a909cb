"""The asyncio client."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack
from weakref import WeakSet

from grpc_health.v1 import health_pb2

from darkroom.v1 import catalog_service_pb2 as catalog
from darkroom.v1 import image_service_pb2
from darkroom_client import _assembly
from darkroom_client import catalog as records
from darkroom_client._attempts import Attempts, StreamCall, time_limit, unary
from darkroom_client._connection import Connection
from darkroom_client._job_calls import JobCalls
from darkroom_client._kept import KeptCall
from darkroom_client._signatures import lists_keywords
from darkroom_client._stream import AsyncStream
from darkroom_client.errors import (
    DarkroomError,
    DeadlineExceeded,
    NotFound,
    RequestTooLarge,
    ServerUnreachable,
    Unavailable,
)
from darkroom_client.events import Loading
from darkroom_client.options import ConnectionOptions

_SERVICE = image_service_pb2.DESCRIPTOR.services_by_name["ImageService"].full_name
_ANY_SERVER_TAKES = 64 * 1024  # bytes of a request
_POLL_SECONDS = 0.2  # between two questions whether the server is ready


class AsyncClient(JobCalls[AsyncStream]):
    """A client of a Darkroom server for asyncio::

        async with AsyncClient() as client:
            picture = await client.generate("a red circle on a blue background").image()

    Bound to the event loop of its first use. Catalog methods return the records of `darkroom_client.catalog`.

    :param address: the server's HOST:PORT. Default: DARKROOM_ADDRESS, else 127.0.0.1:50051.
    :param options: `token`, `root_certificate`, `client_certificate`, `client_key`, `tls`, `retries`: see
        `darkroom_client.options.ConnectionOptions`.
    :raises InvalidOptions: if an argument is not valid.
    """

    @lists_keywords
    def __init__(self, address: str | None = None, **options: Unpack[ConnectionOptions]) -> None:
        self._connection = Connection(address, **options)
        self._streams: WeakSet[AsyncStream] = WeakSet()
        self._max_request_bytes = 0  # the server's limit; 0: not known yet, or none

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
        """Cancels all calls and closes the connection, for good."""
        for stream in list(self._streams):
            stream.hang_up()
        await self._connection.close()

    async def is_ready(self, timeout: float | None = 5.0) -> bool:
        """Whether the server makes pictures now: not while it starts, loads its models, stops or cannot be reached.

        :param timeout: for the answer. Seconds.
        """
        return await self._why_unhealthy(_SERVICE, timeout) is None

    async def check_health(self, service: str = _SERVICE, timeout: float | None = 5.0) -> None:
        """Asks for the server's health (grpc.health.v1), once. Needs no token.

        :param service: "darkroom.v1.ImageService": are pictures made now? "": does the process answer, and go on?
        :param timeout: for the answer. Seconds.
        :raises Unavailable: it is not serving; `ServerUnreachable` if it did not answer at all.
        :raises NotFound: the server has no such service.
        """
        reason = await self._why_unhealthy(service, timeout)
        if reason is not None:
            raise reason

    async def wait_for_server(self, timeout: float | None = 60.0) -> None:
        """Waits until the server is ready.

        :param timeout: seconds; None: for ever.
        :raises Unavailable: it was not ready within the time; `ServerUnreachable` if it did not answer at all.
        """
        limit = time_limit(timeout)
        end = None if limit is None else time.monotonic() + limit
        while True:
            left = None if end is None else max(end - time.monotonic(), _POLL_SECONDS)
            reason = await self._why_unhealthy(_SERVICE, left)
            if reason is None:
                return
            if end is not None and time.monotonic() + _POLL_SECONDS >= end:
                raise reason
            await asyncio.sleep(_POLL_SECONDS)

    async def cancel(self, request_id: str) -> bool:
        """Cancels a job. Returns False for a job that has already ended.

        :raises RequestNotFound: if there is no such job.
        """
        request = image_service_pb2.CancelRequest(request_id=request_id)
        response = await self._call(self._connection.images.Cancel, request)
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

    async def load_model(
        self, model: str, on_progress: Callable[[Loading], object] | None = None, *, replicas: Iterable[str] = ()
    ) -> records.Model:
        """Loads a model before its first job. Needs an operator's token.

        :param on_progress: called with each Loading event.
        :param replicas: of a cluster, by name: where it is loaded; by default at one.
        :raises ModelNotFound: if there is no such model.
        :raises DarkroomError: if the call fails.
        """
        request = catalog.LoadModelRequest(model=model, replicas=replicas)
        call = self._stream_call(self._connection.catalog.LoadModel, request, None)
        loaded = catalog.Model()
        try:
            while (response := await call.read()) is not None:
                loaded.MergeFrom(response.model)
                if on_progress is not None and response.HasField("loading"):
                    on_progress(_assembly.loading_event(response.loading))
        finally:
            call.cancel()
        record: records.Model = _assembly.record(loaded)
        return record

    async def unload_model(self, model: str, *, replicas: Iterable[str] = ()) -> int:
        """Unloads a model as soon as no job uses it. Returns the bytes freed. Needs an operator's token.

        :param replicas: of a cluster, by name: where it is unloaded; by default at all.
        :raises ModelNotFound: if there is no such model.
        """
        response = await self._call_catalog("UnloadModel", catalog.UnloadModelRequest(model=model, replicas=replicas))
        return int(response.freed_bytes)

    async def rescan_assets(self) -> list[records.AssetChange]:
        """Has the server look into its folders of LoRAs and embeddings now. Returns what has changed. Needs an
        operator's token.

        :raises DarkroomError: if the call fails.
        """
        response = await self._call_catalog("RescanAssets", catalog.RescanAssetsRequest())
        return list(map(_assembly.record, response.changes))

    async def server_load(self) -> records.ServerLoad:
        """What the server does now: its queue, its batches and its memory. Needs an operator's token.

        :raises DarkroomError: if the call fails.
        """
        load: records.ServerLoad = _assembly.record(
            await self._call_catalog("GetServerLoad", catalog.GetServerLoadRequest())
        )
        return load

    async def jobs(self, *, active_only: bool = False) -> list[records.Job]:
        """The server's active and kept jobs, newest first: one's own, or, with an operator's token, all.

        :param active_only: without those that have ended.
        :raises DarkroomError: if the call fails.
        """
        request, found = image_service_pb2.ListJobsRequest(active_only=active_only), list[records.Job]()
        while True:
            page = await self._call(self._connection.images.ListJobs, request)
            found += map(_assembly.job_record, page.jobs)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def job(self, request_id: str) -> records.Job:
        """One of these jobs, with its thumbnail.

        :raises RequestNotFound: if there is no such job.
        """
        request = image_service_pb2.GetJobRequest(request_id=request_id)
        response = await self._call(self._connection.images.GetJob, request)
        return _assembly.job_record(response.job, response.thumbnail)

    def _start(self, rpc: str, request: Any, timeout: float | None, *, detached: bool) -> AsyncStream:
        first = self._stream_call(getattr(self._connection.images, rpc), request, timeout)
        request_id = request.request_id
        resumes = detached and self._connection.retries != 0
        call = self._kept_call(first, rpc, request, time_limit(timeout)) if resumes else first

        async def cancel_job() -> bool:
            return await self.cancel(request_id)

        stream = AsyncStream(call, request_id=request_id, cancel_job=cancel_job if detached else None)
        self._streams.add(stream)
        return stream

    def _kept_call(self, first: StreamCall, rpc: str, request: Any, timeout: float | None) -> KeptCall:
        def watch(after: int, seconds: float | None) -> StreamCall:
            asked = image_service_pb2.WatchRequest(request_id=request.request_id, after_sequence=after)
            return self._stream_call(self._connection.images.Watch, asked, seconds, retries=0)

        def again(seed: int, seconds: float | None) -> StreamCall:
            request.parameters.seed = seed
            return self._stream_call(getattr(self._connection.images, rpc), request, seconds, retries=0)

        if rpc == "Watch":
            return KeptCall(first, watch, None, timeout, request.after_sequence)
        return KeptCall(first, watch, again, timeout)

    def _stream_call(
        self, method: Any, request: Any, timeout: float | None, *, retries: int | None = None
    ) -> StreamCall:
        metadata = self._connection.metadata  # of the caller, who need not be the one that reads and so begins again

        def begin(seconds: float | None) -> Any:
            return method(request, timeout=seconds, metadata=metadata)

        size = request.ByteSize()
        check = partial(self._check_size, size, timeout) if size > _ANY_SERVER_TAKES else None
        retries = self._connection.retries if retries is None else retries
        return StreamCall(begin, Attempts(timeout, retries), self.address, check)

    async def _check_size(self, size: int, timeout: float | None) -> None:
        """:raises RequestTooLarge: the server's limit is smaller"""
        if size > self._max_request_bytes:
            ask, request = self._connection.catalog.GetServerInfo, catalog.GetServerInfoRequest()
            with suppress(DarkroomError):  # the call itself will say what is wrong
                info = await self._call(ask, request, Attempts(timeout, 0))
                self._max_request_bytes = info.limits.max_request_bytes
        if 0 < self._max_request_bytes < size:
            raise RequestTooLarge(
                f"the request has {size:,} bytes, and the server at {self.address} takes up to "
                f"{self._max_request_bytes:,}",
                reason="REQUEST_TOO_LARGE",
            )

    async def _why_unhealthy(self, service: str, timeout: float | None) -> DarkroomError | None:
        """None if the service is serving."""
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = await self._call(self._connection.health.Check, request, Attempts(timeout, 0))
        except Unavailable as error:
            return error
        except NotFound:
            return NotFound(f"the server at {self.address} has no service {service!r}")
        except DeadlineExceeded:
            return ServerUnreachable(f"the Darkroom server at {self.address} does not answer")
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return None
        return Unavailable(f"the Darkroom server at {self.address} is not ready: it starts, or it stops")

    async def _list(self, kind: str) -> list[Any]:
        """The records that `List…` returns, in its first field."""
        response = await self._call_catalog(f"List{kind}", getattr(catalog, f"List{kind}Request")())
        return list(map(_assembly.record, getattr(response, response.DESCRIPTOR.fields[0].name)))

    async def _call_catalog(self, rpc: str, request: Any) -> Any:
        return await self._call(getattr(self._connection.catalog, rpc), request)

    async def _call(self, method: Any, request: Any, attempts: Attempts | None = None) -> Any:
        def call(seconds: float | None) -> Any:
            return method(request, timeout=seconds, metadata=self._connection.metadata)

        return await unary(call, attempts or Attempts(None, self._connection.retries), self.address)
