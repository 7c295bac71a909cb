"""Residency manager: loads models and assets on demand, evicts idle ones (LRU) within a memory budget, and queues jobs
that wait for room."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from darkroom_server.device.allocator import trim_heap
from darkroom_server.device.threads import single_threaded_pool
from darkroom_server.errors import LoadFailed, OutOfMemory, classify

log = logging.getLogger(__name__)

T = TypeVar("T")
Key: TypeAlias = tuple[str, ...]  # kind, name, and for an asset its model


@dataclass(frozen=True, slots=True)
class Loading:
    """Loading progress of a model or asset that a job waits for."""

    model: str
    component: str  # a network of the model, a ControlNet or a LoRA
    phase: Literal["download", "read"]
    bytes_done: int
    bytes_total: int


Report: TypeAlias = Callable[[Loading], None]


class Residency(enum.Enum):
    """The residency state of a holding."""

    ABSENT = "absent"
    LOADING = "loading"
    RESIDENT = "resident"
    LEAVING = "leaving"
    PARKED = "parked"


class Holding(ABC):
    """A model or asset that can be resident on the device. `load`, `park` and `drop` run in threads, one at a time, and
    only while it has no users."""

    parks: bool = False  # whether eviction can keep its weights in host memory

    def __init__(self, key: Key, name: str, device_bytes: int) -> None:
        """`name` is for log lines and errors; `device_bytes` is its size on the device while resident."""
        self.key = key
        self.name = name
        self.device_bytes = device_bytes
        self.parked_bytes = device_bytes  # in host memory while parked
        self.residency = Residency.ABSENT
        self.value: Any = None  # for users while it is resident; None for a model
        self.users = 0
        self.used = 0.0  # time.monotonic of its latest release or loading
        self.closing = False  # being unloaded: accepts no new users

    @abstractmethod
    def load(self, report: Report) -> None:
        """Load onto the device, from host memory if parked."""

    def park(self) -> None:
        """Move from the device to host memory."""
        self.drop()

    @abstractmethod
    def drop(self) -> None:
        """Free its memory on device and host."""

    async def ready(self) -> None:  # noqa: B027
        """Called after each loading, before users get it."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A place in the queue for holdings."""

    holdings: tuple[Holding, ...]
    report: Report
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ResidencyManager:
    """Keeps holdings within a memory budget. For the event loop's thread.

    Tickets for holdings that are not resident wait in a FIFO queue. For its head, idle holdings are evicted, least
    recently used first, until there is room. While it waits for users to release holdings, no later ticket is granted,
    so it cannot starve. After a loading all tickets for resident holdings are granted at once, whatever their position,
    to avoid thrashing between models.
    """

    def __init__(
        self,
        holdings: dict[Key, Holding],
        budget: int | None = None,
        park_budget: int = 0,
        idle_seconds: float | None = None,
        on_freed: Callable[[], None] = lambda: None,
    ) -> None:
        """Sizes in bytes; None is unlimited. `on_freed` is called when device memory was freed by unloading or idle
        expiry, not by eviction for another holding."""
        self.holdings = holdings
        self.budget = float("inf") if budget is None else budget
        self._park_budget = park_budget
        self._idle_seconds = idle_seconds
        self._on_freed = on_freed
        self.loads, self.evictions = 0, 0  # so far
        self._tickets: list[Ticket] = []
        self._changed = asyncio.Event()
        self._loading: asyncio.Future[None] | None = None
        self._loader = single_threaded_pool("loader")
        self._leaver = single_threaded_pool("leaver")  # separate: the loader may be busy while room is made
        self._tasks: set[asyncio.Future[Any]] = set()

    def __getitem__(self, key: Key) -> Holding:
        return self.holdings[key]

    @property
    def waiting(self) -> int:
        """How many wait for holdings."""
        return len(self._tickets)

    @property
    def device_bytes(self) -> int:
        """The size of all holdings on the device, including those loading or leaving."""
        on_device = (h for h in self.holdings.values() if h.residency not in (Residency.ABSENT, Residency.PARKED))
        return sum(h.device_bytes for h in on_device)

    def held_bytes(self) -> tuple[int, int]:
        """Bytes of weights on the device, and parked on the host. May be called on another thread."""
        held = [(h.residency, h.device_bytes) for h in list(self.holdings.values())]
        places = (Residency.RESIDENT, Residency.PARKED)
        device, host = (sum(size for residency, size in held if residency is place) for place in places)
        return device, host

    async def acquire(
        self, keys: Iterable[Key], report: Report = lambda _: None, wait: bool = True
    ) -> dict[tuple[str, str], Any]:
        """Load these holdings unless resident, and pin them until `release`. Returns their values by kind and name.
        Without `wait` fails unless there is room now.

        :raises OutOfMemory: there is no room
        :raises LoadFailed: one of them does not load, or was removed
        """
        keys = dict.fromkeys(keys)
        for key in keys.keys() - self.holdings.keys():
            raise LoadFailed(f"{key[0]} {key[1]} was removed while the job was planned", key)
        holdings = tuple(self.holdings[key] for key in keys)
        needed = sum(h.device_bytes for h in holdings)
        if needed > self.budget:
            raise OutOfMemory(f"{_names(holdings)} take {needed >> 20} MiB, more than the server's budget for models")
        if not wait and self._victims(holdings) is None:
            raise OutOfMemory(f"the models in use leave no room for {_names(holdings)}")
        ticket = Ticket(holdings, report)
        self._tickets.append(ticket)
        self._serve_queue()
        try:
            await ticket.granted
        except asyncio.CancelledError:
            if ticket in self._tickets:
                self._tickets.remove(ticket)
            elif not ticket.granted.cancelled() and ticket.granted.exception() is None:
                self._release(holdings)
            self._serve_queue()
            raise
        return {(holding.key[0], holding.key[1]): holding.value for holding in holdings}

    def are_resident(self, keys: Iterable[Key]) -> bool:
        """Whether these need not be loaded."""
        held = (self.holdings.get(key) for key in keys)
        return all(holding is not None and holding.residency is Residency.RESIDENT for holding in held)

    def release(self, keys: Iterable[Key]) -> None:
        """Unpin holdings that were acquired."""
        self._release([self.holdings[key] for key in dict.fromkeys(keys)])

    async def unload(self, key: Key) -> int:
        """Drop a holding as soon as it has no users. Returns the bytes freed on the device."""
        holding = self.holdings[key]
        holding.closing = True
        try:
            while holding.users or holding.residency in (Residency.LOADING, Residency.LEAVING):
                await self._changed.wait()
            return await self._free([holding], park=False)
        finally:
            holding.closing = False
            self._serve_queue()

    def add(self, holding: Holding) -> None:
        """Have another holding, not loaded yet."""
        self.holdings[holding.key] = holding

    def is_wanted(self, key: Key) -> bool:
        """Whether anybody has or waits for a holding."""
        holding = self.holdings[key]
        return holding.users > 0 or any(holding in ticket.holdings for ticket in self._tickets)

    async def remove(self, key: Key) -> None:
        """Drop a holding once nobody has or waits for it, and forget it. For one that is asked for no more."""
        holding = self.holdings[key]
        while self.is_wanted(key) or holding.residency in (Residency.LOADING, Residency.LEAVING):
            await self._changed.wait()
        await self._free([holding], park=False)
        del self.holdings[key]

    async def relieve(self) -> int:
        """Evict all idle holdings. Returns the bytes freed on the device."""
        return await self._evict(self._idle())

    def close(self) -> None:
        """Shut the threads down."""
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
        self._serve_queue()

    def _expire(self, seconds: float) -> None:
        past = time.monotonic() - seconds
        if expired := [h for h in self._idle() if h.used <= past]:
            self._spawn(self._free(expired))

    async def _free(self, victims: Sequence[Holding], park: bool = True) -> int:
        freed = await self._evict(victims, park)
        self._on_freed()
        return freed

    def _serve_queue(self) -> None:
        """Grant tickets and begin loading, in queue order. Called after each change of state."""
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
        """The idle holdings to evict for these, LRU first; None if that would not make enough room."""
        missing = [h for h in holdings if h.residency in (Residency.ABSENT, Residency.PARKED)]
        excess = self.device_bytes + sum(h.device_bytes for h in missing) - self.budget
        victims = []
        for holding in self._idle():
            if excess > 0 and holding not in holdings:
                victims.append(holding)
                excess -= holding.device_bytes
        return victims if excess <= 0 else None

    def _idle(self) -> list[Holding]:
        """Resident holdings without users, least recently used first."""
        idle = (h for h in self.holdings.values() if h.residency is Residency.RESIDENT and not h.users)
        return sorted(idle, key=lambda h: h.used)

    async def _load(self, missing: Sequence[Holding], room: Awaitable[int]) -> None:
        try:
            await room
            for holding in missing:
                await self._load_one(holding)
        finally:
            self._loading = None
            # Grant all tickets for resident holdings, whatever their position.
            for ticket in list(self._tickets):
                if all(h.residency is Residency.RESIDENT and not h.closing for h in ticket.holdings):
                    self._grant(ticket)
            self._serve_queue()

    async def _load_one(self, holding: Holding) -> None:
        state, began = holding.residency, time.monotonic()
        holding.residency = Residency.LOADING
        try:
            try:
                await self._run(holding.load, self._reporter(holding))
            except Exception as error:
                if not isinstance(classify(error), OutOfMemory):
                    raise
            else:
                state = Residency.RESIDENT
            if state is not Residency.RESIDENT:  # outside the except block, whose traceback keeps tensors alive
                await self.relieve()
                await self._run(holding.load, self._reporter(holding))
            await holding.ready()
        except Exception as error:
            log.error("%s does not load", holding.name, exc_info=error)
            holding.residency = Residency.ABSENT
            await self._run(holding.drop)
            self._fail_tickets(holding, error)
            return
        holding.residency = Residency.RESIDENT
        holding.used = time.monotonic()
        self.loads += 1
        log.info("%s loaded in %.2f s, %d MiB", holding.name, holding.used - began, holding.device_bytes >> 20)

    def _fail_tickets(self, holding: Holding, error: Exception) -> None:
        failure: Exception = LoadFailed(f"{holding.name} does not load; the server's log says why", holding.key)
        if isinstance(classify(error), OutOfMemory):
            failure = OutOfMemory(f"the device has too little memory for {holding.name}")
        failure.__cause__ = error.with_traceback(None)
        for ticket in [t for t in self._tickets if holding in t.holdings]:
            self._tickets.remove(ticket)
            if not ticket.granted.done():
                ticket.granted.set_exception(failure)

    def _reporter(self, holding: Holding) -> Report:
        """Forwards loading progress to all tickets for a holding, from any thread."""
        loop = asyncio.get_running_loop()

        def tell(progress: Loading) -> None:
            for ticket in self._tickets:
                if holding in ticket.holdings:
                    ticket.report(progress)

        def report(progress: Loading) -> None:
            loop.call_soon_threadsafe(tell, progress)

        return report

    def _evict(self, victims: Sequence[Holding], park: bool = True) -> Awaitable[int]:
        """Evict these from the device, parking those that may. Returns the bytes freed on the device. They are
        marked as leaving at once, before this is awaited."""
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
            self.evictions += 1
            log.info("%s %s", holding.name, "parked in host memory" if parks else "evicted")
        if victims:
            self._serve_queue()
        return freed

    def _may_park(self, holding: Holding) -> bool:
        resident = holding.residency is Residency.RESIDENT
        return resident and holding.parks and holding.parked_bytes <= self._park_budget

    async def _make_parking_room(self, holding: Holding) -> bool:
        """Drop parked holdings, least recently used first, until there is room to park this one."""
        parked = sorted((h for h in self.holdings.values() if h.residency is Residency.PARKED), key=lambda h: h.used)
        taken = sum(h.parked_bytes for h in parked)
        while parked and taken + holding.parked_bytes > self._park_budget:
            evicted = parked.pop(0)
            evicted.residency = Residency.LEAVING  # so that it is not loaded meanwhile
            await self._run_in(self._leaver, evicted.drop)
            evicted.residency = Residency.ABSENT
            taken -= evicted.parked_bytes
        return taken + holding.parked_bytes <= self._park_budget

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
