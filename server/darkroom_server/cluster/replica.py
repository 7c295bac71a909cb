"""A replica: a whole Darkroom without its port. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from darkroom_plugins.errors import DarkroomError, JobFailed
from darkroom_server.api.access import Caller, call_as
from darkroom_server.api.in_process import Aborted, InProcessCall
from darkroom_server.api.in_process import Caller as Client
from darkroom_server.api.status import serialized
from darkroom_server.cluster.inner_door import InnerDoor
from darkroom_server.cluster.scaling import TAKEN, WAITING
from darkroom_server.cluster.wire import LEASE_SECONDS, RENEW_SECONDS, Call, Reply, Residence, being_cancelled
from darkroom_server.errors import Cancelled, Unauthenticated
from darkroom_server.models.residency import Residency
from darkroom_server.observe.metrics import of_engine, text_of

if TYPE_CHECKING:
    from darkroom_plugins.manager import Plugins
    from darkroom_server.app import App
    from darkroom_server.config.settings import Settings

log = logging.getLogger(__name__)

READER_SECONDS = 90.0  # without an edge that reads metrics, until another one may


@dataclass
class _Lease:
    """A call that runs for as long as its edge wants it."""

    call: InProcessCall
    renewed: float  # time.monotonic


class Replica:
    """Answers the calls of edges. For the event loop's thread."""

    def __init__(self, name: str, app: App, door: InnerDoor) -> None:
        """Called by `open`."""
        self.name, self.app = name, app
        self._door = door
        self._tokens = {each.sha256.lower(): each for each in app.settings.tokens}
        self._leases: dict[str, _Lease] = {}  # by the call's id
        self._asked = time.monotonic()  # for the last time what it has
        self._reader, self._read = "", -math.inf  # who read the metrics last, and when
        self._sweeping = asyncio.create_task(self._sweep())

    @classmethod
    async def open(
        cls, name: str, settings: Settings, owns_process: bool = False, plugins: Plugins | None = None
    ) -> Replica:
        """A replica with its models loaded. It has no log, doors, metrics or traces of its own: the edges have.

        :raises ModelError: a model or asset cannot be served as configured
        """
        from darkroom_plugins.manager import load_plugins
        from darkroom_server.app import App

        outer = {"http": None, "metrics": None, "state_dir": None, "job_log": None, "traces": None}
        settings = settings.model_copy(update=outer)
        door = InnerDoor()
        app = await App.open(settings, plugins or load_plugins(settings.blocked_plugins), door, owns_process)
        await app.start()
        return cls(name, app, door)

    async def call(self, call: Call) -> AsyncGenerator[Reply, None]:
        """The replies to a call. To be closed."""
        changes = self._changes
        yield self.residence()
        token = self._tokens.get(call.owner)
        if token is None and (call.owner or self._tokens):  # whose limits are not known
            yield serialized(Unauthenticated("the replicas' settings have not this token: deploy those of the edge"))
            return
        call_as(Caller(token, self._door.numbers.usage[token.name if token else ""], call.owner))
        try:
            call_here = await self._door.calls.begin(call.method, Client((), call.client, call.seconds))
        except Aborted as refusal:
            yield refusal.status
            return
        self._leases[call.id] = _Lease(call_here, time.monotonic())
        try:
            call_here.send(call.request)
            async for message in call_here.messages():
                if changes != self._changes:
                    changes = self._changes
                    yield self.residence()
                yield [message.SerializeToString()]
        except Aborted as refusal:
            yield refusal.status
        except DarkroomError as error:
            yield serialized(error.with_traceback(None))
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            yield serialized(Cancelled("the call was cancelled"))
        except Exception:
            log.exception("%s failed", call.method)
            yield serialized(JobFailed("the server failed; its log says more"))
        finally:
            self._leases.pop(call.id, None)
            await call_here.close()

    async def cancel(self, call_id: str) -> None:
        """End a call, if it runs here."""
        if (lease := self._leases.get(call_id)) is not None:
            await lease.call.close()

    def renew(self, call_ids: Sequence[str]) -> None:
        """These calls are wanted still."""
        for call_id in call_ids:
            if (lease := self._leases.get(call_id)) is not None:
                lease.renewed = time.monotonic()

    def describe(self) -> dict[str, Any]:
        """What routers go by: the models that are in memory, and the numbers of jobs and calls."""
        self._asked = time.monotonic()
        counts = {"jobs": self.app.jobs.active_jobs, "queued": self.app.jobs.counts()[0], "calls": len(self._leases)}
        counts["loads"] = self.app.residency.loads
        return {"replica": self.name, "process": os.getpid(), "residence": self.residence(), **counts}

    def residence(self) -> Residence:
        """What is in memory now."""
        absent = (Residency.ABSENT, Residency.LEAVING)
        states = {name: self.app.residency["model", name].residency for name in self.app.catalog.models}
        here = (name for name, state in states.items() if state not in absent)
        return Residence(self.name, time.monotonic(), tuple(here))

    @property
    def _changes(self) -> int:
        """How often something has come into memory, or left it."""
        return self.app.residency.loads + self.app.residency.evictions

    def load(self) -> dict[str, float]:
        """What the number of replicas goes by, see Scaling."""
        _, begun = self.app.engine.samples()
        begun = max(begun, min(1, self.app.jobs.active_jobs))  # one that is loaded for is work, too
        places = self.app.settings.limits.max_batch_rows // 2
        return {WAITING: self.app.jobs.longest_wait(), TAKEN: min(1.0, begun / places)}

    def metrics(self, reader: str) -> str:
        """Those of engine and weights, in Prometheus's text format. They are told to one edge, until it no longer asks:
        what two tell would be counted twice."""
        now = time.monotonic()
        if reader != self._reader and now < self._read + READER_SECONDS:
            return ""
        self._reader, self._read = reader, now
        return text_of(of_engine(self.app.engine, self.app.residency))

    def check(self) -> None:
        """:raises RuntimeError: the device is lost, or the engine hangs: the replica is to be started again"""
        if self.app.failed.is_set():
            raise RuntimeError("the device is lost, or the engine hangs")

    async def close(self) -> None:
        """End what runs, and let go of all."""
        self._sweeping.cancel()
        await self.app.stop()

    async def _sweep(self) -> None:
        """End the calls of edges that are gone. A replica that is to stop when its calls have ended is asked nothing
        any more, and no edge can reach it: it lets them run."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            before = self._asked - LEASE_SECONDS
            for lease in [each for each in self._leases.values() if each.renewed < before]:
                log.warning("a call's edge is gone: the call is ended")
                await lease.call.close()
