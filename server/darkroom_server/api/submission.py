"""From a request's message to the messages of its job's events: validate, plan, submit, encode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from darkroom.v1 import events_pb2
from darkroom_plugins.errors import RequestRefused, UnsupportedCombination, Violation
from darkroom_server.api import messages, quotas
from darkroom_server.api.preprocess import preprocess
from darkroom_server.api.validation.request import check_edit, check_generate
from darkroom_server.engine.endings import log_end
from darkroom_server.errors import LoadFailed
from darkroom_server.jobs.events import ControlMade

if TYPE_CHECKING:
    from darkroom_plugins.errors import DarkroomError
    from darkroom_plugins.request import Request
    from darkroom_server.api.encoding import Encoder
    from darkroom_server.job_manager import JobManager
    from darkroom_server.jobs.job import Job
    from darkroom_server.models.catalog import Catalog

CHECKS: dict[str, Callable[[Any, Catalog], Request]] = {"Generate": check_generate, "Edit": check_edit}


@dataclass(frozen=True, slots=True)
class Submission:
    """Runs registered jobs."""

    catalog: Catalog
    jobs: JobManager
    encoder: Encoder

    async def events(
        self, job: Job, rpc: str, message: Any, *, admitted: bool = False
    ) -> AsyncGenerator[list[events_pb2.JobEvent], None]:
        """See Backend. `admitted`: before a restart of the server."""
        request = None
        try:
            quotas.admit_model(message.parameters.model, self.catalog.default_model)
            request = await job.mailbox.unless_ended(self.jobs.read(CHECKS[rpc], message, self.catalog))
            others: quotas.ActiveJobs = tuple if admitted else partial(self.jobs.of_token, job.token)
            quotas.admit_pixels(job, request, others)
            await job.mailbox.unless_ended(self.jobs.plan(job, request, admitted=admitted))
            self.jobs.accept(job, admitted=admitted)
            for control in _control_images(job):
                job.mailbox.put(control)
            self.jobs.submit(job)
            await asyncio.sleep(0)  # a job that need not wait enters the engine before its first event is written
            async for _, made in self.encoder.events(job):
                yield made
        except LoadFailed as error:
            raise (refusal(request, error) if request else error) from None

    async def preprocess(self, job: Job, message: Any) -> AsyncGenerator[list[events_pb2.JobEvent], None]:
        """See Backend."""
        job.bearer = quotas.bearer()
        try:
            made = await job.mailbox.unless_ended(self.jobs.read(preprocess, message, self.catalog))
        except RequestRefused:
            raise
        except BaseException as error:
            left = isinstance(error, asyncio.CancelledError)
            log_end(job, job.break_off if left else error, time.monotonic(), task="preprocess")
            raise
        log_end(job, None, time.monotonic(), task="preprocess")
        fields = [{"accepted": {}}, *made, {"completed": messages.took(time.monotonic() - job.arrived)}]
        yield [
            events_pb2.JobEvent(request_id=job.request_id, sequence=number, **each)
            for number, each in enumerate(fields, 1)
        ]


def _control_images(job: Job) -> list[ControlMade]:
    """The control maps of a planned job with `echo_map`."""
    return [
        ControlMade(index, pixels, control.preprocessor or "")
        for index, (control, pixels) in enumerate(zip(job.request.controls, job.plan.controls, strict=True))
        if control.echo_map
    ]


def refusal(request: Request, error: LoadFailed) -> DarkroomError:
    """The error of a request whose asset fails to load: a violation of the field that names it, if there is one."""
    named = {
        "lora": [(f"loras[{index}].name", lora.name) for index, lora in enumerate(request.loras)],
        "controlnet": [(f"controls[{index}].model", each.model) for index, each in enumerate(request.controls)],
        "embedding": [("prompt", error.key[1])],
    }
    paths = [path for path, name in named.get(error.key[0], ()) if name == error.key[1]]
    return UnsupportedCombination([Violation(f"parameters.{path}", str(error)) for path in paths]) if paths else error
