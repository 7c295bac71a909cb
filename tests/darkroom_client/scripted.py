"""A server with scripted answers, behind a real socket: what the client makes of them is what is tested here."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import grpc
import PIL.Image
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from darkroom.v1 import (
    catalog_service_pb2,
    catalog_service_pb2_grpc,
    events_pb2,
    image_service_pb2,
    image_service_pb2_grpc,
    parameters_pb2,
)

Script = Callable[[Any, grpc.ServicerContext], Iterable[events_pb2.JobEvent]]


def png(size: int = 64, color: str = "red") -> bytes:
    buffer = BytesIO()
    PIL.Image.new("RGB", (size, size), color).save(buffer, "PNG")
    return buffer.getvalue()


class Events:
    """Makes a job's events, numbered as a server does."""

    def __init__(self, request_id: str = "job") -> None:
        self.request_id = request_id
        self.sequence = 0

    def _event(self, **body: Any) -> events_pb2.JobEvent:
        self.sequence += 1
        return events_pb2.JobEvent(request_id=self.request_id, sequence=self.sequence, **body)

    def accepted(self, steps: int = 3, seeds: tuple[int, ...] = (7,)) -> events_pb2.JobEvent:
        parameters = parameters_pb2.Parameters(prompt="a red circle", num_inference_steps=steps, seed=seeds[0])
        return self._event(accepted=events_pb2.AcceptedEvent(parameters=parameters, seeds=seeds, step_count=steps))

    def queued(self, position: int) -> events_pb2.JobEvent:
        return self._event(queued=events_pb2.QueuedEvent(position=position))

    def step(self, step: int, steps: int = 3, image: int = 0) -> events_pb2.JobEvent:
        body = events_pb2.StepEvent(
            image_index=image, step=step, step_count=steps, timestep=999 / step, elapsed_seconds=step / 10, batch_rows=2
        )
        return self._event(step=body)

    def preview(self, step: int, image: int = 0, decoder: int = 4) -> events_pb2.JobEvent:
        body = events_pb2.PreviewEvent(image_index=image, step=step, decoder=decoder)
        body.image_bytes, body.media_type, body.width, body.height = png(), "image/png", 64, 64
        return self._event(preview=body)

    def image(self, data: bytes | None = None, total: int = 0, image: int = 0, seed: int = 7) -> events_pb2.JobEvent:
        data = png() if data is None else data
        body = events_pb2.ImageEvent(
            image_index=image,
            image_bytes=data,
            media_type="image/png",
            width=64,
            height=64,
            seed=seed,
            safety=1,
            total_bytes=total or len(data),
        )
        body.metadata.update({"darkroom": "0.1.0", "parameters": {"prompt": "a red circle", "seed": str(seed)}})
        return self._event(image=body)

    def chunk(self, offset: int, data: bytes, image: int = 0) -> events_pb2.JobEvent:
        return self._event(chunk=events_pb2.ChunkEvent(image_index=image, offset=offset, data=data))

    def control_image(self, control: int = 0, data: bytes | None = None) -> events_pb2.JobEvent:
        data = png(color="white") if data is None else data
        body = events_pb2.ControlImageEvent(
            control_index=control, image_bytes=data, media_type="image/png", width=64, height=64, total_bytes=len(data)
        )
        return self._event(control_image=body)

    def completed(self, *warnings: str) -> events_pb2.JobEvent:
        timings = events_pb2.Timings(denoise_seconds=1.5, total_seconds=2.0)
        return self._event(completed=events_pb2.CompletedEvent(timings=timings, warnings=warnings))

    def whole_job(self, steps: int = 3, seed: int = 7) -> list[events_pb2.JobEvent]:
        """A job of one image with a preview at each step."""
        middle = [make(step) for step in range(1, steps + 1) for make in (lambda n: self.step(n, steps), self.preview)]
        return [self.accepted(steps, (seed,)), *middle, self.image(seed=seed), self.completed()]


def abort(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    reason: str = "",
    message: str = "no",
    violations: Iterable[tuple[str, str]] = (),
    retry_after: float | None = None,
) -> None:
    """Ends the call as the server does, with rich details."""
    details: list[Any] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="darkroom"))
    bad = [error_details_pb2.BadRequest.FieldViolation(field=name, description=text) for name, text in violations]
    if bad:
        details.append(error_details_pb2.BadRequest(field_violations=bad))
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = [any_pb2.Any() for _ in details]
    for target, detail in zip(packed, details, strict=True):
        target.Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    context.abort_with_status(rpc_status.to_status(status))


@dataclass
class ScriptedServer(
    image_service_pb2_grpc.ImageServiceServicer,
    catalog_service_pb2_grpc.CatalogServiceServicer,
):
    """Streams what `script` yields for a request, and keeps what was asked of it."""

    address: str = ""
    script: Script = lambda request, context: Events(request.request_id).whole_job()
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    cancel_calls: list[str] = field(default_factory=list)
    active: set[str] = field(default_factory=set)  # request ids of running calls
    ended: list[str] = field(default_factory=list)  # request ids of calls that ended
    max_request_bytes: int = 0  # the limit that GetServerInfo tells; 0: none
    refusals: int = 0  # of the next calls of ListModels and LoadModel
    endless_steps: int = 0  # sent by `endless`
    changed: threading.Condition = field(default_factory=threading.Condition)  # guards and announces all of these

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from self._stream(request, context, image_service_pb2.GenerateResponse)

    def Edit(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from self._stream(request, context, image_service_pb2.EditResponse)

    def Watch(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from self._stream(request, context, image_service_pb2.WatchResponse)

    def Preprocess(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from self._stream(request, context, image_service_pb2.PreprocessResponse)

    def _stream(self, request: Any, context: grpc.ServicerContext, response: Any) -> Iterator[Any]:
        with self.changed:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self.active.add(request.request_id)
            self.changed.notify_all()

        def on_end() -> None:
            with self.changed:
                self.active.discard(request.request_id)
                self.ended.append(request.request_id)
                self.changed.notify_all()

        if not context.add_callback(on_end):
            on_end()
            return
        for event in self.script(request, context):
            yield response(event=event)

    def Cancel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.cancel_calls.append(request.request_id)
        return image_service_pb2.CancelResponse(cancelled=request.request_id != "over")

    def GetServerInfo(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.metadata.append(dict(context.invocation_metadata()))
        strength = {"type": "number", "default": 0.5, "minimum": 0, "maximum": 1, "description": "How dark."}
        plugin = catalog_service_pb2.Plugin(name="vignette", version="1", hooks=["darkroom_finishers"])
        plugin.extensions_schema.update({"properties": {"strength": strength}})
        return catalog_service_pb2.GetServerInfoResponse(
            version="0.1.0",
            api_version="darkroom.v1",
            devices=[catalog_service_pb2.Device(id="cpu", name="CPU")],
            limits=catalog_service_pb2.ServerLimits(max_request_bytes=self.max_request_bytes),
            plugins=[plugin],
            default_model="shapes",
        )

    def _refuse(self, context: grpc.ServicerContext) -> None:
        if self.refusals:
            self.refusals -= 1
            abort(context, grpc.StatusCode.UNAVAILABLE, retry_after=0.01)

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._refuse(context)
        shapes = catalog_service_pb2.Model(
            name="shapes",
            is_default=True,
            family="sd",
            default_width=64,
            default_height=64,
            default_num_inference_steps=25,
            default_scheduler="ddim",
            preview_modes=[1, 2, 4],
        )
        return catalog_service_pb2.ListModelsResponse(models=[shapes])

    def ListSchedulers(self, request: Any, context: grpc.ServicerContext) -> Any:
        ranges = {"ddim": (1, 1000), "euler": (1, 1000), "lcm": (1, 20)}
        schedulers = [
            catalog_service_pb2.Scheduler(name=name, min_steps=low, max_steps=high, aliases=[f"{name}-alias"])
            for name, (low, high) in ranges.items()
        ]
        return catalog_service_pb2.ListSchedulersResponse(schedulers=schedulers)

    def ListControlNets(self, request: Any, context: grpc.ServicerContext) -> Any:
        nets = [
            catalog_service_pb2.ControlNet(name="v1.1/canny", preprocessor="canny", models=["shapes"]),
            catalog_service_pb2.ControlNet(name="depth", models=["shapes"]),
        ]
        return catalog_service_pb2.ListControlNetsResponse(control_nets=nets)

    def ListLoras(self, request: Any, context: grpc.ServicerContext) -> Any:
        return catalog_service_pb2.ListLorasResponse()

    def LoadModel(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._refuse(context)
        if request.model != "shapes":
            abort(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
        loading = events_pb2.LoadingEvent(model="shapes", phase=2, bytes_done=1, bytes_total=2)
        yield catalog_service_pb2.LoadModelResponse(loading=loading)
        yield catalog_service_pb2.LoadModelResponse(model=catalog_service_pb2.Model(name="shapes", weight_bytes=2))

    def UnloadModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        return catalog_service_pb2.UnloadModelResponse(freed_bytes=2)

    def endless(self, request: Any, context: grpc.ServicerContext) -> Iterator[events_pb2.JobEvent]:
        """A script of a job that only ends by being cancelled."""
        events = Events(request.request_id)
        yield events.accepted(10**6)
        for step in range(1, 10**6):
            yield events.step(step, 10**6)
            with self.changed:
                self.endless_steps += 1
                self.changed.notify_all()
            time.sleep(0.002)
            if not context.is_active():
                return

    def wait_started(self, request_id: str) -> None:
        """Waits until the call of a job has arrived."""
        self.wait(lambda: any(request.request_id == request_id for request in self.requests))

    def wait_ended(self, request_id: str) -> None:
        """Waits until the call of a job has ended."""
        self.wait(lambda: request_id in self.ended)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Waits until a condition on the server's attributes holds.

        :raises TimeoutError: if it does not come to hold.
        """
        with self.changed:
            if not self.changed.wait_for(condition, timeout=30):
                raise TimeoutError(f"running: {sorted(self.active)}, ended: {self.ended}")
