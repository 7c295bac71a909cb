"""Step-level batching: selects the slots that share the next evaluation of the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable

from darkroom_server.engine.slot import Slot
from darkroom_server.jobs.job import Job


class Lane:
    """The slots of one batch key, oldest first. Those within the row limit are active, the others wait."""

    def __init__(self, solo: bool) -> None:
        self.solo = solo
        self.slots: list[Slot] = []
        self.busy = False  # it has its turn
        self.turn_seconds: float | None = None  # from turn to turn, other lanes' included: a moving average
        self._last_turn: float | None = None  # time.monotonic

    def record_turn(self, now: float) -> None:
        """A turn begins."""
        if self._last_turn is not None:
            seconds = now - self._last_turn
            self.turn_seconds = seconds if self.turn_seconds is None else 0.8 * self.turn_seconds + 0.2 * seconds
        self._last_turn = now

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

    def next_lane(self, among: Callable[[Lane], bool] = lambda lane: True) -> Lane | None:
        """The next lane of the round, of those that are not busy and among these; None if there is none."""
        key = next((key for key, lane in self._lanes.items() if not lane.busy and among(lane)), None)
        if key is None:
            return None
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
