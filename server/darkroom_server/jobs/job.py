"""A job: the work of one RPC."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from darkroom_server.jobs.events import Timings
from darkroom_server.jobs.mailbox import Mailbox

if TYPE_CHECKING:
    from darkroom_plugins.request import Request
    from darkroom_server.jobs.plan import Plan
    from darkroom_server.models.residency import Key


@dataclass(slots=True, eq=False)
class Progress:
    """A job in the engine; for the engine's thread alone."""

    started: float | None = None  # time.monotonic
    slots_left: int = 0
    swaps: int = 0  # of its model's placement, when it started
    position: int | None = None  # in the queue, as the client was told last
    ended: bool = False
    warnings: list[str] = field(default_factory=list)
    encode_prompt_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Job:
    """The work of one RPC. The event loop owns it until it is submitted; from then on nothing of it changes but
    `progress`, which is the engine's, and `queued`."""

    request_id: str
    token: str = field(repr=False)  # that it was started with; ids are looked up with it
    arrived: float  # time.monotonic
    held_bytes: int  # of its message, and once it is planned of its pictures
    mailbox: Mailbox = field(default_factory=Mailbox)
    plan: Plan = field(init=False)  # set before the job is submitted
    load_seconds: float = 0.0
    acquired: tuple[Key, ...] = ()  # what is to be released when it has ended
    waiting: asyncio.Task[None] | None = None  # for what it needs
    queued: bool = True  # until the engine says that it started
    progress: Progress = field(default_factory=Progress)

    @property
    def request(self) -> Request:
        """What is asked, once it is planned."""
        return self.plan.request

    def timings(self, now: float) -> Timings:
        """Where the time went, at the end."""
        progress = self.progress
        started = progress.started or now
        busy = progress.encode_prompt_seconds + progress.decode_seconds
        return Timings(
            queue=started - self.arrived - self.load_seconds,
            load=self.load_seconds,
            encode_prompt=progress.encode_prompt_seconds,
            denoise=max(0.0, now - started - busy),
            decode=progress.decode_seconds,
        )
