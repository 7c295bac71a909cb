"""Where the log of kept jobs is: what its stores have in common, which is nearly all of their SQL."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, NamedTuple

from darkroom_plugins.errors import DarkroomError
from darkroom_server.errors import JobLogUnavailable

log = logging.getLogger(__name__)

ROWS = 1000  # that one statement inserts: it may have 32,766 values
UNFINISHED, DONE = "", "done"  # outcomes; a job that failed has the class of its error


class JobTakenUp(JobLogUnavailable):
    """Another server has the job."""

    def __init__(self) -> None:
        super().__init__("another server took the job up")


@dataclass(frozen=True, slots=True)
class LoggedJob:
    """A job as the log has it. Times are those of `time.time`."""

    owner: str  # fingerprint of the token that made it
    request_id: str
    rpc: str
    digest: bytes  # of the request as it was sent
    request: bytes  # with every default and the seed resolved; empty but for the server that has the job
    created: float
    deadline: float | None = None
    started: float | None = None
    ended: float | None = None
    outcome: str = UNFINISHED
    status: bytes = b""  # google.rpc.Status of its error
    runs: int = 1  # how often it was begun: 1, and 1 more for each server that took it up unfinished
    begun: int = 0  # how many of them but the first were cut short after its first turn, beside other jobs
    ends: str = ""  # the latest of those that it had to itself: where they were cut short; see api.suspects
    id: int = 0
    # Not in the log of a single server:
    server: str = ""  # that has it, or had it when it ended
    cancelled: bool = False  # another server was asked to cancel it
    taken: bool = False  # it is this server's, and has not ended: it is to be run here


SHARED_ONLY = ("server", "cancelled", "taken")
COLUMNS = tuple(name for name in LoggedJob.__slots__ if name not in SHARED_ONLY)


class LoggedEvent(NamedTuple):
    """An event; `picture[start:stop]` are the bytes that `data` lacks."""

    sequence: int
    data: bytes
    picture: bytes = b""  # a whole file, which several events may have a part of
    start: int = 0
    stop: int = 0


class Store(ABC):
    """A database. For the log's thread but `take` and `let_go`; the log begins and ends transactions. What any of it
    raises is `explained`."""

    shared: ClassVar[bool]  # by several servers
    server = ""  # this one's name in it

    def take(self) -> None:  # noqa: B027
        """Make it this server's, if it is to be one server's alone.

        :raises StateDirInUse: it is another's
        :raises DarkroomError: it cannot be used
        """

    def let_go(self) -> None:  # noqa: B027
        """Undo `take`, after `close`."""

    @abstractmethod
    def connect(self) -> None:
        """Open or create the database, if it is not open."""

    @abstractmethod
    def close(self) -> None:
        """Close it."""

    @abstractmethod
    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """The cursor of a statement, whose values are written as ``?``."""

    @abstractmethod
    def roll_back(self) -> None:
        """Undo what the transaction did, if there is one and the database is there."""

    @abstractmethod
    def explained(self, error: Exception) -> DarkroomError:
        """What an error means."""

    @abstractmethod
    def look(self, started: Mapping[int, float], take: bool) -> list[LoggedJob]:
        """See JobLog."""

    @abstractmethod
    def cancel(self, job: int) -> None:
        """See JobLog."""

    @abstractmethod
    def own(self, job: int) -> None:
        """Note that a job changes. :raises JobTakenUp: it is another server's"""

    @abstractmethod
    def keep(self, job: int, picture: bytes) -> str:
        """Store a picture; the name of it."""

    @abstractmethod
    def picture(self, job: int, name: str) -> bytes | None:
        """A picture; None if it is gone, or is not what it was."""

    def add(self, job: LoggedJob, events: Sequence[LoggedEvent]) -> int:
        """See JobLog."""
        values = {name: getattr(job, name) for name in COLUMNS if name != "id"}
        values |= {"server": self.server} if self.shared else {}
        insert = f"INSERT INTO jobs ({', '.join(values)}) VALUES ({_marks(values)}) RETURNING id"
        added: int = self.execute(insert, list(values.values())).fetchone()[0]
        self.append(added, events)
        return added

    def append(self, job: int, events: Sequence[LoggedEvent]) -> None:
        """See JobLog."""
        self.own(job)
        names = {id(event.picture): self.keep(job, event.picture) for event in events if event.picture}
        rows = [(job, each.sequence, each.data, names.get(id(each.picture)), each.start, each.stop) for each in events]
        # Many by one statement: at each the thread lets go of the GIL, and takes it from the engine again.
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            values = ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(some))
            # One that is there was written by a commit of which the answer was lost.
            self.execute(f"INSERT INTO events VALUES {values} ON CONFLICT DO NOTHING", [*chain.from_iterable(some)])

    def finish(self, job: int, end: Sequence[Any], events: Sequence[LoggedEvent]) -> None:
        """See JobLog."""
        self.append(job, events)
        ending = "UPDATE jobs SET started = ?, ended = ?, outcome = ?, status = ?, request = ? WHERE id = ?"
        self.execute(ending, (*end, b"", job))

    def note(self, job: int, begun: int, ends: str) -> None:
        """See JobLog."""
        self.own(job)
        self.execute("UPDATE jobs SET begun = ?, ends = ? WHERE id = ?", (begun, ends, job))

    def events(self, job: int, after: int) -> tuple[list[LoggedEvent], bool]:
        """See JobLog."""
        columns, place = "sequence, data, picture, start, stop", "job = ? AND sequence > ?"
        rows = self.execute(f"SELECT {columns} FROM events WHERE {place} ORDER BY sequence", (job, after)).fetchall()
        pictures = {name: self.picture(job, name) for name in {row[2] for row in rows} if name is not None}
        events = [
            LoggedEvent(sequence, data, pictures.get(name) or b"", start, stop)
            for sequence, data, name, start, stop in rows
            if name is None or pictures[name] is not None
        ]
        return events, len(events) == len(rows)

    def first_event(self, job: int) -> tuple[bytes, int]:
        """See JobLog."""
        first = self.execute("SELECT data FROM events WHERE job = ? ORDER BY sequence LIMIT 1", (job,)).fetchone()
        sums = "SELECT SUM(LENGTH(data) + stop - start) FROM events WHERE job = ?"
        (size,) = self.execute(sums, (job,)).fetchone()
        request = self.execute("SELECT LENGTH(request) FROM jobs WHERE id = ?", (job,)).fetchone()
        return first[0] if first else b"", int(size or 0) + (request[0] if request else 0)

    def known(self, jobs: Sequence[int]) -> set[int]:
        """See JobLog."""
        return {row[0] for row in self.execute(f"SELECT id FROM jobs WHERE id IN ({_marks(jobs)})", jobs)}

    def forget(self, jobs: Sequence[int]) -> None:
        """See JobLog."""
        self.execute(f"DELETE FROM jobs WHERE id IN ({_marks(jobs)})", jobs)


def _marks(values: Collection[Any]) -> str:
    return ", ".join("?" * len(values))


def unexpected(error: Exception) -> DarkroomError:
    """What an error means that is not of the store's database or disk."""
    if isinstance(error, DarkroomError):
        return error
    log.error("the log of kept jobs failed", exc_info=error)
    return JobLogUnavailable(f"the log of kept jobs cannot be used: {error}")
