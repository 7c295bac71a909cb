"""The log of kept jobs in a database that several servers share."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import psycopg
import pytest

from darkroom_server.errors import JobLogUnavailable, RequestIdInUse
from darkroom_server.jobs import log_postgres
from darkroom_server.jobs.log import JobLog
from darkroom_server.jobs.log_postgres import PostgresStore
from darkroom_server.jobs.log_store import DONE, LoggedEvent
from tests.darkroom_server.jobs.test_log import PICTURE, job, parts
from tests.postgres import disconnect, empty, postgres


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture
def url(database: str) -> str:
    empty(database)
    return database


def run(url: str, test: Callable[..., Coroutine[Any, Any, None]], servers: int = 2) -> None:
    """A test of as many logs on one database, each opened before the next."""

    async def opened() -> None:
        logs = [JobLog(PostgresStore(url)) for _ in range(servers)]
        try:
            for each in logs:
                assert await each.open() == []
            await test(*logs)
        finally:
            for each in logs:
                each.close()

    asyncio.run(asyncio.wait_for(opened(), 60))


def test_one_server_sees_what_another_writes(url: str) -> None:
    async def test(one: JobLog, other: JobLog) -> None:
        written = await one.add(job("one", deadline=9.0), [LoggedEvent(1, b"accepted")])
        await one.append(written, parts(4000, 8000, len(PICTURE)))
        assert (await one.look({written: 6.0}))[0].request == b"request"
        (seen,) = await other.look()
        assert (seen.request_id, seen.server, seen.taken, seen.started) == ("one", one.server, False, 6.0)
        assert seen.request == b""  # which may be large, and is none of its business
        assert await other.first_event(seen.id) == (b"accepted", 7 + 8 + 3 + len(PICTURE))
        events, whole = await other.events(seen.id, after=1)
        assert whole
        assert b"".join(each.picture[each.start : each.stop] for each in events) == PICTURE
        await one.finish(written, 6.0, 7.0, DONE, b"", [LoggedEvent(9, b"completed")])
        (seen,) = await other.look()
        assert (seen.outcome, seen.ended) == (DONE, 7.0)
        assert (await other.events(seen.id, after=4))[0] == [LoggedEvent(9, b"completed")]
        await other.forget([seen.id])
        assert await one.events(written) == ([], True)

    run(url, test)


def test_an_id_is_one_jobs_whoever_has_it(url: str) -> None:
    async def test(one: JobLog, other: JobLog) -> None:
        await one.add(job("same"), [])
        calls = [other.add(job(name), [LoggedEvent(1, b"")]) for name in ("two", "same", "three")]  # in one commit
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(each, RequestIdInUse) for each in outcomes] == [False, True, False]

    run(url, test)


def test_the_jobs_of_a_server_that_ends_are_taken_up_once(url: str) -> None:
    async def test(one: JobLog, two: JobLog, three: JobLog) -> None:
        await one.add(job("left"), [LoggedEvent(1, b"accepted")])
        done = await one.add(job("done"), [LoggedEvent(1, b"accepted")])
        await one.finish(done, 1.0, 2.0, DONE, b"", [])
        one.close()
        looks = await asyncio.gather(two.look(), three.look())
        (taken,) = [each for look in looks for each in look if each.taken]
        assert (taken.request_id, taken.runs, taken.request) == ("left", 2, b"request")

    run(url, test, servers=3)


def test_servers_that_start_together_take_a_job_up_once(url: str) -> None:
    """None is known to the others before it has committed."""

    async def test(one: JobLog) -> None:
        await one.add(job("left"), [])
        one.close()
        with psycopg.connect(url, options="-c search_path=darkroom") as starting:  # it has not committed
            starting.execute("SELECT pg_advisory_xact_lock(%s)", (log_postgres.TAKING_LOCK,))
            starting.execute("INSERT INTO servers VALUES ('starting', 1e12)")
            starting.execute("UPDATE jobs SET server = 'starting'")
            other = JobLog(PostgresStore(url))
            opening = asyncio.create_task(other.open())
            await asyncio.sleep(0.5)
            starting.commit()
        try:
            assert not any(each.taken for each in [*await opening, *await other.look()])
        finally:
            other.close()

    run(url, test, servers=1)


def test_a_server_that_was_silent_has_lost_its_jobs(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was only slow: what it writes now must not mix with what the other does."""

    async def test(slow: JobLog, other: JobLog) -> None:
        slows = await slow.add(job("one"), [LoggedEvent(1, b"accepted")])
        assert not any(each.taken for each in await other.look())
        with monkeypatch.context() as patched:
            patched.setattr(log_postgres, "LEASE_SECONDS", 0.0)  # and the other has looked after it
            (taken,) = await other.look()
        assert (taken.taken, taken.runs) == (True, 2)
        for late in (slow.append(slows, parts(len(PICTURE))), slow.finish(slows, 1.0, 2.0, DONE, b"", [])):
            with pytest.raises(JobLogUnavailable, match="took the job up"):
                await late
        (told,) = await slow.look()
        assert (told.server, told.taken) == (other.server, False)
        await other.finish(taken.id, 1.0, 2.0, DONE, b"", [LoggedEvent(2**32 + 2, b"completed")])
        assert [each.sequence for each in (await slow.events(slows))[0]] == [1, 2**32 + 2]

    run(url, test)


def test_what_takes_long_to_write_is_seen_however_late(url: str) -> None:
    async def test(one: JobLog, other: JobLog) -> None:
        written = await one.add(job("one"), [LoggedEvent(1, b"accepted")])
        assert len(await other.look()) == 1
        with psycopg.connect(url) as slow:  # as a server that sends a large picture
            slow.execute("SET search_path = darkroom")
            slow.execute("UPDATE jobs SET ended = 2, changed = DEFAULT WHERE id = %s", (written,))
            for _ in range(3):
                assert all(each.ended is None for each in await other.look())
            slow.commit()
        assert [each.ended for each in await other.look()] == [2.0]
        await other.look()
        assert await other.look() == []

    run(url, test)


def test_what_was_written_though_the_answer_was_lost_can_be_written_again(url: str) -> None:
    """The look that took a job up, too: it is said again."""

    async def test(one: JobLog, two: JobLog) -> None:
        written = await one.add(job("one"), [LoggedEvent(1, b"accepted")])
        with lost_answers(one), pytest.raises(JobLogUnavailable):
            await one.append(written, parts(len(PICTURE)))
        await one.append(written, parts(len(PICTURE)))
        assert [each.sequence for each in (await one.events(written))[0]] == [1, 2]
        one.close()
        with lost_answers(two), pytest.raises(JobLogUnavailable):
            await two.look()
        assert [(each.request_id, each.taken) for each in await two.look()] == [("one", True)]

    run(url, test)


@contextlib.contextmanager
def lost_answers(log: JobLog) -> Iterator[None]:
    """Commits are done, and the connection is lost with their answers."""
    execute = log._store.execute

    def losing(statement: str, values: Sequence[Any] = ()) -> Any:
        found = execute(statement, values)
        if statement == "COMMIT":
            raise psycopg.OperationalError("the connection is lost")
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(log._store, "execute", losing)
        yield


def test_servers_that_were_cut_off_together_keep_their_jobs(url: str) -> None:
    """As by a restart of the database: the first that is back must not take the jobs of all."""

    async def test(first: JobLog, later: JobLog) -> None:
        await later.add(job("later"), [])
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("UPDATE darkroom.servers SET seen = seen - 60")
        first._store._seen -= 60  # type: ignore[attr-defined]
        for _ in range(2):
            assert not any(each.taken for each in await first.look())
        assert [each.taken for each in await later.look()] == [True]

    run(url, test)


def test_nothing_waits_for_a_log_that_is_closed(url: str) -> None:
    async def test(log: JobLog) -> None:
        log.close()
        with pytest.raises(JobLogUnavailable, match="shutting down"):
            await asyncio.wait_for(log.look(), 5)

    run(url, test, servers=1)


def test_a_server_that_ends_takes_up_no_jobs(url: str) -> None:
    async def test(one: JobLog, two: JobLog) -> None:
        await one.add(job("one"), [])
        one.close()
        assert not any(each.taken for each in await two.look(take=False))
        assert [each.taken for each in await two.look()] == [True]

    run(url, test)


def test_a_cancel_reaches_the_server_that_has_the_job(url: str) -> None:
    async def test(one: JobLog, other: JobLog) -> None:
        written = await one.add(job("one"), [])
        await other.cancel(written)
        assert [each.cancelled for each in await one.look()] == [True]

    run(url, test)


def test_a_lost_connection_is_made_again(url: str) -> None:
    async def test(log: JobLog) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            disconnect(connection)
        with pytest.raises(JobLogUnavailable):
            await log.add(job("one"), [])
        await log.add(job("one"), [])

    run(url, test, servers=1)


def test_a_database_that_cannot_be_reached_may_be_there_later() -> None:
    async def test() -> None:
        log = JobLog(PostgresStore("postgresql://nobody@/none?host=/nowhere"))
        try:
            assert await log.open() == []
            assert log.refusal is None
            with pytest.raises(JobLogUnavailable, match="cannot be used") as caught:
                await log.look()
            assert "nowhere" not in str(caught.value)  # clients are told
        finally:
            log.close()

    asyncio.run(test())


def test_what_is_there_needs_no_right_to_make_it(url: str) -> None:
    async def test(log: JobLog) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in (
                "CREATE ROLE guest LOGIN",
                "GRANT USAGE ON SCHEMA darkroom TO guest",
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA darkroom TO guest",
            ):
                connection.execute(statement)
        guest = JobLog(PostgresStore(url.replace("darkroom@", "guest@")))
        assert await guest.open() == []
        added = await guest.add(job("one"), [])
        guest.close()
        assert await log.known([added, added + 1]) == {added}

    run(url, test, servers=1)


def test_a_later_format_is_refused(url: str) -> None:
    async def nothing(log: JobLog) -> None:
        pass

    run(url, nothing, servers=1)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE darkroom.format SET version = 99")

    async def test(log: JobLog) -> None:
        with pytest.raises(JobLogUnavailable, match="format 99"):
            await log.look()

    run(url, test, servers=1)
