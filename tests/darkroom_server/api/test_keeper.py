"""The keeper alone, on a log that is slow."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from darkroom_server.api.keeper import Keeper
from darkroom_server.config.settings import Settings
from darkroom_server.jobs.log_store import LoggedJob
from darkroom_server.jobs.numbers import CallNumbers
from tests.darkroom_server.jobs.test_log import job


def test_what_the_log_says_is_taken_in_though_who_looked_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says it once, and with it perhaps that jobs are to be run here."""

    async def test() -> None:
        answer, took = asyncio.Event(), list[LoggedJob]()

        async def look(*_: Any, **__: Any) -> list[LoggedJob]:
            await answer.wait()
            return [job("taken", taken=True)]

        async def take_in(logged: LoggedJob) -> None:
            took.append(logged)

        backend: Any = SimpleNamespace(jobs=SimpleNamespace(closed=False))
        keeper = Keeper(backend, Settings(), CallNumbers())
        monkeypatch.setattr(keeper, "_log", SimpleNamespace(shared=True, look=look))
        monkeypatch.setattr(keeper, "_take_in_one", take_in)
        finding = asyncio.create_task(keeper.found("", "other"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        finding.cancel()
        await asyncio.wait([finding])
        answer.set()
        await keeper.look()
        assert [each.request_id for each in took] == ["taken", "taken"]

    asyncio.run(asyncio.wait_for(test(), 60))
