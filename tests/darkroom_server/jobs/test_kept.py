"""The kept jobs alone: which are thrown away, and when."""

import time

import pytest

from darkroom_server.errors import KeptJobsFull
from darkroom_server.jobs.job import Seen
from darkroom_server.jobs.kept import OVERHEAD, KeptJob, KeptJobs

SIZE = OVERHEAD + 1000


def job(name: str, size: int = 1000) -> KeptJob:
    return KeptJob("owner", name, b"", time.time(), size, Seen())


def ended(jobs: KeptJobs, name: str, ago: float) -> KeptJob:
    kept = job(name)
    jobs.add(kept)
    kept.ended = time.time() - ago
    jobs.end(kept)
    return kept


def test_those_whose_time_is_over_go() -> None:
    jobs = KeptJobs(60, 2**30)
    ended(jobs, "late", 30)
    early = ended(jobs, "early", 90)
    jobs.add(job("running"))
    assert jobs.trim() == [early]
    assert [kept.request_id for kept in jobs] == ["late", "running"]


def test_the_first_that_ended_make_room() -> None:
    jobs = KeptJobs(60, 3 * SIZE)
    for number, ago in enumerate((10, 30, 20)):
        ended(jobs, str(number), ago)
    assert jobs.trim() == []
    jobs.add(job("new"))
    assert [kept.request_id for kept in jobs.trim()] == ["1"]
    jobs.add(job("another", 1001))
    assert [kept.request_id for kept in jobs.trim()] == ["2", "0"]
    with pytest.raises(KeptJobsFull):
        jobs.add(job("third"))


def test_what_takes_less_since_it_ended_counts_less() -> None:
    jobs = KeptJobs(60, OVERHEAD + SIZE)
    first = ended(jobs, "first", 2)
    first.request_bytes = 0
    jobs.end(first)
    ended(jobs, "second", 1)
    assert jobs.trim() == []
    jobs.add(job("third", 0))
    assert jobs.trim() == [first]
    jobs.end(first)  # it is no longer there
    assert jobs.trim() == []


def test_one_of_the_same_id_takes_the_place() -> None:
    jobs = KeptJobs(60, 2 * SIZE)
    ended(jobs, "same", 2)
    again = job("same")
    jobs.restore(again)
    assert list(jobs) == [again]
    jobs.add(job("other"))
    assert jobs.trim() == []
