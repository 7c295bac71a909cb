"""GetServerLoad: what a server does at this moment, from the plain numbers that it leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darkroom.v1 import catalog_service_pb2 as pb
from darkroom_server.api.access import IMAGES
from darkroom_server.models.residency import Residency

if TYPE_CHECKING:
    from collections.abc import Iterable

    from darkroom_server.engine.engine import Engine
    from darkroom_server.job_manager import JobManager
    from darkroom_server.jobs.numbers import CallNumbers
    from darkroom_server.models.residency import Holding, ResidencyManager

STREAMS = tuple(f"/{IMAGES}/{method}" for method in ("Generate", "Edit", "Watch", "Preprocess"))
RESIDENCIES = {  # furthest from the device first
    Residency.ABSENT: pb.RESIDENCY_ABSENT,
    Residency.LEAVING: pb.RESIDENCY_ABSENT,
    Residency.LOADING: pb.RESIDENCY_LOADING,
    Residency.PARKED: pb.RESIDENCY_PARKED,
    Residency.RESIDENT: pb.RESIDENCY_RESIDENT,
}
SUMS = (  # of replicas
    "queued_jobs",
    "running_jobs",
    "waiting_images",
    "active_images",
    "open_streams",
    "device_bytes",
    "parked_bytes",
    "memory_budget_bytes",
)


class ServerLoad:
    """For the event loop's thread."""

    def __init__(self, engine: Engine, jobs: JobManager, residency: ResidencyManager, calls: CallNumbers) -> None:
        self._engine, self._jobs, self._residency, self._calls = engine, jobs, residency, calls

    def message(self) -> pb.GetServerLoadResponse:
        """As it is now."""
        queued, running = self._jobs.counts()
        waiting, active = self._engine.samples()
        device, parked = self._residency.held_bytes()
        budget = self._residency.budget
        return pb.GetServerLoadResponse(
            queued_jobs=queued,
            running_jobs=running,
            waiting_images=waiting,
            active_images=active,
            open_streams=open_streams(self._calls),
            batches=self._batches(),
            weights=_weights(self._residency.holdings.values()),
            device_bytes=device,
            parked_bytes=parked,
            memory_budget_bytes=int(budget) if budget != float("inf") else None,
        )

    def _batches(self) -> Iterable[pb.BatchLoad]:
        numbers = self._engine.numbers
        rows = dict(numbers.stepped_rows)
        for (model, size), seconds in sorted(dict(numbers.steps).items()):
            yield pb.BatchLoad(
                model=model,
                size=size,
                steps=sum(seconds.counts),
                rows=rows.get((model, size), 0),
                step_seconds=seconds.total,
            )


def open_streams(calls: CallNumbers) -> int:
    """How many streams of jobs are open."""
    return sum(calls.open[method] for method in STREAMS)


def summed(loads: Iterable[pb.GetServerLoadResponse]) -> pb.GetServerLoadResponse:
    """The load of several servers together."""
    whole = pb.GetServerLoadResponse()
    batches: dict[tuple[str, str], pb.BatchLoad] = {}
    weights: dict[tuple[str, str, str], pb.WeightsLoad] = {}
    for load in loads:
        for name in SUMS:
            if load.HasField(name) if name == "memory_budget_bytes" else getattr(load, name):
                setattr(whole, name, getattr(whole, name) + getattr(load, name))
        for batch in load.batches:
            same = batches.setdefault((batch.model, batch.size), pb.BatchLoad(model=batch.model, size=batch.size))
            same.steps, same.rows = same.steps + batch.steps, same.rows + batch.rows
            same.step_seconds += batch.step_seconds
        for each in load.weights:
            key = (each.kind, each.name, each.model)
            held = weights.setdefault(key, pb.WeightsLoad(kind=each.kind, name=each.name, model=each.model))
            held.residency = max(held.residency, each.residency)
            held.bytes, held.users = held.bytes + each.bytes, held.users + each.users
    whole.batches.extend(each for _, each in sorted(batches.items()))
    whole.weights.extend(each for _, each in sorted(weights.items()))
    return whole


def _weights(holdings: Iterable[Holding]) -> Iterable[pb.WeightsLoad]:
    for holding in sorted(holdings, key=lambda each: each.key):
        residency = RESIDENCIES[holding.residency]
        if residency == pb.RESIDENCY_ABSENT:
            continue
        kind, name, *model = holding.key
        size = holding.parked_bytes if residency == pb.RESIDENCY_PARKED else holding.device_bytes
        yield pb.WeightsLoad(
            kind=kind, name=name, model="".join(model), residency=residency, bytes=size, users=holding.users
        )
