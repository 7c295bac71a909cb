"""The log of kept jobs of several servers, in a PostgreSQL database. Each unfinished job is one server's; when a server
has been silent for LEASE_SECONDS, others take up its jobs, and what it still writes to them is refused."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from darkroom_plugins.errors import DarkroomError
from darkroom_server.errors import JobLogFull, JobLogUnavailable, RequestIdInUse
from darkroom_server.jobs.log_store import COLUMNS, JobTakenUp, LoggedJob, Store, unexpected

log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
SCHEMA = "darkroom"
# A hanging database must not keep the log's thread for long. Names are looked up in the schema.
OPTIONS = f"-c search_path={SCHEMA} -c statement_timeout=10s -c lock_timeout=5s"
CONNECT: dict[str, Any] = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "keepalives_idle": 10, "options": OPTIONS}
NOW = "EXTRACT(EPOCH FROM clock_timestamp())::DOUBLE PRECISION"  # the database's clock is that of all
# What makes each version of the format of the one before. A version that was released is never changed.
MIGRATIONS = (
    """
    CREATE TABLE servers (id TEXT PRIMARY KEY, seen DOUBLE PRECISION NOT NULL);
    CREATE TABLE jobs (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        owner TEXT NOT NULL,
        request_id TEXT NOT NULL,
        rpc TEXT NOT NULL,
        digest BYTEA NOT NULL,
        request BYTEA NOT NULL,
        created DOUBLE PRECISION NOT NULL,
        deadline DOUBLE PRECISION,
        started DOUBLE PRECISION,
        ended DOUBLE PRECISION,
        outcome TEXT NOT NULL DEFAULT '',
        status BYTEA NOT NULL DEFAULT '',
        runs INTEGER NOT NULL DEFAULT 1,
        begun INTEGER NOT NULL DEFAULT 0,
        server TEXT NOT NULL,
        cancelled BOOLEAN NOT NULL DEFAULT FALSE,
        changed DOUBLE PRECISION NOT NULL DEFAULT 0,
        UNIQUE (owner, request_id)
    );
    CREATE INDEX changed ON jobs (changed);
    CREATE INDEX unfinished ON jobs (server) WHERE ended IS NULL;
    CREATE TABLE pictures (
        job BIGINT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        data BYTEA NOT NULL,
        PRIMARY KEY (job, name)
    );
    CREATE TABLE events (
        job BIGINT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        sequence BIGINT NOT NULL,
        data BYTEA NOT NULL,
        picture TEXT,
        start BIGINT NOT NULL,
        stop BIGINT NOT NULL,
        PRIMARY KEY (job, sequence)
    );
    """,
    """
    DROP INDEX changed;
    ALTER TABLE jobs DROP COLUMN changed;
    ALTER TABLE jobs ADD COLUMN changed XID8 NOT NULL DEFAULT pg_current_xact_id();
    CREATE INDEX changed ON jobs (changed);
    """,
    "ALTER TABLE jobs ADD COLUMN ends TEXT NOT NULL DEFAULT '';",
)
# By the transaction that changed a job last: unlike a time that says what was committed since, however long it took.
CHANGED, FIRST = "changed = pg_current_xact_id()", "0"
LOCK = 0x6461726B  # of those that make or migrate the tables
TAKING_LOCK = LOCK + 1


class PostgresStore(Store):
    """A database by its URL, ``postgresql://…``."""

    shared = True

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection[Any] | None = None
        self._looked = FIRST  # all transactions before this one had ended by the last look
        self._seen, self._patient = 0.0, 0.0  # by the database's clock: the last look; until when none is held silent
        self.server = uuid.uuid4().hex

    def connect(self) -> None:
        if self._connection is not None and not self._connection.closed:
            return
        # Nothing is prepared at the database: pools between may give each transaction another connection.
        connection = psycopg.connect(self._url, autocommit=True, prepare_threshold=None, **CONNECT)
        try:
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def close(self) -> None:
        """Others take up the unfinished jobs of this server."""
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error), self._connection as connection:
                connection.execute("DELETE FROM servers WHERE id = %s", (self.server,))

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        assert self._connection is not None
        return self._connection.execute(statement.replace("?", "%s"), values)

    def roll_back(self) -> None:
        self._looked = FIRST  # nobody heard what the look said
        with contextlib.suppress(psycopg.Error):
            if self._connection is not None:
                self._connection.rollback()

    def explained(self, error: Exception) -> DarkroomError:
        if isinstance(error, psycopg.errors.UniqueViolation):
            return RequestIdInUse("the log of kept jobs has a job of this request_id")
        if isinstance(error, psycopg.errors.DiskFull):
            return JobLogFull("the database has no room for another kept job")
        if isinstance(error, psycopg.OperationalError | psycopg.ProgrammingError) and error.sqlstate is None:
            log.error("the database of kept jobs: %s", error)  # names hosts and users, which is not for clients
            return JobLogUnavailable("the log of kept jobs cannot be used: its database cannot be reached")
        if isinstance(error, psycopg.Error):
            words = str(error).strip().partition("\n")[0]
            return JobLogUnavailable(f"the log of kept jobs cannot be used: {words}")
        return unexpected(error)

    def look(self, started: Mapping[int, float], take: bool) -> list[LoggedJob]:
        (now,) = self.execute(f"SELECT {NOW}").fetchone()
        renew = "INSERT INTO servers VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET seen = excluded.seen"
        self.execute(renew, (self.server, now))
        if self._seen and now - self._seen > LEASE_SECONDS:
            self._patient = now + LEASE_SECONDS  # perhaps the database was away, and the others come back, too
        self._seen = now
        if take:
            self._take_up(now)
        for job, since in started.items():
            begun = f"UPDATE jobs SET started = ?, {CHANGED} WHERE id = ? AND server = ? AND started IS NULL"
            self.execute(begun, (since, job, self.server))
        names = (*COLUMNS, "server", "cancelled")
        columns = ", ".join(names).replace(", request,", ", CASE WHEN server = ? THEN request ELSE '' END,")
        (looked,) = self.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::TEXT").fetchone()
        changed = f"SELECT {columns} FROM jobs WHERE changed >= ?::XID8 ORDER BY id"
        rows = self.execute(changed, (self.server, self._looked)).fetchall()
        self._looked = looked
        jobs = (dict(zip(names, row, strict=True)) for row in rows)
        return [LoggedJob(**job, taken=job["ended"] is None and job["server"] == self.server) for job in jobs]

    def _take_up(self, now: float) -> None:
        """Make the jobs that no server has this one's: one server at a time, as each must see who the others are."""
        (alone,) = self.execute("SELECT pg_try_advisory_xact_lock(?)", (TAKING_LOCK,)).fetchone()
        if not alone:
            return
        if now >= self._patient:  # a row that is locked is being renewed
            silent = "SELECT id FROM servers WHERE seen < ? FOR UPDATE SKIP LOCKED"
            self.execute(f"DELETE FROM servers WHERE id IN ({silent})", (now - LEASE_SECONDS,))
        take = f"UPDATE jobs SET server = ?, runs = runs + 1, {CHANGED}"
        left = "ended IS NULL AND server NOT IN (SELECT id FROM servers)"
        self.execute(f"{take} WHERE {left}", (self.server,))

    def cancel(self, job: int) -> None:
        self.execute(f"UPDATE jobs SET cancelled = TRUE, {CHANGED} WHERE id = ? AND ended IS NULL", (job,))

    def own(self, job: int) -> None:
        owned = f"UPDATE jobs SET {CHANGED} WHERE id = ? AND server = ? AND ended IS NULL"
        if not self.execute(owned, (job, self.server)).rowcount:
            raise JobTakenUp

    def keep(self, job: int, picture: bytes) -> str:
        name = hashlib.sha256(picture).hexdigest()
        self.execute("INSERT INTO pictures VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (job, name, picture))
        return name

    def picture(self, job: int, name: str) -> bytes | None:
        found = self.execute("SELECT data FROM pictures WHERE job = ? AND name = ?", (job, name)).fetchone()
        return found[0] if found is not None else None


def _prepare(connection: psycopg.Connection[Any]) -> None:
    """Bring the tables to the format of today. What is there needs no right to make it.

    :raises psycopg.DatabaseError: the format is of a later version
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        there = "SELECT to_regnamespace(%s) IS NOT NULL, to_regclass('format') IS NOT NULL"
        schema, table = connection.execute(there, (SCHEMA,)).fetchone() or (False, False)
        if not schema:
            connection.execute(f"CREATE SCHEMA {SCHEMA}")
        if not table:
            connection.execute("CREATE TABLE format (version INTEGER NOT NULL)")
            connection.execute("INSERT INTO format VALUES (0)")
        (version,) = connection.execute("SELECT version FROM format").fetchone() or (0,)
        if version > len(MIGRATIONS):
            words = f"its format {version} is of a later version of Darkroom; this one knows {len(MIGRATIONS)}"
            raise psycopg.DatabaseError(words)
        for script in MIGRATIONS[version:]:
            connection.execute(script)
        if version < len(MIGRATIONS):
            connection.execute("UPDATE format SET version = %s", (len(MIGRATIONS),))
