"""From a request's message to the messages of its job's events: validate, plan, submit, encode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from darkroom_plugins.errors import UnsupportedCombination, Violation
from darkroom_server.api import quotas
from darkroom_server.errors import LoadFailed
from darkroom_server.jobs.events import ControlMade, Event

if TYPE_CHECKING:
    from darkroom.v1 import events_pb2
    from darkroom_plugins.errors import DarkroomError
    from darkroom_plugins.request import Request
    from darkroom_server.api.encoding import Encoder
    from darkroom_server.job_manager import JobManager
    from darkroom_server.jobs.job import Job
    from darkroom_server.models.catalog import Catalog

Check = Callable[[Any, "Catalog"], "Request"]


@dataclass(frozen=True, slots=True)
class Submission:
    """Runs registered jobs."""

    catalog: Catalog
    jobs: JobManager
    encoder: Encoder

    async def events(
        self, job: Job, message: Any, check: Check, *, admitted: bool = False
    ) -> AsyncGenerator[tuple[Event, list[events_pb2.JobEvent]], None]:
        """A registered job's events, each with its messages, up to `completed`. `admitted`: before a restart of the
        server.

        :raises DarkroomError: the request is refused, or the job fails
        """
        request = None
        try:
            quotas.admit_model(message.parameters.model, self.catalog.default_model)
            request = await self.jobs.read(check, message, self.catalog)
            quotas.admit_pixels(job, request, self.jobs.of_token(job.token))
            await self.jobs.plan(job, request, admitted=admitted)
            self.jobs.accept(job, admitted=admitted)
            for made in _control_images(job):
                job.mailbox.put(made)
            self.jobs.submit(job)
            await asyncio.sleep(0)  # a job that need not wait enters the engine before its first event is written
            async for event, messages in self.encoder.events(job):
                yield event, messages
        except LoadFailed as error:
            raise (refusal(request, error) if request else error) from None


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
