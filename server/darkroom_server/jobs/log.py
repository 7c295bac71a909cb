"""The log of kept jobs on disk: an SQLite database, and beside it the pictures as files named by their content.

What is awaited here is on the disk when it returns. All of SQLite's calls are made on one thread of the log's own,
which commits together whatever was asked for while the last commit was under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import queue
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from darkroom_plugins.errors import DarkroomError
from darkroom_server.errors import JobLogFull, JobLogUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

DATABASE, PICTURES, LOCK = "jobs.sqlite", "pictures", "lock"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
UNFINISHED, DONE = "", "done"  # outcomes; a job that failed has the class of its error
# What makes each version of the format of the one before. A version that was released is never changed.
MIGRATIONS = (
    """
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        owner TEXT NOT NULL,
        request_id TEXT NOT NULL,
        rpc TEXT NOT NULL,
        digest BLOB NOT NULL,
        request BLOB NOT NULL,
        created REAL NOT NULL,
        started REAL,
        ended REAL,
        outcome TEXT NOT NULL DEFAULT '',
        error TEXT NOT NULL DEFAULT '',
        runs INTEGER NOT NULL DEFAULT 1,
        UNIQUE (owner, request_id)
    ) STRICT;
    CREATE TABLE events (
        job INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        sequence INTEGER NOT NULL,
        data BLOB NOT NULL,
        picture TEXT,
        start INTEGER NOT NULL DEFAULT 0,
        stop INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (job, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX pictures ON events (picture) WHERE picture IS NOT NULL;
    """,
    "ALTER TABLE jobs ADD COLUMN deadline REAL;",
    """
    DELETE FROM jobs WHERE outcome NOT IN ('', 'done');
    ALTER TABLE jobs DROP COLUMN error;
    ALTER TABLE jobs ADD COLUMN status BLOB NOT NULL DEFAULT x'';
    ALTER TABLE jobs ADD COLUMN begun INTEGER NOT NULL DEFAULT 0;
    """,
)


class StateDirInUse(Exception):
    """Another server has the folder."""


@dataclass(frozen=True, slots=True)
class LoggedJob:
    """A job as the log has it. Times are those of `time.time`."""

    owner: str  # fingerprint of the token that made it
    request_id: str
    rpc: str
    digest: bytes  # of the request as it was sent
    request: bytes  # with every default and the seed resolved
    created: float
    deadline: float | None = None
    started: float | None = None
    ended: float | None = None
    outcome: str = UNFINISHED
    status: bytes = b""  # google.rpc.Status of its error
    runs: int = 1  # how often it was begun: 1, and 1 more for each start of a server that found it unfinished
    begun: int = 0  # in how many of them but the first it had its first turn
    id: int = 0


class LoggedEvent(NamedTuple):
    """An event; `picture[start:stop]` are the bytes that `data` lacks."""

    sequence: int
    data: bytes
    picture: bytes = b""  # a whole file, which several events may have a part of
    start: int = 0
    stop: int = 0


class JobLog:
    """The log in one folder. `open` first; the other coroutines raise JobLogFull or JobLogUnavailable, with the
    system's reason."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pictures = folder / PICTURES
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="job-log", daemon=True)
        self._database: sqlite3.Connection | None = None
        self._lock: int | None = None
        self.refusal: DarkroomError | None = None  # why no job can be kept, if the log cannot be used

    async def open(self) -> list[LoggedJob]:
        """Open or create it; the jobs in it, oldest first. A log that cannot be used, as it is damaged for instance, is
        empty, and has a `refusal`.

        :raises StateDirInUse: another server has the folder
        """
        self._take_lock()
        self._thread.start()
        try:
            return await self._call(self._open)
        except DarkroomError as error:
            self.refusal = error
            log.error("kept jobs are refused: %s", error)
            return []

    def close(self) -> None:
        """Wait for what is under way, and let go of the folder."""
        if self._thread.is_alive():
            self._calls.put(None)
            self._thread.join()
        if self._lock is not None:
            os.close(self._lock)

    async def add(self, job: LoggedJob, events: Sequence[LoggedEvent]) -> int:
        """Add a job with its first events; the id of it."""
        return await self._call(self._add, job, events)

    async def append(self, job: int, events: Sequence[LoggedEvent]) -> None:
        """Add events of a job."""
        await self._call(self._append, job, events)

    async def begin_again(self, job: int) -> None:
        """Count another run of an unfinished job."""
        await self._call(self._execute, "UPDATE jobs SET runs = runs + 1 WHERE id = ?", (job,))

    async def note_turn(self, job: int) -> None:
        """Count another run, not the first, in which an unfinished job has had its first turn."""
        await self._call(self._execute, "UPDATE jobs SET begun = begun + 1 WHERE id = ?", (job,))

    async def finish(
        self, job: int, started: float | None, ended: float, outcome: str, status: bytes, events: Sequence[LoggedEvent]
    ) -> None:
        """End a job, with its last events. Its request is no longer needed."""
        await self._call(self._finish, job, (started, ended, outcome, status, job), events)

    async def events(self, job: int) -> tuple[list[LoggedEvent], bool]:
        """The events of a job, in order, and whether those are all: whose file is gone or damaged is left out."""
        return await self._call(self._read, job)

    async def first_event(self, job: int) -> tuple[bytes, int]:
        """The data of a job's first event, and the bytes of all of them."""
        return await self._call(self._first, job)

    async def forget(self, jobs: Iterable[int]) -> None:
        """Delete jobs, and the pictures that no other has."""
        await self._call(self._forget, list(jobs))

    # Everything below but _call and _take_lock runs on the log's thread.

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        if self.refusal is not None:
            raise self.refusal
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put(_Call(function, arguments, loop, future))
        return await future

    def _take_lock(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._pictures.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateDirInUse(f"state_dir {self._folder}: another server has it") from None
        except OSError as error:
            log.error("state_dir %s: %s", self._folder, error)
            self.refusal = _to_domain_error(error)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            calls = [call]
            with contextlib.suppress(queue.Empty):
                while (call := self._calls.get_nowait()) is not None:
                    calls.append(call)
            self._commit(calls)
            if call is None:
                break
        if self._database is not None:
            self._database.close()

    def _commit(self, calls: Sequence[_Call]) -> None:
        """Run the calls in one transaction; one that fails leaves no trace."""
        try:
            if self._database is not None:
                self._database.execute("BEGIN IMMEDIATE")
            for call in calls:
                self._attempt(call)
            if self._database is not None and self._database.in_transaction:
                self._database.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            failure = _to_domain_error(error)
            with contextlib.suppress(sqlite3.Error):
                if self._database is not None and self._database.in_transaction:
                    self._database.execute("ROLLBACK")
            for call in calls:
                call.error = call.error or failure
        for call in calls:
            call.answer()

    def _attempt(self, call: _Call) -> None:
        inside = self._database is not None
        try:
            if inside:
                self._execute("SAVEPOINT call")
            call.result = call.function(*call.arguments)
            if inside:
                self._execute("RELEASE call")
        except Exception as error:  # without this thread all that waits for it would hang
            call.error = _to_domain_error(error)
            if inside:
                self._execute("ROLLBACK TO call")
                self._execute("RELEASE call")

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        assert self._database is not None
        return self._database.execute(statement, values)

    def _open(self) -> list[LoggedJob]:
        database = sqlite3.connect(self._folder / DATABASE, isolation_level=None)
        try:
            _prepare(database)
            self._database = database
            names = ", ".join(LoggedJob.__slots__)
            jobs = [LoggedJob(*row) for row in database.execute(f"SELECT {names} FROM jobs ORDER BY id")]
            self._sweep()
        except BaseException:
            self._database = None
            database.close()
            raise
        return jobs

    def _sweep(self) -> None:
        """Delete files that no event has: of writes that were cut short."""
        known = {name for (name,) in self._execute("SELECT DISTINCT picture FROM events WHERE picture IS NOT NULL")}
        for path in self._pictures.iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)

    def _add(self, job: LoggedJob, events: Sequence[LoggedEvent]) -> int:
        names = [name for name in LoggedJob.__slots__ if name != "id"]
        marks = ", ".join("?" * len(names))
        row = [getattr(job, name) for name in names]
        added: int = self._execute(f"INSERT INTO jobs ({', '.join(names)}) VALUES ({marks})", row).lastrowid
        self._append(added, events)
        return added

    def _append(self, job: int, events: Sequence[LoggedEvent]) -> None:
        names = {id(event.picture): self._write(event.picture) for event in events if event.picture}
        rows = [(job, e.sequence, e.data, names.get(id(e.picture)), e.start, e.stop) for e in events]
        assert self._database is not None
        self._database.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _finish(self, job: int, end: Sequence[Any], events: Sequence[LoggedEvent]) -> None:
        self._append(job, events)
        values = "started = ?, ended = ?, outcome = ?, status = ?, request = x''"
        self._execute(f"UPDATE jobs SET {values} WHERE id = ?", end)

    def _read(self, job: int) -> tuple[list[LoggedEvent], bool]:
        query = "SELECT sequence, data, picture, start, stop FROM events WHERE job = ? ORDER BY sequence"
        rows = self._execute(query, (job,)).fetchall()
        files = {name: self._picture(name) for _, _, name, _, _ in rows if name is not None}
        events = [
            LoggedEvent(sequence, data, files.get(name) or b"", start, stop)
            for sequence, data, name, start, stop in rows
            if name is None or files[name] is not None
        ]
        return events, len(events) == len(rows)

    def _first(self, job: int) -> tuple[bytes, int]:
        query = "SELECT data, SUM(LENGTH(data) + stop - start), MIN(sequence) FROM events WHERE job = ?"
        data, size, _ = self._execute(query, (job,)).fetchone()  # SQLite takes `data` from the row of the minimum
        return data or b"", size or 0

    def _forget(self, jobs: Sequence[int]) -> None:
        marks = ", ".join("?" * len(jobs))
        had = self._execute(f"SELECT DISTINCT picture FROM events WHERE job IN ({marks})", jobs).fetchall()
        self._execute(f"DELETE FROM jobs WHERE id IN ({marks})", jobs)
        for (name,) in had:
            held = self._execute("SELECT 1 FROM events WHERE picture = ? LIMIT 1", (name,)).fetchone()
            if name is not None and held is None:  # before the commit: a row without its file is seen to be so
                (self._pictures / name).unlink(missing_ok=True)

    def _write(self, picture: bytes) -> str:
        """The name of the picture's file, which is on the disk under it, whole."""
        name = hashlib.sha256(picture).hexdigest()
        if (self._pictures / name).exists():
            return name
        with tempfile.NamedTemporaryFile(dir=self._pictures, prefix=".", delete=False) as file:
            try:
                file.write(picture)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, self._pictures / name)
            except BaseException:
                os.unlink(file.name)
                raise
        _sync_folder(self._pictures)
        return name

    def _picture(self, name: str) -> bytes | None:
        """The file's bytes; None if it is gone, or is not what it was."""
        try:
            data = (self._pictures / name).read_bytes()
        except OSError as error:
            log.error("a kept picture cannot be read: %s", error)
            return None
        if hashlib.sha256(data).hexdigest() == name:
            return data
        log.error("the kept picture %s is damaged", self._pictures / name)
        return None


@dataclass(slots=True)
class _Call:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: DarkroomError | None = None

    def answer(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self._resolve)

    def _resolve(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def _prepare(database: sqlite3.Connection) -> None:
    """Bring a database to the format of today.

    :raises sqlite3.DatabaseError: it is damaged, or its format is of a later version
    """
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA foreign_keys = ON")
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(f"it is damaged: {found}")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        words = f"its format {version} is of a later version of Darkroom; this one knows {len(MIGRATIONS)}"
        raise sqlite3.DatabaseError(words)
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        database.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_domain_error(error: Exception) -> DarkroomError:
    if not isinstance(error, sqlite3.Error | OSError):
        log.error("the log of kept jobs failed", exc_info=error)
    full = getattr(error, "errno", None) in NO_ROOM or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    if full:
        return JobLogFull("the disk has no room for another kept job")
    words = error.strerror if isinstance(error, OSError) else str(error)
    return JobLogUnavailable(f"the log of kept jobs cannot be used: {words}")
