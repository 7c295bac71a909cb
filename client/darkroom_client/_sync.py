"""The blocking client: `AsyncClient` and its streams, run in the event loop of a background thread."""

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, Unpack

from darkroom_client import catalog, events
from darkroom_client._aio import AsyncClient
from darkroom_client._fork import refuse_after_fork
from darkroom_client._job_calls import JobCalls
from darkroom_client._loop import BackgroundLoop, shared_loop
from darkroom_client._notebook import Notebook
from darkroom_client._signatures import lists_keywords
from darkroom_client._stream import AsyncStream
from darkroom_client.options import ConnectionOptions


class Stream(Iterator[events.Event]):
    """The event stream of a job.

    Iterate over its events, or wait for the picture::

        for event in client.generate("a red circle"): ...
        picture = client.generate("a red circle").image()

    The job starts with the call, before the first read. The server cancels it when the stream is closed or
    garbage-collected, and by Ctrl-C. The stream is its own iterator: after a `break` it can be read on, and a loop over
    a stream that nothing else holds ends the job. As the last value of a notebook's cell it shows the picture as it
    develops.
    """

    def __init__(self, stream: AsyncStream, loop: BackgroundLoop) -> None:
        self._stream = stream
        self._loop = loop

    @property
    def request_id(self) -> str:
        """The job's id."""
        return self._stream.request_id

    @property
    def accepted(self) -> events.Accepted | None:
        """The job's `Accepted` event; None until it has been read."""
        return self._stream.accepted

    @property
    def completed(self) -> events.Completed | None:
        """The job's `Completed` event; None until it has been read."""
        return self._stream.completed

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> events.Event:
        event = self._loop.run(self._stream.next_event())
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def image(self) -> events.Image:
        """Waits for the job; returns its picture, or the first of several.

        :raises DarkroomError: the job's error; `Cancelled` if the stream was closed early.
        """
        return self._loop.run(self._stream.image())

    def images(self) -> list[events.Image]:
        """Waits for the job; returns its pictures in the order of their image indices.

        :raises DarkroomError: the job's error; `Cancelled` if the stream was closed early.
        """
        return self._loop.run(self._stream.images())

    def control_images(self) -> list[events.ControlImage]:
        """Waits for the job; returns its control maps in the order of their control indices.

        :raises DarkroomError: the job's error; `Cancelled` if the stream was closed early.
        """
        return self._loop.run(self._stream.control_images())

    def cancel(self) -> None:
        """Cancels the job on the server; readers of the stream get `Cancelled`.

        :raises DarkroomError: if the Cancel call for a detached job fails.
        """
        self._loop.run(self._stream.cancel())

    def _ipython_display_(self) -> None:
        notebook = Notebook()
        for picture in self._stream.made:
            notebook.show(picture)
        for event in self:
            notebook.show(event)

    def close(self) -> None:
        """Ends the stream, and the job unless its disconnect policy is "keep". Idempotent."""
        self._loop.call_soon(self._stream.close)


class Client(JobCalls[Stream]):
    """A client of a Darkroom server::

        with Client() as client:
            client.generate("a red circle on a blue background").image().save("circle.png")

    Thread-safe. Catalog methods return the records of `darkroom_client.catalog`.

    :param address: the server's HOST:PORT. Default: DARKROOM_ADDRESS, else 127.0.0.1:50051.
    :param options: `token`, `root_certificate`, `client_certificate`, `client_key`, `tls`, `retries`: see
        `darkroom_client.options.ConnectionOptions`.
    :raises InvalidOptions: if an argument is not valid.
    """

    @lists_keywords
    def __init__(self, address: str | None = None, **options: Unpack[ConnectionOptions]) -> None:
        refuse_after_fork()
        self._client = AsyncClient(address, **options)
        self._loop = shared_loop()

    @property
    def address(self) -> str:
        """The server's HOST:PORT."""
        return self._client.address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancels all calls and closes the connection, for good."""
        self._loop.run(self._client.close())

    def is_ready(self, timeout: float | None = 5.0) -> bool:
        """Whether the server makes pictures now: not while it starts, loads its models, stops or cannot be reached.

        :param timeout: for the answer. Seconds.
        """
        return self._loop.run(self._client.is_ready(timeout))

    def check_health(self, service: str = "darkroom.v1.ImageService", timeout: float | None = 5.0) -> None:
        """Asks for the server's health (grpc.health.v1), once. Needs no token.

        :param service: "darkroom.v1.ImageService": are pictures made now? "": does the process answer, and go on?
        :param timeout: for the answer. Seconds.
        :raises Unavailable: it is not serving; `ServerUnreachable` if it did not answer at all.
        :raises NotFound: the server has no such service.
        """
        self._loop.run(self._client.check_health(service, timeout))

    def wait_for_server(self, timeout: float | None = 60.0) -> None:
        """Waits until the server is ready.

        :param timeout: seconds; None: for ever.
        :raises Unavailable: it was not ready within the time; `ServerUnreachable` if it did not answer at all.
        """
        self._loop.run(self._client.wait_for_server(timeout))

    def cancel(self, request_id: str) -> bool:
        """Cancels a job. Returns False for a job that has already ended.

        :raises RequestNotFound: if there is no such job.
        """
        return self._loop.run(self._client.cancel(request_id))

    def server_load(self) -> catalog.ServerLoad:
        """What the server does now: its queue, its batches and its memory. Needs an operator's token.

        :raises DarkroomError: if the call fails.
        """
        return self._loop.run(self._client.server_load())

    def jobs(self, *, active_only: bool = False) -> list[catalog.Job]:
        """The server's active and kept jobs, newest first: one's own, or, with an operator's token, all.

        :param active_only: without those that have ended.
        :raises DarkroomError: if the call fails.
        """
        return self._loop.run(self._client.jobs(active_only=active_only))

    def job(self, request_id: str) -> catalog.Job:
        """One of these jobs, with its thumbnail.

        :raises RequestNotFound: if there is no such job.
        """
        return self._loop.run(self._client.job(request_id))

    def server_info(self) -> catalog.ServerInfo:
        """The server's version, devices, limits and plugins.

        :raises DarkroomError: if the call fails.
        """
        return self._loop.run(self._client.server_info())

    def models(self) -> list[catalog.Model]:
        """The server's models; `model` takes their names.

        :raises DarkroomError: if the call fails.
        """
        return self._loop.run(self._client.models())

    def tasks(self) -> list[catalog.Task]:
        """The server's tasks; `task` takes their names.

        :raises DarkroomError: if the call fails.
        """
        return self._loop.run(self._client.tasks())

    def schedulers(self) -> list[catalog.Scheduler]:
        """The server's noise schedulers; `scheduler` takes their names.

        :raises DarkroomError: if the call fails.
        """
        return self._loop.run(self._client.schedulers())

    def loras(self) -> list[catalog.Lora]:
        """The server's LoRAs; `loras` takes their names.

        :raises DarkroomError: if the call fails.
        """
        return self._loop.run(self._client.loras())

    def control_nets(self) -> list[catalog.ControlNet]:
        """The server's ControlNets; `controls` takes their names.

        :raises DarkroomError: if the call fails.
        """
        return self._loop.run(self._client.control_nets())

    def preprocessors(self) -> list[catalog.Preprocessor]:
        """The server's preprocessors of control maps; `preprocess` and `controls` take their names.

        :raises DarkroomError: if the call fails.
        """
        return self._loop.run(self._client.preprocessors())

    def load_model(
        self, model: str, on_progress: Callable[[events.Loading], object] | None = None, *, replicas: Iterable[str] = ()
    ) -> catalog.Model:
        """Loads a model before its first job. Needs an operator's token.

        :param on_progress: called with each Loading event, in another thread.
        :param replicas: of a cluster, by name: where it is loaded; by default at one.
        :raises ModelNotFound: if there is no such model.
        :raises DarkroomError: if the call fails.
        """
        return self._loop.run(self._client.load_model(model, on_progress, replicas=replicas))

    def unload_model(self, model: str, *, replicas: Iterable[str] = ()) -> int:
        """Unloads a model as soon as no job uses it. Returns the bytes freed. Needs an operator's token.

        :param replicas: of a cluster, by name: where it is unloaded; by default at all.
        :raises ModelNotFound: if there is no such model.
        """
        return self._loop.run(self._client.unload_model(model, replicas=replicas))

    def rescan_assets(self) -> list[catalog.AssetChange]:
        """Has the server look into its folders of LoRAs and embeddings now. Returns what has changed. Needs an
        operator's token.

        :raises DarkroomError: if the call fails.
        """
        return self._loop.run(self._client.rescan_assets())

    def _start(self, rpc: str, request: Any, timeout: float | None, *, detached: bool) -> Stream:
        return Stream(self._loop.run(self._start_in_loop(rpc, request, timeout, detached)), self._loop)

    async def _start_in_loop(self, rpc: str, request: Any, timeout: float | None, detached: bool) -> AsyncStream:
        return self._client._start(rpc, request, timeout, detached=detached)
