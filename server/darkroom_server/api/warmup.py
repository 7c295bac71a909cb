"""Warm-up: runs the first step for batches of 1, 2, 4, … pictures, so that compilation, and on CUDA the choice of
kernels for each number of rows, happens while a model loads."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import TYPE_CHECKING

from darkroom.v1 import image_service_pb2, parameters_pb2
from darkroom_server.api.validation.request import check_generate
from darkroom_server.jobs.events import Ended, Event, StepDone
from darkroom_server.jobs.job import Job
from darkroom_server.networks import compiled

if TYPE_CHECKING:
    from darkroom_server.engine.engine import Engine
    from darkroom_server.jobs.planner import Planner
    from darkroom_server.models.catalog import Catalog
    from darkroom_server.models.model import Model

log = logging.getLogger(__name__)


def wants_warm_up(model: Model) -> bool:
    """Whether a model runs its first steps while it loads. With offload a step is slow, and its kernels the least."""
    settings, device = model.settings, model.family.device
    return settings.compile == "load" or (device.type == "cuda" and settings.offload == "none")


async def warm_up(model: str, catalog: Catalog, planner: Planner, engine: Engine, compiling: bool) -> None:
    """Run the first step of 1, 2, 4, … pictures with a loaded model's defaults; with `compiling` each time until the
    compiler is idle."""
    count = 1
    while count <= min(catalog.limits.max_images, catalog.limits.max_batch_rows // 2):
        try:
            await _first_step(_message(model, count), catalog, planner, engine)
        except Exception as error:  # for instance a model without text to image
            log.warning("model %s: no warm-up with %d pictures at once: %s", model, count, error)
            return
        while compiling and compiled.is_compiling():  # noqa: ASYNC110  # polled: a waiter thread would block the shutdown
            await asyncio.sleep(0.1)
        count *= 2


async def _first_step(
    message: image_service_pb2.GenerateRequest, catalog: Catalog, planner: Planner, engine: Engine
) -> None:
    job, released = Job(message.request_id, "", arrived=time.monotonic(), held_bytes=0), asyncio.Event()
    job.plan = await planner.plan(await planner.read(check_generate, message, catalog))
    engine.submit(job, then=released.set)
    event: Event | None = None
    while not isinstance(event, StepDone | Ended):
        _, event = await job.mailbox.get()
    engine.cancel(job)
    await released.wait()
    if isinstance(event, Ended) and event.error is not None:
        raise event.error


def _message(model: str, count: int) -> image_service_pb2.GenerateRequest:
    parameters = parameters_pb2.Parameters(model=model, num_images=count)
    preview = parameters_pb2.PreviewOptions(mode=parameters_pb2.PREVIEW_MODE_OFF)
    return image_service_pb2.GenerateRequest(request_id=uuid.uuid4().hex, parameters=parameters, preview=preview)
