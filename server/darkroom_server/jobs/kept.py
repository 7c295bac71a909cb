"""Kept jobs: they go on without their clients, and their results stay for a while. For the event loop's thread."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from darkroom_server.errors import Cancelled, KeptJobsFull
from darkroom_server.jobs.history import History

if TYPE_CHECKING:
    from darkroom_plugins.errors import DarkroomError
    from darkroom_server.jobs.job import Job, Seen

OVERHEAD = 4096  # bytes of a job beside its request and its events


class JobState(Enum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True, eq=False)
class KeptJob:
    """A kept job, active or ended. Times are those of `time.time`."""

    owner: str = field(repr=False)  # fingerprint of the token that made it; ids are unique by it
    request_id: str
    digest: bytes  # of the request as it was sent
    created: float
    request_bytes: int
    seen: Seen  # how far it is
    job: Job | None = None  # None once it has ended
    history: History[Any] | None = field(default_factory=History)  # None: the log has it
    accepted: Any = None  # the event with the resolved parameters; None until then
    deadline: float | None = None
    ended: float | None = None
    error: DarkroomError | None = None  # that it ended with
    run: int = 1  # the number of the run that is under way, which a restart of the server makes one more
    begun: int = 0  # how many runs but the first were cut short after its first turn, beside other jobs
    ends: tuple[int, ...] = ()  # the latest of those that it had to itself: where they were cut short
    id: int | None = None  # in the log; None: it is not there
    logged: set[int] = field(default_factory=set)  # sequences of the events that the log has
    sent: set[Any] = field(default_factory=set)  # the pictures that earlier runs have sent
    stored_bytes: int = 0  # of the request and the events that are in the log only

    @property
    def elsewhere(self) -> bool:
        """Whether another server has it, and it has not ended."""
        return self.job is None and self.ended is None

    @property
    def state(self) -> JobState:
        if self.ended is None:
            return JobState.QUEUED if self.seen.started is None else JobState.RUNNING
        if self.error is None:
            return JobState.COMPLETED
        return JobState.CANCELLED if isinstance(self.error, Cancelled) else JobState.FAILED

    @property
    def size(self) -> int:
        """Bytes that it takes, in memory or on the disk. May be called on another thread."""
        history = self.history
        return OVERHEAD + self.request_bytes + (history.size if history is not None else self.stored_bytes)


class KeptJobs:
    """The kept jobs by owner and id, within a time after their end and a number of bytes."""

    def __init__(self, keep_seconds: float, max_bytes: int) -> None:
        self.keep_seconds = keep_seconds
        self._max_bytes = max_bytes
        self._jobs: dict[tuple[str, str], KeptJob] = {}  # oldest first
        self._active: set[KeptJob] = set()
        self._ended: list[KeptJob] = []  # the first that ended first
        self._sizes: dict[KeptJob, int] = {}  # bytes, of those
        self._ended_bytes = 0

    def __iter__(self) -> Iterator[KeptJob]:
        return iter(list(self._jobs.values()))

    def find(self, owner: str, request_id: str) -> KeptJob | None:
        """The job of this owner and id."""
        return self._jobs.get((owner, request_id))

    def add(self, kept: KeptJob) -> None:
        """Keep another.

        :raises KeptJobsFull: those that have not ended take too many bytes already
        """
        held = sum(each.size for each in self._active)
        if held and held + kept.size > self._max_bytes:
            raise KeptJobsFull(f"the kept jobs that have not ended take {held / 2**20:.1f} MiB already")
        self.restore(kept)

    def restore(self, kept: KeptJob) -> None:
        """Keep one of the log, in place of one of the same id."""
        other = self._jobs.get((kept.owner, kept.request_id))
        if other is not None and other is not kept:
            self.remove(other)
        self._jobs[kept.owner, kept.request_id] = kept
        self._active.add(kept)
        if kept.ended is not None:
            self.end(kept)

    def end(self, kept: KeptJob) -> None:
        """One that is kept has ended, or takes fewer bytes since."""
        if self._jobs.get((kept.owner, kept.request_id)) is not kept:
            return
        self._active.discard(kept)
        if kept not in self._sizes:
            insort(self._ended, kept, key=_end_of)
        self._ended_bytes += kept.size - self._sizes.get(kept, 0)
        self._sizes[kept] = kept.size

    def remove(self, kept: KeptJob) -> None:
        """Keep it no longer."""
        if self._jobs.get((kept.owner, kept.request_id)) is not kept:
            return
        del self._jobs[kept.owner, kept.request_id]
        self._active.discard(kept)
        if kept in self._sizes:
            self._ended_bytes -= self._sizes.pop(kept)
            self._ended.remove(kept)

    def trim(self) -> list[KeptJob]:
        """Remove ended jobs: those whose time is over, then the first that ended while all take too many bytes."""
        most, before = self._max_bytes - sum(each.size for each in self._active), time.time() - self.keep_seconds
        removed = []
        while self._ended and (_end_of(self._ended[0]) <= before or self._ended_bytes > most):
            removed.append(self._ended[0])
            self.remove(self._ended[0])
        return removed


def _end_of(kept: KeptJob) -> float:
    return kept.ended or 0.0
