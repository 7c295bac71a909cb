"""A server in a thread, and a plain gRPC client that collects what it streams."""

import asyncio
import concurrent.futures
import contextlib
import gc
import io
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.struct_pb2 import Struct
from grpc_status import rpc_status
from PIL import Image

from darkroom.v1 import catalog_service_pb2_grpc, events_pb2, image_service_pb2, image_service_pb2_grpc, parameters_pb2
from darkroom_plugins.manager import load_plugins

T = TypeVar("T")


class RunningServer:
    """The real server, on a free port, with an event loop and an engine in threads of their own."""

    def __init__(self, plugins: Mapping[str, object] | None = None, replicas: Any = None, **settings: Any) -> None:
        """`replicas`: what opens those of an edge; with the setting `engine`, which "ray" makes an edge, too."""
        self._plugins, self._replicas = plugins, replicas
        # One thread: tests run on all processors at once, and the last bits must not depend on how busy these are.
        self._settings = {"listen": "127.0.0.1:0", "drain_seconds": 0.0, "threads": 1, **settings}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "RunningServer":
        self._thread.start()
        try:
            self.app = self.begin(self._start()).result(300)  # a cluster takes long
        except BaseException:
            self._stop_loop()
            raise
        self.address = self.app.address
        self.channel = grpc.insecure_channel(self.address)
        self.images = image_service_pb2_grpc.ImageServiceStub(self.channel)
        self.catalog = catalog_service_pb2_grpc.CatalogServiceStub(self.channel)
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self.run(self.app.stop())
        self._stop_loop()

    async def _start(self) -> Any:
        from darkroom_server.config.settings import Settings

        settings, app = Settings(**self._settings), None
        if self._replicas is None and settings.engine == "local":
            from darkroom_server.app import App

            app = await App.open(settings, load_plugins(extra=self._plugins))
        else:
            from darkroom_server.cluster.edge import Edge

            app = await Edge.open(settings, self._replicas)
        await app.start()
        return app

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        """Begin to run it on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run on the server's event loop."""
        return self.begin(coroutine).result(60)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The event loop stands still, as that of a process that is stopped; the connections stay."""
        thaw = threading.Event()
        self._loop.call_soon_threadsafe(thaw.wait)
        try:
            yield
        finally:
            thaw.set()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The engine steps nothing, so that all that is asked for meanwhile begins together."""
        pause = self.app.engine.paused()
        self.run(pause.__aenter__())
        try:
            yield
        finally:
            self.run(pause.__aexit__(None, None, None))

    def together(self, requests: Sequence[Any]) -> list["Stream"]:
        """The streams of requests that the engine gets between two ticks; none is read to its end."""
        with self.paused():
            streams = [self.start(request) for request in requests]
            for stream in streams:
                stream.read_until("accepted")
            while self.app.engine.pending < len(streams):  # until all have what they need
                time.sleep(0.001)
        return streams

    def start(self, request: Any, timeout: float = 60) -> "Stream":
        """Begin a Generate or an Edit, by the request's kind, without reading yet."""
        generates = isinstance(request, image_service_pb2.GenerateRequest)
        return Stream((self.images.Generate if generates else self.images.Edit)(request, timeout=timeout))

    def generate(self, **parameters: Any) -> "Stream":
        """Make pictures, and read the whole stream."""
        return self.start(generate_request(**parameters)).read()

    def edit(self, **parameters: Any) -> "Stream":
        """Change a picture, and read the whole stream."""
        return self.start(edit_request(**parameters)).read()


def generate_request(**parameters: Any) -> image_service_pb2.GenerateRequest:
    """A request; what is not a field of GenerateRequest is one of Parameters. `scheduler` may be a name."""
    return _request(image_service_pb2.GenerateRequest, parameters)


def edit_request(**parameters: Any) -> image_service_pb2.EditRequest:
    """The same for EditRequest."""
    return _request(image_service_pb2.EditRequest, parameters)


def alike(one: Any, other: Any) -> bool:
    """Whether two jobs that share their parameters made the same picture: up to rounding, as a job's rows may have run
    beside others, and its first steps without the scheduler's table. (Only `deterministic` jobs promise more.)"""
    one, other = (np.asarray(each, int) for each in (one, other))
    return one.shape == other.shape and bool(np.abs(one - other).max() <= 2)


def png(pixels: Any) -> bytes:
    """A PNG of (h, w, 3) or (h, w) uint8, or of a PIL image."""
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, "PNG")
    return file.getvalue()


def _request(message: Any, parameters: dict[str, Any]) -> Any:
    fields = message.DESCRIPTOR.fields_by_name
    own = {name: parameters.pop(name) for name in list(parameters) if name in fields}
    if isinstance(parameters.get("scheduler"), str):
        parameters["scheduler"] = parameters_pb2.SchedulerSpec(name=parameters["scheduler"])
    for name, values in parameters.pop("extensions", {}).items():
        parameters.setdefault("extensions", {})[name] = struct(values)
    return message(parameters=parameters_pb2.Parameters(**parameters), **own)


def struct(values: Mapping[str, Any]) -> Struct:
    result = Struct()
    result.update(values)
    return result


def spec(name: str, **fields: Any) -> parameters_pb2.SchedulerSpec:
    options = struct(fields.pop("options")) if "options" in fields else None
    return parameters_pb2.SchedulerSpec(name=name, options=options, **fields)


def preview(**fields: Any) -> dict[str, Any]:
    return {"preview": parameters_pb2.PreviewOptions(**fields)}


def output(**fields: Any) -> dict[str, Any]:
    return {"output": parameters_pb2.OutputOptions(**fields)}


@dataclass
class Stream:
    """What came of one call."""

    call: Any
    events: list[events_pb2.JobEvent] = field(default_factory=list)

    def read(self) -> "Stream":
        """Read to the end. :raises grpc.RpcError: it did not end well"""
        for response in self.call:
            self.events.append(response.event)
        return self

    def read_until(self, kind: str) -> Any:
        """Read up to the first event of this kind, and return it."""
        for response in self.call:
            self.events.append(response.event)
            if response.event.WhichOneof("event") == kind:
                return getattr(response.event, kind)
        raise AssertionError(f"the stream ended without {kind}")

    @property
    def kinds(self) -> list[str]:
        return [event.WhichOneof("event") for event in self.events]

    def of(self, kind: str) -> list[Any]:
        """All events of a kind."""
        return [getattr(event, kind) for event in self.events if event.WhichOneof("event") == kind]

    def files(self) -> dict[int, bytes]:
        """Each image's whole file, by index."""
        files = {image.image_index: image.image_bytes for image in self.of("image")}
        for chunk in self.of("chunk"):
            assert len(files[chunk.image_index]) == chunk.offset
            files[chunk.image_index] += chunk.data
        return files

    def pictures(self) -> list[Image.Image]:
        """All images, in order."""
        return [Image.open(io.BytesIO(data)) for _, data in sorted(self.files().items())]

    @property
    def pixels(self) -> np.ndarray:
        """(images, height, width, 3), int so that differences do not wrap."""
        return np.stack([np.asarray(picture.convert("RGB"), dtype=int) for picture in self.pictures()])


def details(error: grpc.RpcError) -> tuple[str, dict[str, str], float | None]:
    """An error's reason, its violations by field, and the seconds after which to try again."""
    from google.rpc import error_details_pb2

    reason, violations, retry = "", {}, None
    for detail in rpc_status.from_call(error).details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            assert info.domain == "darkroom"
            reason = info.reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations = {v.field: v.description for v in bad.field_violations}
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            info = error_details_pb2.RetryInfo()
            detail.Unpack(info)
            retry = info.retry_delay.ToTimedelta().total_seconds()
    return reason, violations, retry


@dataclass
class Refused:
    """How a call failed."""

    code: grpc.StatusCode
    reason: str
    violations: dict[str, str]
    retry: float | None
    trailers: dict[str, Any]
    message: str

    @property
    def paths(self) -> set[str]:
        return set(self.violations)


def refused(call: Callable[[], Any]) -> Refused:
    """Make a call that must fail. A status of gRPC's own has no details."""
    import pytest  # here, as the benchmarks use this module, too

    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    trailers = dict(error.trailing_metadata() or ())
    known = details(error) if "grpc-status-details-bin" in trailers else ("", {}, None)
    return Refused(error.code(), *known, trailers, error.details())


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until this is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.002)


def alive(*kinds: type) -> int:
    """How many objects of these classes are in memory."""
    gc.collect()
    return sum(type(each) in kinds for each in gc.get_objects())


def settle(server: RunningServer) -> None:
    """Wait until the last job's end has reached the engine, and nothing is left of it."""
    server.run(asyncio.wait_for(server.app.jobs.idle(), 20))
    server.run(asyncio.wait_for(server.app.engine.call(lambda: None), 20))
    assert server.app.jobs.active_jobs == 0
    assert server.app.engine.idle
