"""A job: the work of one RPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from darkroom_plugins.errors import DarkroomError
from darkroom_server.errors import Cancelled, DeadlineExceeded
from darkroom_server.jobs.events import Event, ImageDecoded, Queued, Started, StepDone, Timings
from darkroom_server.jobs.mailbox import Mailbox

if TYPE_CHECKING:
    from darkroom_plugins.request import Request
    from darkroom_server.jobs.plan import Plan


DEADLINE_SLACK = 0.25  # seconds by which a client's clock may be ahead: it cancels at its deadline, too


class ClientLeft(Cancelled):
    """The client cancelled its call, or its connection was lost. Nobody gets it: the log and metrics have it."""

    reason = "CLIENT"


class DeadlinePassed(DeadlineExceeded):
    """The call's deadline has passed. Nobody gets it: the log and metrics have it."""

    reason = "DEADLINE"


def who_left(left: float | None) -> ClientLeft | DeadlinePassed:
    """Why the other side ended a call that had so many seconds left; None: it had no deadline."""
    in_time = left is None or left > DEADLINE_SLACK
    return ClientLeft("the client left") if in_time else DeadlinePassed("the deadline has passed")


@dataclass(slots=True, eq=False)
class Progress:
    """A job's state in the engine. For the engine's thread only."""

    started: float | None = None  # time.monotonic
    slots_left: int = 0
    swaps: int = 0  # its model's network swaps when the job started
    position: int | None = None  # in the queue, in the latest Queued event
    estimated: bool = False  # whether that event says when it begins
    ended: bool = False
    then: Callable[[], None] | None = None  # for the event loop, once the engine no longer uses the job's model
    warnings: list[str] = field(default_factory=list)
    encoded: float | None = None  # time.monotonic, when its first images were ready for their first evaluation
    denoised: float | None = None  # time.monotonic, when the last evaluation of its images had ended; None: it has not


@dataclass(slots=True)
class Seen:
    """How far a job is, by the events that the engine has handed over. For the event loop's thread only."""

    started: float | None = None  # time.time of its first turn
    position: int | None = None  # in the queue; None: unknown, or it no longer waits
    estimated_start: float | None = None  # time.time; None: not known, or it has started
    estimated_end: float | None = None  # time.time; None: not known
    step: int = 0  # of the image that is the furthest
    images: int = 0  # finished
    rows: int = 0  # of the latest evaluation with it
    step_seconds: float = 0.0  # of a step, on average; 0: none is done

    def stepped(self, step: int, elapsed: float, rows: int) -> None:
        """A step of an image is done, so many seconds after the image was begun."""
        self.step, self.rows, self.step_seconds = max(self.step, step), rows, elapsed / step

    def expect(self, wait: float | None, end: float | None) -> None:
        """It will start and end in so many seconds; None: not known."""
        now = time.time()
        self.estimated_start = now + wait if wait is not None else None
        self.estimated_end = now + end if end is not None else None


@dataclass(slots=True, eq=False)
class Job:
    """The work of one RPC. The event loop owns it until submission; afterwards only `progress`, owned by the engine's
    thread, `queued`, `seen` and `writing`, owned by the event loop, and `warnings`, owned by the stream, change."""

    request_id: str
    token: str = field(repr=False)  # fingerprint of the client's token; ids are unique by it
    arrived: float  # time.monotonic
    held_bytes: int  # of its message; once planned, of its images
    mailbox: Mailbox = field(default_factory=Mailbox)
    plan: Plan = field(init=False)  # set before the job is submitted
    bearer: str = ""  # the name of the client's token
    client: str = ""  # whose share of the device it uses
    priority: str = "normal"  # a key of shares.WEIGHTS
    deadline: float | None = None  # time.monotonic; of its call
    trace: dict[str, str] = field(default_factory=dict)  # W3C's trace headers of its call
    failure: DarkroomError | None = None  # why its stream is not read to its end, if that is known
    on_start: Callable[[Job], None] = lambda job: None  # called on the event loop at its first turn
    before_work: Callable[[bool], None] | None = None  # the engine calls it before a turn (True), and each evaluation
    pixels: int = 0  # of its pictures, once checked
    load_seconds: float = 0.0
    waiting: asyncio.Task[None] | None = None  # submission, which waits for its models and assets
    queued: bool = True  # until the engine's Started event
    writing: float | None = None  # time.monotonic since which its stream writes an event, that the client has to read
    warnings: list[str] = field(default_factory=list)  # of the encoding of its pictures
    progress: Progress = field(default_factory=Progress)
    base: int = 0  # of its events' sequences, above those of earlier runs
    accepted: Any = None  # the event with the resolved request, of a job that another process does
    created: float = field(default_factory=time.time)
    seen: Seen = field(default_factory=Seen)

    @property
    def break_off(self) -> DarkroomError:
        """Why its stream is not read to its end."""
        left = self.deadline - time.monotonic() if self.deadline is not None else None
        return self.failure or who_left(left)

    def take(self, event: Event) -> None:
        """An event from the engine, for the mailbox."""
        match event:
            case Started():
                self.queued, self.seen.position, self.seen.started = False, None, time.time()
                self.seen.estimated_start = None
                self.on_start(self)
                return
            case Queued():
                self.seen.position = event.position
                self.seen.expect(event.estimated_wait, event.estimated_end)
            case StepDone():
                self.seen.stepped(event.step, event.elapsed, event.batch_rows)
            case ImageDecoded():
                self.seen.images += 1
        self.mailbox.put(event)

    def begun_elsewhere(self, seconds: float) -> None:
        """Its first turn was so many seconds ago, at another process."""
        self.queued, self.seen.position, self.seen.started = False, None, time.time() - seconds
        self.progress.started = self.progress.encoded = time.monotonic() - seconds

    @property
    def planned(self) -> Plan | None:
        """Its plan; None until it is planned."""
        return getattr(self, "plan", None)

    @property
    def request(self) -> Request:
        """The final request, once planned."""
        return self.plan.request

    def timings(self, now: float) -> Timings:
        """Its seconds by phase, at its end: the phases follow each other without gaps."""
        started = self.progress.started or now
        encoded = self.progress.encoded or now
        denoised = self.progress.denoised or now
        return Timings(
            queue=started - self.arrived - self.load_seconds,
            load=self.load_seconds,
            encode_prompt=encoded - started,
            denoise=denoised - encoded,
            decode=now - denoised,
        )
