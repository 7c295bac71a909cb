"""What the image service asks of what does its jobs: this process's engine (`submission`), or those of a cluster."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from darkroom.v1 import events_pb2
    from darkroom_server.jobs.job import Job
    from darkroom_server.jobs.registry import Registry


class Backend(Protocol):
    """Runs registered jobs."""

    @property
    def jobs(self) -> Registry:
        """Where they are registered."""

    def events(
        self, job: Job, rpc: str, message: Any, *, admitted: bool = False
    ) -> AsyncGenerator[list[events_pb2.JobEvent], None]:
        """The messages of a job of the RPC "Generate" or "Edit", up to `completed`; those of one picture come together.

        :raises DarkroomError: the request is refused, or the job fails
        """

    def preprocess(self, job: Job, message: Any) -> AsyncGenerator[list[events_pb2.JobEvent], None]:
        """The messages of a Preprocess.

        :raises DarkroomError: it is refused, or fails
        """
