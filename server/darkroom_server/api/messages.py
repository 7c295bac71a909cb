"""Conversion of engine events to protobuf messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.json_format import ParseDict

from darkroom.v1 import events_pb2, parameters_pb2
from darkroom_plugins.request import PreviewMode
from darkroom_plugins.request_json import parameters_json
from darkroom_plugins.sample import Picture
from darkroom_server.jobs.events import Accepted, ControlMade, Ended, PreviewMade, Queued, StepDone
from darkroom_server.jobs.job import Job
from darkroom_server.models.residency import Loading
from darkroom_server.pictures.encode import MEDIA_TYPES, encode_map

VERDICTS: dict[Any, Any] = {
    "passed": events_pb2.SAFETY_VERDICT_PASSED,
    "flagged": events_pb2.SAFETY_VERDICT_FLAGGED,
    "blocked": events_pb2.SAFETY_VERDICT_BLOCKED,
}


def preview_mode(mode: PreviewMode) -> Any:
    """The enum value of a mode."""
    return parameters_pb2.PreviewMode.Value("PREVIEW_MODE_" + mode.upper().replace("-", "_"))


def _format(name: str) -> Any:
    return parameters_pb2.ImageFormat.Value("IMAGE_FORMAT_" + name.upper())


def accepted(event: Accepted, job: Job) -> events_pb2.AcceptedEvent:
    """The resolved request."""
    request, preview, output = job.request, job.request.preview, job.request.output
    fields = parameters_json(request, request.seed) | {"num_images": request.num_images}
    return events_pb2.AcceptedEvent(
        parameters=ParseDict(fields, parameters_pb2.Parameters()),
        seeds=request.seeds,
        step_count=job.plan.step_count,
        preview=parameters_pb2.PreviewOptions(
            mode=preview_mode(preview.mode),
            every_n_steps=preview.every_n_steps,
            min_interval_seconds=preview.min_interval_seconds,
            max_edge=preview.max_edge,
            format=_format(preview.format),
        ),
        output=parameters_pb2.OutputOptions(
            format=_format(output.format), quality=output.quality, embed_metadata=output.embed_metadata
        ),
        estimated_wait_seconds=event.estimated_wait,
        estimated_end_seconds=event.estimated_end,
    )


def queued(event: Queued) -> events_pb2.QueuedEvent:
    """A waiting job's position."""
    return events_pb2.QueuedEvent(
        position=event.position,
        estimated_wait_seconds=event.estimated_wait,
        estimated_end_seconds=event.estimated_end,
    )


def loading(event: Loading) -> events_pb2.LoadingEvent:
    """Progress of loading a model or asset that a job waits for."""
    phase: Any = "LOADING_PHASE_" + event.phase.upper()
    return events_pb2.LoadingEvent(
        model=event.model,
        component=event.component,
        phase=phase,
        bytes_done=event.bytes_done,
        bytes_total=event.bytes_total,
    )


def step(event: StepDone) -> events_pb2.StepEvent:
    """A finished step."""
    return events_pb2.StepEvent(
        image_index=event.image_index,
        step=event.step,
        step_count=event.step_count,
        timestep=event.timestep,
        sigma=event.sigma,
        elapsed_seconds=event.elapsed,
        eta_seconds=event.eta,
        batch_rows=event.batch_rows,
    )


def preview(event: PreviewMade, job: Job, data: bytes, size: tuple[int, int]) -> events_pb2.PreviewEvent:
    """An encoded preview."""
    return events_pb2.PreviewEvent(
        image_index=event.image_index,
        step=event.step,
        image_bytes=data,
        media_type=MEDIA_TYPES[job.request.preview.format],
        width=size[0],
        height=size[1],
        decoder=preview_mode(event.decoder),
    )


def image(index: int, picture: Picture, data: bytes, job: Job, chunk_bytes: int) -> Iterator[dict[str, Any]]:
    """A finished picture: the `image` event, then its `chunk` events."""
    height, width, _ = picture.pixels.shape
    first = events_pb2.ImageEvent(
        image_index=index,
        image_bytes=data[:chunk_bytes],
        media_type=MEDIA_TYPES[job.request.output.format],
        width=width,
        height=height,
        seed=picture.seed,
        total_bytes=len(data),
        safety=VERDICTS.get(picture.findings.get("safety")),
    )
    ParseDict(picture.metadata, first.metadata)
    yield {"image": first}
    yield from _chunks(data, chunk_bytes, image_index=index)


def control_image(event: ControlMade, chunk_bytes: int) -> Iterator[dict[str, Any]]:
    """A control map: the `control_image` event, then its `chunk` events."""
    data, (height, width) = encode_map(event.pixels, event.format), event.pixels.shape[:2]
    yield {
        "control_image": events_pb2.ControlImageEvent(
            control_index=event.control_index,
            image_bytes=data[:chunk_bytes],
            media_type=MEDIA_TYPES[event.format],
            width=width,
            height=height,
            preprocessor=event.preprocessor,
            total_bytes=len(data),
        )
    }
    yield from _chunks(data, chunk_bytes, control_index=event.control_index)


def _chunks(data: bytes, chunk_bytes: int, **target: int) -> Iterator[dict[str, Any]]:
    for offset in range(chunk_bytes, len(data), chunk_bytes):
        part = data[offset : offset + chunk_bytes]
        yield {"chunk": events_pb2.ChunkEvent(**target, offset=offset, data=part)}


def took(seconds: float) -> events_pb2.CompletedEvent:
    """The end of a call without a job."""
    return events_pb2.CompletedEvent(timings=events_pb2.Timings(total_seconds=seconds))


def completed(event: Ended, job: Job, encode_seconds: float, now: float) -> events_pb2.CompletedEvent:
    """The successful end of a job."""
    timings = events_pb2.Timings(
        queue_seconds=event.timings.queue,
        load_seconds=event.timings.load,
        encode_prompt_seconds=event.timings.encode_prompt,
        denoise_seconds=event.timings.denoise,
        decode_seconds=event.timings.decode + encode_seconds,
        total_seconds=now - job.arrived,
    )
    approximations = (*job.plan.model.settings.approximations, *job.request.approximations)
    warnings = (*event.warnings, *job.warnings)
    return events_pb2.CompletedEvent(timings=timings, warnings=warnings, approximations=approximations)
