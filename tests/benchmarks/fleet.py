"""A discrete-event model of a fleet: devices that step batches and keep models within a budget, behind a router.

It has the server's step-level batching (`engine.batcher`) for jobs of one client, its queue for models
(`models.residency`), the bound of its queue, and the choice of `cluster.placement` by what replicas have in memory and
the models of their calls, but that the first of equals is taken. It has not: fair shares between clients, cancels,
failures, pictures of several sizes.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import simpy

from darkroom_server.cluster.placement import SPILL
from tests.benchmarks.driving import percentile

ROWS = 2  # of a picture, with guidance
STEPS = (12, 16, 20, 24, 28)  # of pictures, equally often
BURST, BURST_SHARE, CYCLE = 2.5, 0.2, 20.0  # times the mean rate, for this share of the cycle's seconds
Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Speeds:
    """Seconds of a device's work."""

    tick: Callable[[int], float]  # an evaluation of so many rows, with guidance and scheduler
    picture: float = 0.0  # what a picture takes of the device beside its steps: encoding, decoding
    job: float = 0.0  # what a job takes beside the device: its way there and back
    load: float = 0.0  # loading a model
    beside: float = 1.0  # how many times as long a tick takes while another device computes, if they share a machine
    event: float = 0.0  # by how much a job's event lengthens a tick, if the edge shares the machine
    shared: float = 0.0  # what a job's step takes of the machine's cores beside its tick: of edge, cluster and clients

    def images_per_s(self, rows: int, steps: float) -> float:
        """Of a device with one model and always so many rows."""
        return rows / ROWS / (steps * self.tick(rows) + rows / ROWS * self.picture)


def curve(seconds: Mapping[float, float]) -> Callable[[int], float]:
    """Seconds by rows: linear between those that were measured."""
    rows = sorted(seconds)
    table = np.interp(range(int(rows[-1]) + 1), rows, [seconds[each] for each in rows]).tolist()
    return table.__getitem__  # type: ignore[no-any-return]


@dataclass(slots=True, eq=False)
class Job:
    """A picture to make."""

    model: int
    left: int  # steps
    arrived: float
    done: simpy.Event | None = None  # who waits for it


class Device:
    """An engine and its residency manager."""

    def __init__(self, fleet: Fleet, index: int) -> None:
        self._fleet, self._env, self._index = fleet, fleet.env, index
        self._lanes: dict[int, list[Job]] = {}  # by model, that had its turn last the last
        self._waiting: deque[Job] = deque()  # for their model
        held = range(index * fleet.budget, (index + 1) * fleet.budget)
        self.resident = dict.fromkeys(number % fleet.models for number in held)  # least recently used first
        self._users: Counter[int] = Counter()
        self.loading: int | None = None
        self.wanted: Counter[int] = Counter()  # the models of its calls
        self._idle: simpy.Event | None = None
        self.loads, self.rows, self.ticks, self.busy, self.loading_s = 0, 0, 0, 0.0, 0.0
        self._env.process(self._run())

    def submit(self, job: Job) -> bool:
        """Whether there is room for it."""
        if len(self._waiting) >= self._fleet.queue:
            return False
        self._waiting.append(job)
        self._serve()
        return True

    def _serve(self) -> None:
        """As `ResidencyManager._serve_queue`: in their order, and none before one that waits for room."""
        for job in list(self._waiting):
            if job.model in self.resident:
                self._grant(job)
            elif self.loading is None:
                idle = next((model for model in self.resident if not self._users[model]), None)
                if len(self.resident) >= self._fleet.budget:
                    if idle is None:
                        return
                    del self.resident[idle]
                self.loading = job.model
                self._env.process(self._load(job.model))

    def _grant(self, job: Job) -> None:
        self._waiting.remove(job)
        self._users[job.model] += 1
        self._lanes.setdefault(job.model, []).append(job)
        if self._idle is not None:
            self._idle.succeed()
            self._idle = None

    def _load(self, model: int) -> Process:
        yield self._env.timeout(self._fleet.speeds.load)
        self.loading, self.resident[model] = None, None
        self.loads += 1
        self.loading_s += self._fleet.speeds.load
        for job in [each for each in self._waiting if each.model in self.resident]:
            self._grant(job)
        self._serve()

    def _run(self) -> Process:
        while True:
            if not self._lanes:
                self._idle = self._env.event()
                yield self._idle
            model = next(iter(self._lanes))
            lane = self._lanes[model] = self._lanes.pop(model)
            batch = lane[: self._fleet.limit // ROWS]
            seconds = self._seconds(batch)
            self._fleet.computing += 1
            yield self._env.timeout(seconds)
            self._fleet.computing -= 1
            self.busy, self.rows, self.ticks = self.busy + seconds, self.rows + ROWS * len(batch), self.ticks + 1
            self._step(model, batch)

    def _seconds(self, batch: list[Job]) -> float:
        speeds = self._fleet.speeds
        others = self._fleet.computing
        tick = speeds.tick(ROWS * len(batch)) * (speeds.beside if others else 1.0)
        crowded = others + 1 >= self._fleet.cores  # no core is left for what comes besides
        events = len(batch) * (speeds.event + crowded * speeds.shared)
        return tick + events + sum(job.left == 1 for job in batch) * speeds.picture

    def _step(self, model: int, batch: list[Job]) -> None:
        for job in batch:
            job.left -= 1
        ended = [job for job in batch if not job.left]
        if not ended:
            return
        self._lanes[model] = lane = [job for job in self._lanes[model] if job.left]
        if not lane:
            del self._lanes[model]
        self._users[model] -= len(ended)
        self.resident[model] = self.resident.pop(model)
        for job in ended:
            self._fleet.end(job, self._index)
        self._serve()


Policy = Callable[["Fleet", int], int]  # the device for a job of this model


def at_random(fleet: Fleet, model: int) -> int:
    return fleet.coin.randrange(fleet.size)


def least_loaded(fleet: Fleet, model: int) -> int:
    return int(fleet.calls.argmin())


def affine(fleet: Fleet, model: int, spill: float = float("inf")) -> int:
    """The least loaded of those that have the model; any, if none has it, or those have `spill` calls more."""
    having = fleet.known[model]
    if not having.any():
        return least_loaded(fleet, model)
    best, other = np.where(having, fleet.calls, np.inf).argmin(), np.where(having, np.inf, fleet.calls).argmin()
    spills = not having[other] and fleet.calls[best] >= fleet.calls[other] + spill
    return int(other if spills else best)


POLICIES: dict[str, Policy] = {
    "random": at_random,
    "least loaded": least_loaded,
    "affine": affine,
    "affine with spill": partial(affine, spill=SPILL),
}


@dataclass
class Fleet:
    """Devices, their router, and what comes of them, counted from `warm` seconds on. In the beginning the devices have
    the models in memory, one after another."""

    speeds: Speeds
    size: int
    policy: Policy = least_loaded
    models: int = 1
    budget: int = 1  # models in a device's memory
    limit: int = 32  # rows of a batch
    queue: int = 1000  # jobs that wait at a device
    warm: float = 0.0
    seed: int = 0
    cores: float = float("inf")  # that devices of one thread each have together, with all else
    computing: int = 0  # devices, now
    refused: int = 0
    latencies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.env = simpy.Environment()
        self.rng, self.coin = random.Random(self.seed), random.Random(self.seed + 1)  # of arrivals, of routing
        self.calls = np.zeros(self.size)
        self.known = np.zeros((self.models, self.size), dtype=bool)  # which device has which model, or is to
        self.devices = [Device(self, index) for index in range(self.size)]
        self._popularity = list(itertools.accumulate(1 / rank for rank in range(1, self.models + 1)))  # Zipf's
        self._jobs, self._job_seconds, self._since, self._before = 0, 0.0, 0.0, Counter[str]()
        for index in range(self.size):
            self._hear(index)
        self.env.process(self._warm_up())

    def job(self, steps: int | None = None, done: simpy.Event | None = None) -> Job:
        """A job that arrives now."""
        [model] = self.rng.choices(range(self.models), cum_weights=self._popularity)
        return Job(model, steps or self.rng.choice(STEPS), self.env.now, done)

    def arrive(self, job: Job) -> None:
        """At the router."""
        index = self.policy(self, job.model)
        if self.devices[index].submit(job):
            self._count(index, job.model, 1)
        else:
            self.refused += 1

    def end(self, job: Job, index: int) -> None:
        """Called by a device when a picture is made."""
        self._count(index, job.model, -1)
        self.latencies.append(self.env.now - job.arrived + self.speeds.job)
        if job.done is not None:
            job.done.succeed()

    def _count(self, index: int, model: int, more: int) -> None:
        """A device has more jobs of a model, or less."""
        self.devices[index].wanted[model] += more
        self._hear(index)
        self._job_seconds += self._jobs * (self.env.now - self._since)
        self._jobs, self._since = self._jobs + more, self.env.now
        self.calls[index] += more

    def _hear(self, index: int) -> None:
        device = self.devices[index]
        wanted = (model for model, calls in device.wanted.items() if calls)
        self.known[:, index] = False
        self.known[[*device.resident, *([] if device.loading is None else [device.loading]), *wanted], index] = True

    def _warm_up(self) -> Process:
        yield self.env.timeout(self.warm)
        self._job_seconds, self._since, self.refused = 0.0, self.env.now, 0
        self.latencies.clear()
        self._before = self._sums()

    def _sums(self) -> Counter[str]:
        names = ("loads", "rows", "ticks", "busy", "loading_s")
        return Counter({name: sum(getattr(device, name) for device in self.devices) for name in names})

    def outcome(self) -> dict[str, float]:
        """Of a run until now: by device, but for latencies in seconds, `jobs` (in the mean) and `refused` (a share)."""
        seconds = self.env.now - self.warm
        sums = {name: value - self._before[name] for name, value in self._sums().items()}
        made = len(self.latencies)
        return {
            "images/s": made / seconds / self.size,
            "steps/s": sums["rows"] / ROWS / seconds / self.size,
            "p50 s": percentile(self.latencies, 50) if made else float("inf"),
            "p99 s": percentile(self.latencies, 99) if made else float("inf"),
            "mean s": sum(self.latencies) / made if made else float("inf"),
            "loads/h": sums["loads"] / seconds / self.size * 3600,
            "stepping": sums["busy"] / seconds / self.size,
            "loading": sums["loading_s"] / seconds / self.size,
            "rows": sums["rows"] / sums["ticks"] if sums["ticks"] else 0.0,
            "jobs": (self._job_seconds + self._jobs * (self.env.now - self._since)) / seconds,
            "refused": self.refused / max(1, made + self.refused),
        }


def poisson(fleet: Fleet, rate: float, steps: int | None = None) -> Process:
    """Jobs that come by chance, so many a second."""
    while True:
        yield fleet.env.timeout(fleet.rng.expovariate(rate))
        fleet.arrive(fleet.job(steps))


def bursty(fleet: Fleet, rate: float, steps: int | None = None) -> Process:
    """The same rate in the mean, but `BURST` times it in the first part of each cycle."""
    calm = (1 - BURST * BURST_SHARE) / (1 - BURST_SHARE)
    while True:
        yield fleet.env.timeout(fleet.rng.expovariate(rate * BURST))
        if fleet.env.now % CYCLE < BURST_SHARE * CYCLE or fleet.rng.random() < calm / BURST:
            fleet.arrive(fleet.job(steps))


def client(fleet: Fleet, steps: int, count: int | None = None) -> Process:
    """One picture after another, so many or without end."""
    for _ in itertools.count() if count is None else range(count):
        done = fleet.env.event()
        fleet.arrive(fleet.job(steps, done))
        yield done
        yield fleet.env.timeout(fleet.speeds.job)
