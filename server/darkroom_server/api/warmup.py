"""Warm-up: runs the first step for each number of rows that batches have, so that compilation, and on CUDA the choice
of kernels, happens while a model loads."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from darkroom.v1 import image_service_pb2, parameters_pb2
from darkroom_server.api.validation.request import check_generate
from darkroom_server.errors import Cancelled
from darkroom_server.jobs.events import Ended, Event, StepDone
from darkroom_server.jobs.job import Job
from darkroom_server.networks import compiled

if TYPE_CHECKING:
    from darkroom_server.config.settings import Limits
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
    """Run the first step with a loaded model's defaults, in each of its row buckets, else of 1, 2, 4, … pictures; with
    `compiling` each time until the compiler is idle."""

    async def plan(**parameters: float) -> Job:
        message = _message(model, **parameters)
        job = Job(message.request_id, "", arrived=time.monotonic(), held_bytes=0)
        job.plan = await planner.plan(await planner.read(check_generate, message, catalog))
        return job

    try:
        first = (await plan()).plan
        for parameters in _batches(len(first.prompts), first.row_buckets, catalog.limits):
            await _first_step(await plan(**parameters), engine)
            while compiling and compiled.is_compiling():  # noqa: ASYNC110  # polled: a thread would block the shutdown
                await asyncio.sleep(0.1)
    except Exception as error:  # for instance a model without text to image
        log.warning("model %s: no warm-up, or only a part of it: %s", model, error)


def _batches(rows: int, buckets: Sequence[int], limits: Limits) -> Iterator[Mapping[str, float]]:
    """The parameters of jobs that fill the buckets, the smallest first, at `rows` a picture. More rows than
    `max_images` have are not warmed up."""
    most = limits.max_batch_rows
    for bucket in buckets or [rows << power for power in range(most.bit_length()) if rows << power <= most]:
        images, rest = divmod(bucket, rows)
        parameters = {"num_images": bucket, "guidance_scale": 1.0} if rest else {"num_images": images}
        if parameters["num_images"] <= limits.max_images:
            yield parameters


async def _first_step(job: Job, engine: Engine) -> None:
    released = asyncio.Event()
    engine.submit(job, then=released.set)
    event: Event | None = None
    while not isinstance(event, StepDone | Ended):
        _, event = await job.mailbox.get()
    engine.cancel(job, Cancelled("the warm-up has had its first step"))
    await released.wait()
    if isinstance(event, Ended) and event.error is not None:
        raise event.error


def _message(model: str, **values: Any) -> image_service_pb2.GenerateRequest:
    parameters = parameters_pb2.Parameters(model=model, **values)
    preview = parameters_pb2.PreviewOptions(mode=parameters_pb2.PREVIEW_MODE_OFF)
    return image_service_pb2.GenerateRequest(request_id=uuid.uuid4().hex, parameters=parameters, preview=preview)
