"""The log of kept jobs: what of them outlives the server's process, in a store (`log_sqlite`, `log_postgres`).

What is awaited here is in the store when it returns. All of the store's calls are made on one thread of the log's own,
which commits together whatever was asked for while the last commit was under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from darkroom_plugins.errors import DarkroomError
from darkroom_server.errors import JobLogUnavailable
from darkroom_server.jobs.log_store import LoggedEvent, LoggedJob

if TYPE_CHECKING:
    from darkroom_server.jobs.log_store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")


class JobLog:
    """The log in one store. `open` first; the other coroutines raise JobLogFull or JobLogUnavailable, with the system's
    reason."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="job-log", daemon=True)
        self.refusal: DarkroomError | None = None  # why no job can be kept, if the log cannot be used

    @property
    def shared(self) -> bool:
        """Whether other servers write to it, too."""
        return self._store.shared

    @property
    def server(self) -> str:
        """What the log calls this server."""
        return self._store.server

    async def open(self) -> list[LoggedJob]:
        """Open or create it; what `look` says first. A log that cannot be used, as it is damaged for instance, is
        empty, and has a `refusal` if it is this server's alone: one that is shared may be there later.

        :raises StateDirInUse: another server has the folder
        """
        try:
            self._store.take()
        except DarkroomError as error:
            self.refusal = error
        self._thread.start()
        try:
            return await self.look()
        except DarkroomError as error:
            if not self.shared:
                self.refusal = error
            log.error("kept jobs are refused: %s", error)
            return []

    def close(self) -> None:
        """Wait for what is under way, and let go of the store."""
        self.refusal = self.refusal or JobLogUnavailable("the server is shutting down")  # what comes now would wait on
        if self._thread.is_alive():
            self._calls.put(None)
            self._thread.join()
        self._store.let_go()

    async def look(self, started: Mapping[int, float] | None = None, *, take: bool = True) -> list[LoggedJob]:
        """Say that this server is there, and `take` up the jobs that no server has; all jobs that are new or have
        changed since the last look, oldest first. `started`: since when jobs of this server run."""
        return await self._call(self._store.look, started or {}, take)

    async def add(self, job: LoggedJob, events: Sequence[LoggedEvent]) -> int:
        """Add a job with its first events; the id of it.

        :raises RequestIdInUse: its owner has one of this id in the log
        """
        return await self._call(self._store.add, job, events)

    async def append(self, job: int, events: Sequence[LoggedEvent]) -> None:
        """Add events of a job of this server. :raises JobTakenUp: it is another's by now"""
        await self._call(self._store.append, job, events)

    async def finish(
        self, job: int, started: float | None, ended: float, outcome: str, status: bytes, events: Sequence[LoggedEvent]
    ) -> None:
        """End a job of this server, with its last events. Its request is no longer needed.

        :raises JobTakenUp: it is another's by now
        """
        await self._call(self._store.finish, job, (started, ended, outcome, status), events)

    async def note(self, job: int, begun: int, ends: str) -> None:
        """Write how far a run of an unfinished job of this server is; see LoggedJob.

        :raises JobTakenUp: it is another's by now
        """
        await self._call(self._store.note, job, begun, ends)

    async def cancel(self, job: int) -> None:
        """Have the server that has an unfinished job end it."""
        await self._call(self._store.cancel, job)

    async def events(self, job: int, after: int = 0) -> tuple[list[LoggedEvent], bool]:
        """The events of a job after this sequence, in order, and whether those are all: whose picture is gone or
        damaged is left out."""
        return await self._call(self._store.events, job, after)

    async def first_event(self, job: int) -> tuple[bytes, int]:
        """The data of a job's first event, and the bytes of its request and all of its events."""
        return await self._call(self._store.first_event, job)

    async def known(self, jobs: Iterable[int]) -> set[int]:
        """Those of some jobs that are in the log."""
        return await self._call(self._store.known, list(jobs))

    async def forget(self, jobs: Iterable[int]) -> None:
        """Delete jobs, and their pictures."""
        await self._call(self._store.forget, list(jobs))

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        if self.refusal is not None:
            raise self.refusal
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put(_Call(function, arguments, loop, future))
        return await future

    # Everything below runs on the log's thread.

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            calls = [call]
            with contextlib.suppress(queue.Empty):
                while (call := self._calls.get_nowait()) is not None:
                    calls.append(call)
            self._commit(calls)
            if call is None:
                break
        self._store.close()

    def _commit(self, calls: Sequence[_Call]) -> None:
        """Run the calls in one transaction; one that fails leaves no trace."""
        try:
            self._store.connect()
            self._store.execute("BEGIN" if self.shared else "BEGIN IMMEDIATE")
            for call in calls:
                self._attempt(call)
            self._store.execute("COMMIT")
        except Exception as error:  # without this thread all that waits for it would hang
            failure = self._store.explained(error)
            self._store.roll_back()
            for call in calls:
                call.error = call.error or failure
        for call in calls:
            call.answer()

    def _attempt(self, call: _Call) -> None:
        self._store.execute("SAVEPOINT call")
        try:
            call.result = call.function(*call.arguments)
        except Exception as error:
            call.error = self._store.explained(error)
            self._store.execute("ROLLBACK TO call")
        self._store.execute("RELEASE call")


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
