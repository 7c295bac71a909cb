"""Picks which samples share the next evaluation."""

from __future__ import annotations

from collections.abc import Collection, Hashable

from darkroom_server.engine.seat import Seat
from darkroom_server.jobs.job import Job


class Lane:
    """The samples of one batch key, oldest first. Those within the row limit are in the making, the others wait."""

    def __init__(self, solo: bool) -> None:
        self.solo = solo
        self.seats: list[Seat] = []

    def gather(self, row_limit: int) -> list[Seat]:
        """The oldest seats that fit into one batch; at least one."""
        if self.solo:
            return self.seats[:1]
        gathered: list[Seat] = []
        rows = 0
        for seat in self.seats:
            rows += seat.rows
            if gathered and rows > row_limit:
                break
            gathered.append(seat)
        return gathered


class Batcher:
    """Lanes by batch key, which take turns: each gets one evaluation, then goes behind the others."""

    def __init__(self) -> None:
        self._lanes: dict[Hashable, Lane] = {}

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def lanes(self) -> list[Lane]:
        """All lanes, the one whose turn is next first."""
        return list(self._lanes.values())

    def jobs(self) -> set[Job]:
        """All jobs that have seats."""
        return {seat.job for lane in self.lanes() for seat in lane.seats}

    def add(self, job: Job) -> None:
        """Give each of the job's images a seat."""
        key = job.plan.batch_key(job.request)
        lane = self._lanes.setdefault(key, Lane(solo=bool(key[-1])))
        lane.seats += (Seat(job, index) for index in range(job.request.num_images))
        job.seats_left = job.request.num_images

    def turn(self) -> Lane:
        """The lane whose turn it is; there must be one."""
        key = next(iter(self._lanes))
        lane = self._lanes[key] = self._lanes.pop(key)
        return lane

    def drop(self, seats: Collection[Seat]) -> None:
        """Free these seats."""
        gone = set(seats)
        for key, lane in list(self._lanes.items()):
            lane.seats = [seat for seat in lane.seats if seat not in gone]
            if not lane.seats:
                del self._lanes[key]

    def drop_job(self, job: Job) -> None:
        """Free all seats of a job."""
        self.drop([seat for lane in self.lanes() for seat in lane.seats if seat.job is job])
