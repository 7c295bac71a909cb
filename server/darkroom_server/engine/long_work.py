"""Divides long work of networks on a CPU: between two layers the engine attends to other jobs.

A GPU's work is launched, not waited for; there the launch limiter does this.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import nn

from darkroom_server.engine.batcher import Lane
from darkroom_server.engine.recovery import work
from darkroom_server.engine.slot import Slot
from darkroom_server.errors import Cancelled
from darkroom_server.jobs.plan import Plan
from darkroom_server.networks.sizes import denoiser

LONG_SECONDS = 0.25  # shorter work is not divided
PIECE_SECONDS = 0.05  # the least time between two attendances
KINDS = 1024  # of work whose time is remembered


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Work of one kind on slots of one model and size."""

    kind: str
    slots: Sequence[Slot]
    shared: bool  # other lanes may have turns meanwhile
    tiling: AbstractContextManager[None] | None  # in which it runs

    @property
    def plan(self) -> Plan:
        """The first job's."""
        return self.slots[0].plan

    def check(self) -> None:
        """:raises Cancelled: all its jobs have ended"""
        if all(slot.job.progress.ended for slot in self.slots):
            raise Cancelled("the job was cancelled")

    def may_give_way(self, lane: Lane) -> bool:
        """Whether a lane may have a turn within this work: it may not move the work's networks."""
        own, other = self.plan.model, lane.first.plan.model
        return other is not own or own.settings.offload == "none"

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Context manager around other work in the middle of this one."""
        if self.tiling is None:
            yield
            return
        self.tiling.__exit__(None, None, None)
        try:
            yield
        finally:
            self.tiling.__enter__()

    def __str__(self) -> str:
        request, job = self.plan.request, self.slots[0].job
        return f"{self.kind} of job {job.request_id} ({request.model}, {request.width} x {request.height} pixels)"


class LongWork:
    """Runs work that may take long. `attend` gets the work and the seconds of the piece that was just done, and may
    raise to abandon the work."""

    def __init__(self, attend: Callable[[Work, float], None]) -> None:
        self._attend = attend
        self._seconds: OrderedDict[Hashable, float] = OrderedDict()  # of the latest work, attendances included
        self._running: list[Work] = []  # the innermost one last: others may have turns within the outermost

    @property
    def running(self) -> Work | None:
        """The work that runs now. May be read from another thread."""
        return next(iter(self._running[-1:]), None)

    @contextmanager
    def divided(
        self,
        kind: str,
        slots: Sequence[Slot],
        shared: bool = False,
        tiling: AbstractContextManager[None] | None = None,
    ) -> Iterator[None]:
        """Context manager around work of networks on these slots, within `tiling`. Divided if work of its kind, model
        and size took long of late, or if it is the first. Within shared work no other is shared: at most two pictures
        are being decoded.

        :raises Cancelled: all jobs of the slots have ended
        """
        key, began = work(kind, slots[0].plan.request), time.monotonic()
        running = Work(kind, slots, shared and not self._running, tiling)
        running.check()
        long = self._seconds.get(key, LONG_SECONDS) >= LONG_SECONDS
        self._running.append(running)
        try:
            with tiling or nullcontext(), self._attending(running) if long else nullcontext():
                yield
        finally:
            self._running.pop()
        self._remember(key, time.monotonic() - began)

    @contextmanager
    def _attending(self, running: Work) -> Iterator[None]:
        last, attending = time.monotonic(), False

        def between(*_: Any) -> None:
            nonlocal last, attending
            seconds = time.monotonic() - last
            if attending or seconds < PIECE_SECONDS:  # the turn of another lane may run the same layers
                return
            attending = True
            try:
                self._attend(running, seconds)
            finally:
                last, attending = time.monotonic(), False

        with ExitStack() as hooks:
            for layer in _layers(running.plan):
                hooks.callback(layer.register_forward_pre_hook(between).remove)
            yield

    def _remember(self, key: Hashable, seconds: float) -> None:
        """Work that took long once may do so again, with more rows or in a step that is not a cached one."""
        self._seconds[key] = max(seconds, self._seconds.get(key, 0.0) / 2)
        self._seconds.move_to_end(key)
        if len(self._seconds) > KINDS:
            self._seconds.popitem(last=False)


def _layers(plan: Plan) -> list[nn.Module]:
    """All layers that a plan's work may run on a CPU."""
    family = plan.model.family
    if family.device.type != "cpu":
        return []
    options = plan.model.settings
    compiled = denoiser(family) if options.compile or options.cuda_graphs else None  # with hooks it would run eagerly
    networks = [network for name, network in family.components.items() if name != compiled]
    found = chain.from_iterable(network.modules() for network in (*networks, *plan.assets.networks))
    return [module for module in found if not any(True for _ in module.children())]
