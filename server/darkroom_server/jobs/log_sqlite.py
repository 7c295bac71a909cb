"""The log of kept jobs of one server, in a folder: an SQLite database, and large pictures as files named by content."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from darkroom_plugins.errors import DarkroomError
from darkroom_server.errors import JobLogFull, JobLogUnavailable, RequestIdInUse
from darkroom_server.jobs.log_store import COLUMNS, LoggedJob, Store, unexpected

log = logging.getLogger(__name__)

DATABASE, PICTURES, LOCK = "jobs.sqlite", "pictures", "lock"
# Bytes of a picture that the database has itself: that takes less time than a file (sqlite.org/intern-v-extern-blob).
SMALL = 16 * 1024
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
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
    "ALTER TABLE jobs ADD COLUMN ends TEXT NOT NULL DEFAULT '';",
    "CREATE TABLE small_pictures (name TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT;",
)


class StateDirInUse(Exception):
    """Another server has the folder."""


class SqliteStore(Store):
    """A folder."""

    shared = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pictures = folder / PICTURES
        self._database: sqlite3.Connection | None = None
        self._lock: int | None = None
        self._looked = False

    def take(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._pictures.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateDirInUse(f"state_dir {self._folder}: another server has it") from None
        except OSError as error:
            log.error("state_dir %s: %s", self._folder, error)
            raise self.explained(error) from None

    def let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def connect(self) -> None:
        if self._database is not None:
            return
        database = sqlite3.connect(self._folder / DATABASE, isolation_level=None)
        try:
            _prepare(database)
        except BaseException:
            database.close()
            raise
        self._database = database

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        assert self._database is not None
        return self._database.execute(statement, values)

    def roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._database is not None and self._database.in_transaction:
                self._database.execute("ROLLBACK")

    def explained(self, error: Exception) -> DarkroomError:
        if not isinstance(error, sqlite3.Error | OSError):
            return unexpected(error)
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_CONSTRAINT_UNIQUE:
            return RequestIdInUse("the log of kept jobs has a job of this request_id")
        if getattr(error, "errno", None) in NO_ROOM or code == sqlite3.SQLITE_FULL:
            return JobLogFull("the disk has no room for another kept job")
        words = error.strerror if isinstance(error, OSError) else str(error)
        return JobLogUnavailable(f"the log of kept jobs cannot be used: {words}")

    def look(self, started: Mapping[int, float], take: bool) -> list[LoggedJob]:
        if self._looked:
            return []  # nobody else writes
        self._looked = True
        self.execute("UPDATE jobs SET runs = runs + 1 WHERE ended IS NULL")
        rows = self.execute(f"SELECT {', '.join(COLUMNS)} FROM jobs ORDER BY id").fetchall()
        self._sweep()
        jobs = (dict(zip(COLUMNS, row, strict=True)) for row in rows)
        return [LoggedJob(**job, taken=job["ended"] is None) for job in jobs]

    def cancel(self, job: int) -> None:
        raise AssertionError("jobs are those of this server")

    def own(self, job: int) -> None:
        pass

    def keep(self, job: int, picture: bytes) -> str:
        """The name of the picture, whose file is on the disk, whole: what is left of one that was not is swept, as no
        event has it."""
        name = hashlib.sha256(picture).hexdigest()
        if len(picture) <= SMALL:
            self.execute("INSERT INTO small_pictures VALUES (?, ?) ON CONFLICT DO NOTHING", (name, picture))
            return name
        path = self._pictures / name
        if path.exists():
            return name
        try:
            with path.open("wb") as file:
                file.write(picture)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        _sync_folder(self._pictures)
        return name

    def picture(self, job: int, name: str) -> bytes | None:
        small = self.execute("SELECT data FROM small_pictures WHERE name = ?", (name,)).fetchone()
        try:
            data: bytes = small[0] if small else (self._pictures / name).read_bytes()
        except OSError as error:
            log.error("a kept picture cannot be read: %s", error)
            return None
        if hashlib.sha256(data).hexdigest() == name:
            return data
        log.error("the kept picture %s is damaged", name)
        return None

    def forget(self, jobs: Sequence[int]) -> None:
        marks = ", ".join("?" * len(jobs))
        had = self.execute(f"SELECT DISTINCT picture FROM events WHERE job IN ({marks})", jobs).fetchall()
        super().forget(jobs)
        for (name,) in had:
            held = self.execute("SELECT 1 FROM events WHERE picture = ? LIMIT 1", (name,)).fetchone()
            if name is not None and held is None:  # before the commit: a row without its file is seen to be so
                self.execute("DELETE FROM small_pictures WHERE name = ?", (name,))
                (self._pictures / name).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Delete files that no event has: of writes that were cut short."""
        known = {name for (name,) in self.execute("SELECT DISTINCT picture FROM events WHERE picture IS NOT NULL")}
        for path in self._pictures.iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)


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
