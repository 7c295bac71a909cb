"""Whether another job is let in: bounds of the queue, and deadlines that can be met. For the event loop's thread."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import TYPE_CHECKING

from darkroom_server.errors import DeadlineTooShort, DeadlineUnreachable, QueueFull

if TYPE_CHECKING:
    from darkroom_server.jobs.job import Job

# A job is refused for its deadline when this much of its estimate is too long: estimates err, and a job that would have
# been done is worse to lose than one that was begun in vain.
SURE = 2 / 3
UNKNOWN = 2.0  # seconds until a refused client should try again, while nothing has been measured
LEAST, MOST = 0.5, 60.0  # seconds
SHARE, JITTER = 0.1, 0.25


class Admission:
    """The jobs that wait for their first turn, of all clients and of each."""

    def __init__(self, max_jobs: int, max_jobs_per_client: int, max_bytes: int) -> None:
        """`max_bytes`: of their input pictures."""
        self._max_jobs, self._max_jobs_per_client, self._max_bytes = max_jobs, max_jobs_per_client, max_bytes
        self.devices = 1  # that jobs wait for: the numbers of jobs are those for each
        self.elsewhere = 0  # jobs that came by other ways and wait for the same devices
        self._waiting: dict[Job, int] = {}  # bytes
        self._of_client: Counter[str] = Counter()
        self._bytes = 0
        self._last_start: float | None = None  # time.monotonic, of the job that was accepted last, as estimated

    def add(self, job: Job, *, always: bool = False) -> None:
        """A job begins to wait. `always`: it has been let in before.

        :raises QueueFull: too many wait, or their pictures take too much memory
        """
        if not always:
            self._refuse_if_full(job)
            self.refuse_if_large(job)
        self._waiting[job] = job.held_bytes
        self._of_client[job.client] += 1
        self._bytes += job.held_bytes

    def resize(self, job: Job) -> None:
        """The pictures of a job that waits take another number of bytes."""
        if job in self._waiting:
            self._bytes += job.held_bytes - self._waiting[job]
            self._waiting[job] = job.held_bytes

    def remove(self, job: Job) -> None:
        """A job has had its first turn, or has ended. Idempotent."""
        if job not in self._waiting:
            return
        self._bytes -= self._waiting.pop(job)
        self._of_client[job.client] -= 1
        if not self._of_client[job.client]:
            del self._of_client[job.client]

    def refuse_if_large(self, job: Job) -> None:
        """:raises QueueFull: with the pictures of a job those of all that wait take too much memory"""
        others = len(self._waiting) - (job in self._waiting)
        held = self._bytes - self._waiting.get(job, 0)
        if others and held + job.held_bytes > self._max_bytes:
            message = f"the pictures of the jobs that wait take {held // 2**20} MiB already"
            raise QueueFull(message, self.retry_after())

    def refuse_if_late(self, job: Job, end: float | None, alone: float | None, now: float) -> None:
        """Refuse a job whose deadline cannot be met. It would be done in `end` seconds, and without others in `alone`;
        None: not known.

        :raises DeadlineUnreachable, DeadlineTooShort: surely not
        """
        if job.deadline is None or end is None or SURE * end <= (left := job.deadline - now):
            return
        left = max(0.0, left)
        if alone is not None and SURE * alone > left:
            words = f"the job would take about {alone:.1f} s, and its deadline is in {left:.1f} s"
            raise DeadlineTooShort(words)
        words = f"with the jobs that are before it, the job would be done in about {end:.1f} s"
        raise DeadlineUnreachable(f"{words}, and its deadline is in {left:.1f} s", self.retry_after())

    def accepted(self, start: float | None, now: float) -> None:
        """A job will begin in so many seconds; None: not known."""
        self._last_start = now + start if start is not None else None

    def retry_after(self) -> float:
        """Seconds in which a tenth of the jobs that wait will have begun, give or take a quarter by chance: clients
        that were refused together do not come back together."""
        start = self._last_start
        seconds = UNKNOWN if start is None else SHARE * (start - time.monotonic())
        return round(random.uniform(1 - JITTER, 1 + JITTER) * min(max(seconds, LEAST), MOST), 3)

    def _refuse_if_full(self, job: Job) -> None:
        if (waiting := len(self._waiting) + self.elsewhere) >= self._max_jobs * self.devices:
            raise QueueFull(f"{waiting} jobs are waiting already", self.retry_after())
        own = self._of_client[job.client]
        if own >= self._max_jobs_per_client * self.devices:
            raise QueueFull(f"{own} jobs of this client are waiting already", self.retry_after())
