"""The client for ordinary, blocking code: `AsyncClient` and its streams, run by a background thread."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, Unpack

from darkroom.v1 import catalog_service_pb2 as catalog
from darkroom_client import events
from darkroom_client._aio import AsyncClient
from darkroom_client._fork import refuse_after_fork
from darkroom_client._job_calls import JobCalls
from darkroom_client._loop import BackgroundLoop, shared_loop
from darkroom_client._stream import AsyncStream
from darkroom_client.options import ConnectionOptions


class Stream:
    """A job's events as they happen.

    Iterate over it, or ask for the picture at once::

        for event in client.generate("a red circle"): ...
        picture = client.generate("a red circle").image()

    The job runs from the moment of the call. It is stopped on the server when the stream is closed, when its loop is
    left early (by `break` or an exception, Ctrl-C included), and when the stream is dropped. To go on reading after a
    `break`, iterate over a name of your own: `events = iter(stream)`.
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
        """The event by which the server accepted the job; None until it is read."""
        return self._stream.accepted

    @property
    def completed(self) -> events.Completed | None:
        """The event by which the job ended; None until it is read."""
        return self._stream.completed

    def __iter__(self) -> Iterator[events.Event]:
        try:
            while (event := self._loop.run(self._stream.next_event())) is not None:
                yield event
        finally:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def image(self) -> events.Image:
        """Waits for the job and returns its picture; of several, the first.

        :raises DarkroomError: the job's own error, or `Cancelled` when the stream was closed before.
        """
        return self._loop.run(self._stream.image())

    def images(self) -> list[events.Image]:
        """Waits for the job and returns all its pictures, by image index.

        :raises DarkroomError: the job's own error, or `Cancelled` when the stream was closed before.
        """
        return self._loop.run(self._stream.images())

    def control_images(self) -> list[events.ControlImage]:
        """Waits for the job and returns the control maps that it sent, by control index.

        :raises DarkroomError: the job's own error, or `Cancelled` when the stream was closed before.
        """
        return self._loop.run(self._stream.control_images())

    def cancel(self) -> None:
        """Stops the job on the server; whoever reads the stream gets `Cancelled`.

        :raises DarkroomError: when a job that outlives its stream cannot be stopped.
        """
        self._loop.run(self._stream.cancel())

    def close(self) -> None:
        """Ends the stream, and with it the job unless its disconnect policy is "keep". May be called again."""
        self._loop.call_soon(self._stream.close)


class Client(JobCalls[Stream]):
    """A client of a Darkroom server::

        with Client() as client:
            client.generate("a red circle on a blue background").image().save("circle.png")

    Any number of threads may use it. What the lists return are messages of `darkroom.v1`.

    :param address: HOST:PORT of the server; else DARKROOM_ADDRESS, else 127.0.0.1:50051.
    :param options: `token`, `root_certificate` and `tls`, as `darkroom_client.options.ConnectionOptions` has them.
    """

    def __init__(self, address: str | None = None, **options: Unpack[ConnectionOptions]) -> None:
        refuse_after_fork()
        self._client = AsyncClient(address, **options)
        self._loop = shared_loop()

    @property
    def address(self) -> str:
        """Where the server is, HOST:PORT."""
        return self._client.address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all calls and closes the connection."""
        self._loop.run(self._client.close())

    def cancel(self, request_id: str) -> bool:
        """Stops a job; False when it had ended already.

        :raises RequestNotFound: when there is no such job.
        """
        return self._loop.run(self._client.cancel(request_id))

    def server_info(self) -> catalog.GetServerInfoResponse:
        """Version, devices, limits and plugins of the server.

        :raises DarkroomError: when the call fails.
        """
        return self._loop.run(self._client.server_info())

    def models(self) -> list[catalog.Model]:
        """The models that `model` can name.

        :raises DarkroomError: when the call fails.
        """
        return self._loop.run(self._client.models())

    def tasks(self) -> list[catalog.Task]:
        """The tasks that `task` can name.

        :raises DarkroomError: when the call fails.
        """
        return self._loop.run(self._client.tasks())

    def schedulers(self) -> list[catalog.Scheduler]:
        """The noise schedulers that `scheduler` can name.

        :raises DarkroomError: when the call fails.
        """
        return self._loop.run(self._client.schedulers())

    def loras(self) -> list[catalog.Lora]:
        """The LoRAs that `loras` can name.

        :raises DarkroomError: when the call fails.
        """
        return self._loop.run(self._client.loras())

    def control_nets(self) -> list[catalog.ControlNet]:
        """The ControlNets that `controls` can name.

        :raises DarkroomError: when the call fails.
        """
        return self._loop.run(self._client.control_nets())

    def preprocessors(self) -> list[catalog.Preprocessor]:
        """The preprocessors that `preprocess` and `controls` can name.

        :raises DarkroomError: when the call fails.
        """
        return self._loop.run(self._client.preprocessors())

    def load_model(self, model: str, on_progress: Callable[[events.Loading], object] | None = None) -> catalog.Model:
        """Makes a model resident ahead of its first job; for operators. `on_progress` is called in another thread.

        :raises ModelNotFound: when there is no such model.
        :raises DarkroomError: when the call fails.
        """
        return self._loop.run(self._client.load_model(model, on_progress))

    def unload_model(self, model: str) -> int:
        """Frees a model's memory once no job uses it, and returns how many bytes that were; for operators.

        :raises ModelNotFound: when there is no such model.
        """
        return self._loop.run(self._client.unload_model(model))

    def _start(self, rpc: str, request: Any, timeout: float | None, *, outlives: bool) -> Stream:
        return Stream(self._loop.run(self._started(rpc, request, timeout, outlives)), self._loop)

    async def _started(self, rpc: str, request: Any, timeout: float | None, outlives: bool) -> AsyncStream:
        return self._client._start(rpc, request, timeout, outlives=outlives)
