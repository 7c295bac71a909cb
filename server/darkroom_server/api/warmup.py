"""Pictures that nobody asked for, so that no job waits for what only the first of its kind costs."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from darkroom.v1 import image_service_pb2, parameters_pb2
from darkroom_server.api.validation.request import check_generate
from darkroom_server.jobs.events import Ended, StepDone
from darkroom_server.jobs.job import Job
from darkroom_server.networks import compiled

if TYPE_CHECKING:
    from darkroom_server.config.settings import Limits
    from darkroom_server.engine.engine import Engine

log = logging.getLogger(__name__)

MakePlan = Callable[[Job, Any, Any], Awaitable[None]]  # of ImageService


async def rehearse(model: str, limits: Limits, make_plan: MakePlan, engine: Engine) -> None:
    """Have one, two, four and more pictures of a loaded model's defaults take their first step, each time until the
    compiler has nothing to do any more."""
    count = 1
    while count <= min(limits.max_images, limits.max_batch_rows // 2):
        try:
            await _begin(model, count, make_plan, engine)
        except Exception as error:  # of a model that makes none without a picture to begin with, for instance
            log.warning("model %s: no rehearsal of %d pictures at once: %s", model, count, error)
            return
        while compiled.at_work():  # noqa: ASYNC110  # a thread that waited for it would hold up a server that stops
            await asyncio.sleep(0.1)
        count *= 2


async def _begin(model: str, count: int, make_plan: MakePlan, engine: Engine) -> None:
    job, gone = Job(uuid.uuid4().hex, "", arrived=time.monotonic(), held_bytes=0), asyncio.Event()
    await make_plan(job, check_generate, _message(job.request_id, model, count))
    engine.submit(job)
    event = None
    while not isinstance(event, StepDone | Ended):
        event = await job.mailbox.get()
    engine.cancel(job, then=gone.set)
    await gone.wait()
    if isinstance(event, Ended) and event.error is not None:
        raise event.error


def _message(request_id: str, model: str, count: int) -> image_service_pb2.GenerateRequest:
    parameters = parameters_pb2.Parameters(model=model, num_images=count)
    preview = parameters_pb2.PreviewOptions(mode=parameters_pb2.PREVIEW_MODE_OFF)
    return image_service_pb2.GenerateRequest(request_id=request_id, parameters=parameters, preview=preview)
