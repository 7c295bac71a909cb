"""Step-level batching: selects the slots that share the next evaluation of the denoiser.

Clients get equal shares of the time (`jobs.shares`): of the turns of lanes, and of the rows of a batch. So do the lanes
of a client. A sample that has begun keeps its state while others have its row.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from functools import cache
from itertools import chain, count
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from darkroom_server.engine.slot import Slot
from darkroom_server.jobs.shares import WEIGHTS, Cost, FairShares
from darkroom_server.jobs.speeds import Average

if TYPE_CHECKING:
    import torch

    from darkroom_server.jobs.job import Job
    from darkroom_server.jobs.plan import Plan

# Clients that want more images than the one that wants the least fill a batch as far as they do not slow that one down:
# by more than this much of what it would be slowed down if all took turns. With two clients, a batch may take 1.3 times
# as long as with its rows alone.
SLOWDOWN = 0.65
HELD = 1.5  # images to a row of the batch, that may have begun: they keep their memory while others have their rows
PATIENCE = 8  # longest turns of each lane, after which one has a turn whosever it is


class Party:
    """A client's slots in a lane: those that have begun, and those that wait, by their priorities (weighted fair
    queueing: each waits as long as if its priority had its share to itself)."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.begun: dict[Slot, None] = {}  # oldest first
        self.waiting: list[tuple[float, int, Slot]] = []  # by the place in the order
        self._places: dict[str, float] = {}  # the last one, by priority
        self._now = 0.0  # the place of the last one that began

    def __len__(self) -> int:
        return len(self.begun) + len(self.waiting)

    @property
    def first(self) -> Slot:
        """The next to get rows."""
        return next(self.order())

    def add(self, slot: Slot) -> None:
        """One that waits."""
        priority = slot.job.priority
        place = max(self._now, self._places.get(priority, 0.0)) + slot.rows * slot.evaluations_left / WEIGHTS[priority]
        self._places[priority] = place
        insort(self.waiting, (place, slot.number, slot))

    def begin(self, slot: Slot) -> bool:
        """It is in a batch. Returns whether for the first time."""
        if slot in self.begun:
            return False
        place = next(number for number, each in enumerate(self.waiting) if each[2] is slot)
        self._now = max(self._now, self.waiting.pop(place)[0])
        self.begun[slot] = None
        return True

    def drop(self, slot: Slot) -> bool:
        """Free one. Returns whether it had begun."""
        if slot in self.begun:
            del self.begun[slot]
            return True
        self.waiting = [each for each in self.waiting if each[2] is not slot]
        return False

    def copy(self, copied: Callable[[Slot], Slot]) -> Party:
        """May be called on another thread."""
        party = Party(self.client)
        party.begun = {copied(slot): None for slot in list(self.begun)}
        party.waiting = [(place, number, copied(slot)) for place, number, slot in list(self.waiting)]
        party._places, party._now = dict(self._places), self._now
        return party

    def order(self) -> Iterator[Slot]:
        """Its slots, in the order in which they get rows."""
        yield from list(self.begun)
        yield from (slot for _, _, slot in list(self.waiting))


class Pick(NamedTuple):
    """A client's next slot in the order of a lane: first the first one of each client, then the second one of each, and
    so on. Of those that are due, the one of the client with the least work goes first; then the others."""

    place: float  # 0 for a client's first, then more by one over the priority's weight
    late: bool  # its client has had more than others
    order: float
    number: int
    slot: Slot


class Lane:
    """The slots of one batch key. Those of the next batch are active, the others wait."""

    def __init__(self, solo: bool, shares: FairShares[str]) -> None:
        self.solo = solo
        self.shares = shares
        self.parties: dict[str, Party] = {}  # by client
        self.seconds: Callable[[int], float | None] = lambda rows: None  # of an evaluation of this many rows
        self._begun = 0  # slots of all that have begun
        self.busy = False  # it has its turn
        self._turn_seconds = Average()  # from turn to turn
        self.turn_rows = 0.0  # of a turn: a moving average
        self.last_turn: float | None = None  # time.monotonic
        self.spent_before = shares.spent  # when it had its last turn

    @property
    def slots(self) -> list[Slot]:
        """All, oldest first. May be called on another thread."""
        found = [slot for party in list(self.parties.values()) for slot in party.order()]
        return sorted(found, key=attrgetter("number"))

    @property
    def first(self) -> Slot:
        """Any of them."""
        return next(iter(self.parties.values())).first

    @property
    def turn_seconds(self) -> float | None:
        """Seconds from one turn to the next, other lanes' turns included; None if not known yet."""
        return self._turn_seconds.value

    def wants(self) -> dict[str, float]:
        """Seconds of the evaluations that each client still wants, one after another; 0 if not known yet."""
        seconds = cache(lambda rows: self.seconds(rows) or 0.0)
        firsts = {client: (len(party), party.first) for client, party in self.parties.items()}
        return {client: size * slot.evaluations_left * seconds(slot.rows) for client, (size, slot) in firsts.items()}

    def add(self, slot: Slot) -> None:
        """One that waits."""
        self._party(slot).add(slot)

    def resume(self, slot: Slot) -> None:
        """One that has begun elsewhere."""
        self._party(slot).begun[slot] = None
        self._begun += 1

    def _party(self, slot: Slot) -> Party:
        return self.parties.setdefault(slot.job.client, Party(slot.job.client))

    def begin_turn(self, batch: Collection[Slot], now: float) -> None:
        """A turn begins with this batch."""
        rows = sum(slot.rows for slot in batch)
        if self.last_turn is not None:
            self._turn_seconds.add(now - self.last_turn)
        self.turn_rows = 0.8 * self.turn_rows + 0.2 * rows if self.turn_rows else rows
        self.last_turn, self.spent_before = now, self.shares.spent
        for slot in batch:
            self._begun += self.parties[slot.job.client].begin(slot)

    def drop(self, slot: Slot) -> None:
        """Free a slot."""
        party = self.parties[slot.job.client]
        self._begun -= party.drop(slot)
        if not party:
            del self.parties[slot.job.client]

    def copy(self, copied: Callable[[Slot], Slot]) -> Lane:
        """With copies of its slots and of the shares. May be called on another thread."""
        lane = Lane(self.solo, self.shares.copy())
        lane.seconds = self.seconds
        copies = {client: party.copy(copied) for client, party in list(self.parties.items())}
        lane.parties = {client: party for client, party in copies.items() if party}  # the last slot of one may be going
        lane._begun = sum(len(party.begun) for party in lane.parties.values())
        return lane

    def _picks(self, only_begun: bool) -> Iterator[Pick]:
        """All slots in the order in which they get rows, while the shares are as they are now."""
        parties = list(self.parties.values())
        orders = {party.client: iter(list(party.begun)) if only_begun else party.order() for party in parties}
        sizes = {party.client: len(party) for party in parties}
        tags = {client: self.shares.tag(client) for client in orders}
        latest = min(tags.values(), default=0.0) + self.shares.slack

        def pick(client: str, place: float) -> Pick | None:
            slots = orders[client]
            if (slot := next(slots, None)) is None:
                return None
            late = tags[client] > latest
            order = tags[client] if late else sizes[client] * slot.evaluations_left
            return Pick(place, late, order, slot.number, slot)

        heap = [first for client in orders if (first := pick(client, 0.0))]
        heapq.heapify(heap)
        while heap:
            best = heap[0]
            yield best
            job = best.slot.job
            following = pick(job.client, best.place + 1 / WEIGHTS[job.priority])
            if following is not None:
                heapq.heapreplace(heap, following)
            else:
                heapq.heappop(heap)

    def select_batch(self, row_limit: int) -> list[Slot]:
        """The slots of the next batch, oldest first; at least one."""
        batch: list[Slot] = []
        rows = 0
        too_slow = self._bound(row_limit)
        for pick in self._picks(only_begun=self._begun >= HELD * row_limit):
            if batch and (self.solo or rows + pick.slot.rows > row_limit):
                break
            if batch and too_slow(pick, rows + pick.slot.rows):
                if pick.place >= row_limit:
                    break
                continue
            rows += pick.slot.rows
            batch.append(pick.slot)
        return sorted(batch, key=attrgetter("number"))

    def _bound(self, row_limit: int) -> Callable[[Pick, int], bool]:
        """Whether a pick would make a batch of so many rows too slow for the client that asks for the least."""
        sizes = {client: len(party) for client, party in self.parties.items()}
        if len(sizes) < 2 or self.solo:
            return lambda pick, rows: False
        fewest = self.parties[self.shares.due(sizes, sizes.__getitem__)]
        if len(fewest) >= row_limit:
            return lambda pick, rows: False
        weights = {client: WEIGHTS[party.first.job.priority] for client, party in self.parties.items()}
        others = sum(weights.values()) / weights[fewest.client]
        alone = self.seconds(min(row_limit, sum(slot.rows for slot in fewest.order())))
        longest = alone * max(1.0, SLOWDOWN * others) if alone is not None else None

        def too_slow(pick: Pick, rows: int) -> bool:
            if longest is None or sizes[pick.slot.job.client] <= len(fewest):
                return False
            seconds = self.seconds(rows)
            return seconds is not None and seconds > longest

        return too_slow


class Batcher:
    """Lanes by batch key, one evaluation each. The turn is that of the client that has had the least, and of its lanes
    that of the one that has had the least."""

    def __init__(self) -> None:
        self.shares = FairShares[str]()
        self._lane_shares = FairShares[Hashable]()  # by batch key
        self._lanes: dict[Hashable, Lane] = {}  # the one that had its turn last is the last
        self._slots: dict[Job, list[Slot]] = {}
        self._clients: dict[str, int] = {}  # their numbers of slots
        self._numbers = count()

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def lanes(self) -> list[Lane]:
        """All lanes, that had a turn last the last. May be called on another thread."""
        return list(self._lanes.values())

    def lane_of(self, key: Hashable) -> Lane | None:
        """The lane of a batch key. May be called on another thread."""
        return self._lanes.get(key)

    def jobs(self) -> set[Job]:
        """All jobs with slots."""
        return set(self._slots)

    def add(self, job: Job) -> Lane:
        """Give each of the job's images a slot. Returns their lane."""
        if job.client not in self._clients:
            self.shares.join(job.client, WEIGHTS[job.priority])
        self._clients[job.client] = self._clients.get(job.client, 0) + job.request.num_images
        self._slots[job] = [Slot(job, index, next(self._numbers)) for index in range(job.request.num_images)]
        job.progress.slots_left = job.request.num_images
        lane = self._lane(job.plan)
        for slot in self._slots[job]:
            lane.add(slot)
        return lane

    def move(self, slot: Slot, plan: Plan, latents: torch.Tensor) -> Lane:
        """Let a slot go on by the plan of its next stage, with these latents of the one before, in another lane: there
        it goes before those that have not begun. Returns the lane."""
        self._leave(slot)
        slot.plan, slot.sample, slot.first_stage = plan, None, latents
        slot.batch_cache.clear()
        lane = self._lane(plan)
        lane.resume(slot)
        return lane

    def _lane(self, plan: Plan) -> Lane:
        """The lane of a plan, made if there is none."""
        key = plan.batch_key
        if key not in self._lanes:
            self._lanes[key] = Lane(plan.solo, self.shares)
            self._lane_shares.join(key)
        return self._lanes[key]

    def _leave(self, slot: Slot) -> None:
        key = slot.plan.batch_key
        lane = self._lanes[key]
        lane.drop(slot)
        if not lane.parties:
            del self._lanes[key]
            self._lane_shares.leave(key)

    def next_lane(self, among: Callable[[Lane], bool] = lambda lane: True) -> Lane | None:
        """The lane whose turn it is, of those that are not busy and among these; None if there is none."""
        ready = {key: lane for key, lane in self._lanes.items() if not lane.busy and among(lane)}
        if not ready:
            return None
        key = next(iter(ready)) if len(ready) == 1 else self._due(ready)
        lane = self._lanes[key] = self._lanes.pop(key)
        return lane

    def _due(self, ready: Mapping[Hashable, Lane]) -> Hashable:
        """The lane that has waited for too long; else one of the client whose turn it is."""
        longest = next(iter(ready))
        if self.shares.spent - ready[longest].spent_before > PATIENCE * len(self._lanes) * self.shares.turn:
            return longest
        wants = {key: lane.wants() for key, lane in self._lanes.items()}
        seconds: dict[str, float] = defaultdict(float)
        for client, more in chain.from_iterable(each.items() for each in wants.values()):
            seconds[client] += more
        clients = dict.fromkeys(client for key in ready for client in wants[key])
        client = self.shares.due(clients, lambda client: (seconds[client], self._clients[client]))
        keys = [key for key in ready if client in wants[key]]
        return self._lane_shares.due(keys, lambda key: wants[key][client])

    def charge(self, key: Hashable, costs: Mapping[str, Cost]) -> None:
        """The clients have shared a turn of a lane, which may have gone (see `FairShares.charge`)."""
        self.shares.charge(costs)
        whole = sum(cost for cost, _ in costs.values())
        self._lane_shares.charge({key: (whole, whole)})

    def drop(self, slots: Collection[Slot]) -> None:
        """Free slots."""
        for slot in list(slots):
            job, own = slot.job, self._slots.get(slot.job, [])
            if slot not in own:
                continue
            own.remove(slot)
            if not own:
                del self._slots[job]
            self._forget(slot)

    def drop_job(self, job: Job) -> None:
        """Free all slots of a job."""
        self.drop(self._slots.get(job, ()))

    def _forget(self, slot: Slot) -> None:
        self._leave(slot)
        client = slot.job.client
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]
            self.shares.leave(client)


def parts(batch: Collection[Slot]) -> dict[str, Cost]:
    """Each client's part of a batch's rows, and the same over its jobs' weights."""
    found: dict[str, Cost] = {}
    whole = sum(slot.rows for slot in batch)
    for slot in batch:
        part, weighed = found.get(slot.job.client, (0.0, 0.0))
        own = slot.rows / whole
        found[slot.job.client] = part + own, weighed + own / WEIGHTS[slot.job.priority]
    return found
