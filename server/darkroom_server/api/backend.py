"""What the image service asks of what does its jobs: this process's engine (`submission`), or those of a cluster."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from darkroom.v1 import events_pb2
    from darkroom_plugins.errors import DarkroomError
    from darkroom_server.jobs.job import Job


class Registry(Protocol):
    """The active jobs."""

    @property
    def active(self) -> Sequence[Job]:
        """All of them, oldest first."""

    def of_token(self, token: str) -> Sequence[Job]:
        """Those of this token."""

    def find(self, token: str, request_id: str) -> Job | None:
        """The one of this token's fingerprint and id."""

    def register(
        self,
        token: str,
        request_id: str,
        size: int,
        *,
        client: str = "",
        priority: str = "normal",
        deadline: float | None = None,
        admitted: bool = False,
    ) -> Job:
        """Admit a job whose message has `size` bytes. `client`: whose share of the device it uses, if not its token's;
        `deadline`: by `time.monotonic`; `admitted`: before a restart of the server.

        :raises DarkroomError: it is refused
        """

    async def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a slow function, run off the event loop."""

    def end(self, job: Job, error: DarkroomError) -> bool:
        """End a job at once. Returns False if it had ended."""

    def release(self, job: Job) -> None:
        """Unregister a job whose stream is over, and cancel what is left of it."""


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
