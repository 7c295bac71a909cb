"""Decides what is in memory: who is loaded, who leaves when there is no room, and who waits for whom."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from darkroom_server.device.allocator import trim_heap
from darkroom_server.device.threads import single_threaded_pool
from darkroom_server.errors import LoadFailed, OutOfMemory, classify

log = logging.getLogger(__name__)

T = TypeVar("T")
Key: TypeAlias = tuple[str, ...]  # its kind, its name, and of an asset the model that it is for


@dataclass(frozen=True, slots=True)
class Loading:
    """What the job waits for is being loaded: so many bytes of this phase are done."""

    model: str
    component: str  # a network of the model, or a ControlNet or LoRA
    phase: Literal["download", "read"]
    bytes_done: int
    bytes_total: int


Report: TypeAlias = Callable[[Loading], None]


class Residency(enum.Enum):
    """Where something is."""

    ABSENT = "absent"
    LOADING = "loading"
    RESIDENT = "resident"
    LEAVING = "leaving"
    PARKED = "parked"


class Holding(ABC):
    """Something that takes memory on the device while it is loaded. `load`, `park` and `drop` run in threads, one at
    a time, and only while nobody uses it."""

    parks: bool = False  # whether it can leave its weights in the CPU's memory

    def __init__(self, key: Key, name: str, device_bytes: int) -> None:
        """Its name is for people; the bytes are what it takes on the device while it is resident."""
        self.key = key
        self.name = name
        self.device_bytes = device_bytes
        self.residency = Residency.ABSENT
        self.value: Any = None  # what users get, while it is resident; None of a model
        self.users = 0
        self.used = 0.0  # time.monotonic when it was let go of last
        self.closing = False  # no more users until it has left

    @abstractmethod
    def load(self, report: Report) -> None:
        """Bring it onto the device, from the CPU's memory if it is parked there."""

    def park(self) -> None:
        """Leave the device, but stay in the CPU's memory."""
        self.drop()

    @abstractmethod
    def drop(self) -> None:
        """Leave all memory."""

    async def ready(self) -> None:  # noqa: B027
        """What is to be done after each loading."""


@dataclass(slots=True, eq=False)
class Ticket:
    """Somebody who waits for holdings."""

    holdings: tuple[Holding, ...]
    report: Report
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ResidencyManager:
    """Holdings under a budget, for the event loop's thread.

    Who needs holdings that are not resident waits in a queue. Its head is served first: those that nobody uses leave,
    the ones used longest ago first, until there is room. Nobody behind it may keep in use what it waits for; but when
    something has been loaded, all who wait for it have it at once, so that models do not change places for each job.
    """

    def __init__(
        self,
        holdings: Mapping[Key, Holding],
        budget: int | None = None,
        park_budget: int = 0,
        idle_seconds: float | None = None,
        on_freed: Callable[[], None] = lambda: None,
    ) -> None:
        """Sizes in bytes; no budget is no limit. `on_freed` is called when memory of the device
        was freed, and not for something else that takes its place."""
        self.holdings = holdings
        self.budget = float("inf") if budget is None else budget
        self._park_budget = park_budget
        self._idle_seconds = idle_seconds
        self._on_freed = on_freed
        self._tickets: list[Ticket] = []
        self._changed = asyncio.Event()
        self._loading: asyncio.Future[None] | None = None
        self._loader = single_threaded_pool("loader")
        self._leaver = single_threaded_pool("leaver")  # another one: the loader may be loading what waits for the room
        self._tasks: set[asyncio.Future[Any]] = set()

    def __getitem__(self, key: Key) -> Holding:
        return self.holdings[key]

    @property
    def waiting(self) -> int:
        """How many wait for holdings."""
        return len(self._tickets)

    @property
    def device_bytes(self) -> int:
        """What is on the device now, or on its way there or away."""
        here = (h for h in self.holdings.values() if h.residency not in (Residency.ABSENT, Residency.PARKED))
        return sum(h.device_bytes for h in here)

    async def acquire(
        self, keys: Iterable[Key], report: Report = lambda _: None, wait: bool = True
    ) -> dict[tuple[str, str], Any]:
        """Have these holdings resident, and kept so until `release`: their values, by kind and name. Without `wait`
        only if there is room now.

        :raises OutOfMemory: there is no room
        :raises LoadFailed: one of them does not load
        """
        holdings = tuple(self.holdings[key] for key in dict.fromkeys(keys))
        needed = sum(h.device_bytes for h in holdings)
        if needed > self.budget:
            raise OutOfMemory(f"{_names(holdings)} take {needed >> 20} MiB, more than the server's budget for models")
        if not wait and self._victims(holdings) is None:
            raise OutOfMemory(f"the models in use leave no room for {_names(holdings)}")
        ticket = Ticket(holdings, report)
        self._tickets.append(ticket)
        self._pump()
        try:
            await ticket.granted
        except asyncio.CancelledError:
            if ticket in self._tickets:
                self._tickets.remove(ticket)
            elif not ticket.granted.cancelled() and ticket.granted.exception() is None:
                self._release(holdings)
            self._pump()
            raise
        return {(holding.key[0], holding.key[1]): holding.value for holding in holdings}

    def release(self, keys: Iterable[Key]) -> None:
        """Give back what was acquired."""
        self._release([self.holdings[key] for key in dict.fromkeys(keys)])

    async def unload(self, key: Key) -> int:
        """Take a holding out of memory as soon as nobody uses it; how many bytes that freed on the device."""
        holding = self.holdings[key]
        holding.closing = True
        try:
            while holding.users or holding.residency in (Residency.LOADING, Residency.LEAVING):
                await self._changed.wait()
            return await self._free([holding], park=False)
        finally:
            holding.closing = False
            self._pump()

    async def relieve(self) -> int:
        """Take everything that nobody uses off the device; how many bytes that freed there."""
        return await self._evict(self._idle())

    def close(self) -> None:
        """Let go of the threads."""
        for task in self._tasks:
            task.cancel()
        for thread in (self._loader, self._leaver):
            thread.shutdown(wait=False, cancel_futures=True)

    def _release(self, holdings: Sequence[Holding]) -> None:
        for holding in holdings:
            holding.users -= 1
            holding.used = time.monotonic()
        if self._idle_seconds is not None:
            asyncio.get_running_loop().call_later(self._idle_seconds, self._expire, self._idle_seconds)
        self._pump()

    def _expire(self, seconds: float) -> None:
        past = time.monotonic() - seconds
        if expired := [h for h in self._idle() if h.used <= past]:
            self._spawn(self._free(expired))

    async def _free(self, victims: Sequence[Holding], park: bool = True) -> int:
        freed = await self._evict(victims, park)
        self._on_freed()
        return freed

    def _pump(self) -> None:
        """Serve who waits, as far as it goes. Called after each change."""
        self._changed.set()
        self._changed.clear()
        for ticket in list(self._tickets):
            missing = [h for h in ticket.holdings if h.residency is not Residency.RESIDENT]
            if any(h.closing or h.residency is Residency.LEAVING for h in ticket.holdings):
                continue
            if not missing:
                self._grant(ticket)
            elif self._loading is None:
                victims = self._victims(ticket.holdings)
                if victims is None:
                    return
                self._loading = self._spawn(self._load(missing, self._evict(victims)))

    def _grant(self, ticket: Ticket) -> None:
        self._tickets.remove(ticket)
        for holding in ticket.holdings:
            holding.users += 1
        if not ticket.granted.done():
            ticket.granted.set_result(None)

    def _victims(self, holdings: Sequence[Holding]) -> list[Holding] | None:
        """Who must leave so that all of these are resident; None where there is no room even so."""
        missing = [h for h in holdings if h.residency in (Residency.ABSENT, Residency.PARKED)]
        excess = self.device_bytes + sum(h.device_bytes for h in missing) - self.budget
        victims = []
        for holding in self._idle():
            if excess > 0 and holding not in holdings:
                victims.append(holding)
                excess -= holding.device_bytes
        return victims if excess <= 0 else None

    def _idle(self) -> list[Holding]:
        """Those that nobody uses, the one used longest ago first."""
        idle = (h for h in self.holdings.values() if h.residency is Residency.RESIDENT and not h.users)
        return sorted(idle, key=lambda h: h.used)

    async def _load(self, missing: Sequence[Holding], room: Awaitable[int]) -> None:
        try:
            await room
            for holding in missing:
                await self._load_one(holding)
        finally:
            self._loading = None
            # A round for all who wait for what is there now, whoever stands before them.
            for ticket in list(self._tickets):
                if all(h.residency is Residency.RESIDENT and not h.closing for h in ticket.holdings):
                    self._grant(ticket)
            self._pump()

    async def _load_one(self, holding: Holding) -> None:
        was, began = holding.residency, time.monotonic()
        holding.residency = Residency.LOADING
        try:
            try:
                await self._run(holding.load, self._reporter(holding))
            except Exception as error:
                if not isinstance(classify(error), OutOfMemory):
                    raise
            else:
                was = Residency.RESIDENT
            if was is not Residency.RESIDENT:  # outside the except block, which keeps tensors alive
                await self.relieve()
                await self._run(holding.load, self._reporter(holding))
            await holding.ready()
        except Exception as error:
            log.error("%s does not load", holding.name, exc_info=error)
            holding.residency = Residency.ABSENT
            await self._run(holding.drop)
            self._refuse(holding, error)
            return
        holding.residency = Residency.RESIDENT
        holding.used = time.monotonic()
        log.info("%s loaded in %.2f s, %d MiB", holding.name, holding.used - began, holding.device_bytes >> 20)

    def _refuse(self, holding: Holding, error: Exception) -> None:
        failure: Exception = LoadFailed(f"{holding.name} does not load; the server's log says why", holding.key)
        if isinstance(classify(error), OutOfMemory):
            failure = OutOfMemory(f"the device has too little memory for {holding.name}")
        failure.__cause__ = error.with_traceback(None)
        for ticket in [t for t in self._tickets if holding in t.holdings]:
            self._tickets.remove(ticket)
            if not ticket.granted.done():
                ticket.granted.set_exception(failure)

    def _reporter(self, holding: Holding) -> Report:
        """Tells all who wait for it how far it is, from any thread."""
        loop = asyncio.get_running_loop()

        def tell(progress: Loading) -> None:
            for ticket in self._tickets:
                if holding in ticket.holdings:
                    ticket.report(progress)

        def report(progress: Loading) -> None:
            loop.call_soon_threadsafe(tell, progress)

        return report

    def _evict(self, victims: Sequence[Holding], park: bool = True) -> Awaitable[int]:
        """Take these off the device, into the CPU's memory as far as they may; how many bytes that freed there.
        From now on nobody gets them, whenever this is awaited."""
        parking = {h for h in victims if park and self._may_park(h)}
        freed = sum(h.device_bytes for h in victims if h.residency is Residency.RESIDENT)
        for holding in victims:
            holding.residency = Residency.LEAVING
        return self._leave(victims, parking, freed)

    async def _leave(self, victims: Sequence[Holding], parking: Set[Holding], freed: int) -> int:
        for holding in victims:
            parks = holding in parking and await self._make_parking_room(holding)
            await self._run_in(self._leaver, holding.park if parks else holding.drop)
            await self._run_in(self._leaver, trim_heap)
            holding.residency = Residency.PARKED if parks else Residency.ABSENT
            log.info("%s %s", holding.name, "is parked" if parks else "left memory")
        if victims:
            self._pump()
        return freed

    def _may_park(self, holding: Holding) -> bool:
        resident = holding.residency is Residency.RESIDENT
        return resident and holding.parks and holding.device_bytes <= self._park_budget

    async def _make_parking_room(self, holding: Holding) -> bool:
        """Drop what was parked longest ago until there is room for this one."""
        parked = sorted((h for h in self.holdings.values() if h.residency is Residency.PARKED), key=lambda h: h.used)
        taken = sum(h.device_bytes for h in parked)
        while parked and taken + holding.device_bytes > self._park_budget:
            gone = parked.pop(0)
            gone.residency = Residency.LEAVING  # nobody loads it meanwhile
            await self._run_in(self._leaver, gone.drop)
            gone.residency = Residency.ABSENT
            taken -= gone.device_bytes
        return taken + holding.device_bytes <= self._park_budget

    async def _run(self, function: Callable[..., None], *arguments: object) -> None:
        await self._run_in(self._loader, function, *arguments)

    async def _run_in(self, thread: ThreadPoolExecutor, function: Callable[..., None], *arguments: object) -> None:
        await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)

    def _spawn(self, work: Awaitable[T]) -> asyncio.Future[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _names(holdings: Sequence[Holding]) -> str:
    return " and ".join(holding.name for holding in holdings)
