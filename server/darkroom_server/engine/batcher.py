"""Step-level batching: selects the slots that share the next evaluation of the denoiser."""

from __future__ import annotations

from collections.abc import Collection, Hashable

from darkroom_server.engine.slot import Slot
from darkroom_server.jobs.job import Job


class Lane:
    """The slots of one batch key, oldest first. Those within the row limit are active, the others wait."""

    def __init__(self, solo: bool) -> None:
        self.solo = solo
        self.slots: list[Slot] = []

    def select_batch(self, row_limit: int) -> list[Slot]:
        """The oldest slots that fit into one batch; at least one."""
        if self.solo:
            return self.slots[:1]
        batch: list[Slot] = []
        rows = 0
        for slot in self.slots:
            rows += slot.rows
            if batch and rows > row_limit:
                break
            batch.append(slot)
        return batch


class Batcher:
    """Lanes by batch key, served round-robin, one evaluation each."""

    def __init__(self) -> None:
        self._lanes: dict[Hashable, Lane] = {}

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def lanes(self) -> list[Lane]:
        """All lanes, the next one first."""
        return list(self._lanes.values())

    def jobs(self) -> set[Job]:
        """All jobs with slots."""
        return {slot.job for lane in self.lanes() for slot in lane.slots}

    def add(self, job: Job) -> None:
        """Give each of the job's images a slot."""
        lane = self._lanes.setdefault(job.plan.batch_key, Lane(job.plan.solo))
        lane.slots += (Slot(job, index) for index in range(job.request.num_images))
        job.progress.slots_left = job.request.num_images

    def next_lane(self) -> Lane:
        """The next lane of the round; there must be one."""
        key = next(iter(self._lanes))
        lane = self._lanes[key] = self._lanes.pop(key)
        return lane

    def drop(self, slots: Collection[Slot]) -> None:
        """Free slots."""
        freed = set(slots)
        for key, lane in list(self._lanes.items()):
            lane.slots = [slot for slot in lane.slots if slot not in freed]
            if not lane.slots:
                del self._lanes[key]

    def drop_job(self, job: Job) -> None:
        """Free all slots of a job."""
        self.drop([slot for lane in self.lanes() for slot in lane.slots if slot.job is job])
