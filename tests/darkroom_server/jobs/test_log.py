"""The log of kept jobs alone: what is in it after it was closed, killed or damaged."""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from darkroom_server.errors import JobLogUnavailable, RequestIdInUse
from darkroom_server.jobs.log import JobLog
from darkroom_server.jobs.log_sqlite import DATABASE, MIGRATIONS, PICTURES, SMALL, SqliteStore, StateDirInUse
from darkroom_server.jobs.log_store import DONE, LoggedEvent, LoggedJob

SMALL_PICTURE = bytes(range(256)) * 40
PICTURE = SMALL_PICTURE + bytes(SMALL)


def job(name: str, **fields: Any) -> LoggedJob:
    return LoggedJob("owner", name, "Generate", b"digest", b"request", 5.0, **fields)


def parts(*ends: int, first: int = 2, picture: bytes = PICTURE) -> list[LoggedEvent]:
    """Events with the parts of one picture."""
    starts = (0, *ends)
    return [
        LoggedEvent(sequence, b"x", picture, start, stop)
        for sequence, (start, stop) in enumerate(zip(starts, ends, strict=False), first)
    ]


def run(folder: Path, test: Callable[[JobLog, list[LoggedJob]], Coroutine[Any, Any, None]]) -> None:
    async def opened() -> None:
        log = JobLog(SqliteStore(folder))
        try:
            await test(log, await log.open())
        finally:
            log.close()

    asyncio.run(asyncio.wait_for(opened(), 60))


def files(folder: Path) -> list[Path]:
    return sorted((folder / PICTURES).iterdir())


def test_jobs_and_events_are_there_after_it_was_closed(tmp_path: Path) -> None:
    async def write(log: JobLog, jobs: list[LoggedJob]) -> None:
        assert jobs == []
        one = await log.add(job("one", deadline=9.0), [LoggedEvent(1, b"accepted")])
        await log.append(one, parts(4000, 8000, len(PICTURE)))
        two = await log.add(job("two"), [LoggedEvent(1, b"accepted")])
        await log.finish(two, 6.0, 7.0, DONE, b"", [LoggedEvent(2, b"completed")])

    async def read(log: JobLog, jobs: list[LoggedJob]) -> None:
        assert [each.request_id for each in jobs] == ["one", "two"]
        assert (jobs[0].deadline, jobs[0].runs, jobs[0].request, jobs[0].ended) == (9.0, 2, b"request", None)
        assert (jobs[1].outcome, jobs[1].started, jobs[1].ended, jobs[1].request) == (DONE, 6.0, 7.0, b"")
        assert await log.first_event(jobs[0].id) == (b"accepted", 7 + 8 + 3 + len(PICTURE))
        events, whole = await log.events(jobs[0].id)
        assert whole
        assert b"".join(each.picture[each.start : each.stop] for each in events) == PICTURE
        assert [path.read_bytes() for path in files(tmp_path)] == [PICTURE]

    run(tmp_path, write)
    run(tmp_path, read)


def test_a_picture_of_two_jobs_is_one_file_until_both_are_gone(tmp_path: Path) -> None:
    async def test(log: JobLog, _: list[LoggedJob]) -> None:
        ids = [await log.add(job(name), parts(len(PICTURE))) for name in ("one", "two")]
        assert len(files(tmp_path)) == 1
        await log.forget(ids[:1])
        assert len(files(tmp_path)) == 1
        await log.forget(ids[1:])
        assert files(tmp_path) == []
        assert await log.events(ids[1]) == ([], True)

    run(tmp_path, test)


def test_a_small_picture_is_in_the_database_until_no_job_has_it(tmp_path: Path) -> None:
    def stored() -> int:
        with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database:
            return int(database.execute("SELECT COUNT(*) FROM small_pictures").fetchone()[0])

    async def test(log: JobLog, _: list[LoggedJob]) -> None:
        events = parts(4000, len(SMALL_PICTURE), picture=SMALL_PICTURE)
        ids = [await log.add(job(name), events) for name in ("one", "two")]
        assert (files(tmp_path), stored()) == ([], 1)
        assert await log.events(ids[0]) == (events, True)
        await log.forget(ids[:1])
        assert stored() == 1
        await log.forget(ids[1:])
        assert stored() == 0

    run(tmp_path, test)


def test_what_fails_leaves_no_trace_and_the_others_go_on(tmp_path: Path) -> None:
    async def test(log: JobLog, _: list[LoggedJob]) -> None:
        await log.add(job("one"), [])
        calls = [log.add(job(name), [LoggedEvent(1, b"")]) for name in ("two", "one", "three")]  # in one commit
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(each, RequestIdInUse) for each in outcomes] == [False, True, False]

    run(tmp_path, test)
    with sqlite3.connect(tmp_path / DATABASE) as database:
        assert database.execute("SELECT COUNT(*) FROM jobs").fetchone() == (3,)
        assert database.execute("SELECT COUNT(*) FROM events").fetchone() == (2,)
    database.close()


def test_a_damaged_picture_is_told(tmp_path: Path) -> None:
    async def test(log: JobLog, _: list[LoggedJob]) -> None:
        one = await log.add(job("one"), [LoggedEvent(1, b"accepted"), *parts(4000, len(PICTURE))])
        files(tmp_path)[0].write_bytes(PICTURE[:-1])
        assert await log.events(one) == ([LoggedEvent(1, b"accepted")], False)

    run(tmp_path, test)


def test_what_is_written_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture's file and its folder reach the disk before the event that names it, and each commit does."""
    synced, fsync = list[Path](), os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)

    class Watched(SqliteStore):
        def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
            if "INTO events" in statement:
                assert synced == [*files(tmp_path), tmp_path / PICTURES]
                assert super().execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
            return super().execute(statement, values)

    async def test() -> None:
        log = JobLog(Watched(tmp_path))
        await log.open()
        await log.add(job("one"), parts(len(PICTURE)))
        log.close()

    asyncio.run(test())
    assert len(synced) == 2


def test_files_that_nothing_names_are_swept(tmp_path: Path) -> None:
    async def nothing(log: JobLog, jobs: list[LoggedJob]) -> None:
        pass

    run(tmp_path, nothing)
    (tmp_path / PICTURES / ".cut-short").write_bytes(b"x")
    run(tmp_path, nothing)
    assert files(tmp_path) == []


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
def test_a_log_of_each_format_is_migrated(tmp_path: Path, version: int) -> None:
    """With a job that had not ended, and one that had, with its events."""
    database = sqlite3.connect(tmp_path / DATABASE)
    for script in MIGRATIONS[:version]:
        database.executescript(script)
    database.execute(
        "INSERT INTO jobs (id, owner, request_id, rpc, digest, request, created, ended, outcome) VALUES"
        " (1, '', 'old', 'Edit', x'', x'01', 3.0, NULL, ''), (2, '', 'done', 'Edit', x'', x'01', 3.0, 4.0, 'done')"
    )
    database.execute("INSERT INTO events (job, sequence, data) VALUES (2, 7, x'05')")
    database.execute(f"PRAGMA user_version = {version}")
    database.commit()
    database.close()

    async def test(log: JobLog, jobs: list[LoggedJob]) -> None:
        found = [(each.request_id, each.rpc, each.deadline, each.outcome) for each in jobs]
        assert found == [("old", "Edit", None, ""), ("done", "Edit", None, "done")]
        assert await log.events(2) == ([LoggedEvent(7, b"\5")], True)
        await log.add(job("new", deadline=4.0), [])

    run(tmp_path, test)
    with sqlite3.connect(tmp_path / DATABASE) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    database.close()


def later_format(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [(lambda path: path.write_bytes(b"no database " * 999), "not a database"), (later_format, "format 99")],
)
def test_a_log_that_cannot_be_used_says_why(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(tmp_path / DATABASE)

    async def test(log: JobLog, jobs: list[LoggedJob]) -> None:
        assert jobs == []
        assert words in str(log.refusal)
        with pytest.raises(JobLogUnavailable, match=words):
            await log.add(job("one"), [])

    run(tmp_path, test)


def test_two_servers_cannot_have_one_folder(tmp_path: Path) -> None:
    async def test(log: JobLog, _: list[LoggedJob]) -> None:
        other = JobLog(SqliteStore(tmp_path))
        with pytest.raises(StateDirInUse, match="another server"):
            await other.open()
        other.close()

    run(tmp_path, test)


def test_the_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    async def nothing(log: JobLog, jobs: list[LoggedJob]) -> None:
        pass

    run(tmp_path / "deep/state", nothing)
    assert (tmp_path / "deep/state").stat().st_mode & 0o777 == 0o700
