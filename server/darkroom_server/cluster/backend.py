"""The jobs of an edge: each runs at a replica, and again at another if that one is lost."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from google.rpc import status_pb2

from darkroom.v1 import events_pb2, image_service_pb2, parameters_pb2
from darkroom_plugins.errors import DarkroomError, JobFailed
from darkroom_server.api import quotas
from darkroom_server.api.status import error_of
from darkroom_server.api.stored_events import resolved
from darkroom_server.cluster.delivered import Delivered
from darkroom_server.cluster.wire import RENEW_SECONDS, Call, ReplicaLost, Reply, Residence
from darkroom_server.errors import Cancelled, DeviceLost, QueueFull, ReplicasLost, RequestIdInUse, ShuttingDown
from darkroom_server.jobs.events import Ended, Forwarded
from darkroom_server.jobs.registry import Registry

if TYPE_CHECKING:
    from darkroom_server.cluster.wire import Replicas
    from darkroom_server.config.settings import Settings
    from darkroom_server.jobs.job import Job
    from darkroom_server.jobs.mailbox import Mailbox

log = logging.getLogger(__name__)

IMAGES = "/darkroom.v1.ImageService/"
RESPONSES: dict[str, Any] = {
    "Generate": image_service_pb2.GenerateResponse,
    "Edit": image_service_pb2.EditResponse,
    "Preprocess": image_service_pb2.PreprocessResponse,
}
MAX_RESTARTS = 5  # of a job with which replicas are lost again and again
RUN_SEQUENCES = 2**24  # of one run of a job; the next has greater ones. After a restart of the edge: the keeper's
COUNT_SECONDS = 5.0
RETRY_SECONDS = 0.5  # before a job is sent to another replica than the one that goes, or has it still


class EdgeJobs(Registry):
    """Admits as many jobs as the queues of all replicas take together, and what fits the edge's memory."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._max_bytes = settings.max_waiting_bytes

    async def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(function, *arguments)

    def _admit(self, job: Job, *, always: bool) -> None:
        held = sum(each.held_bytes for each in self.active)  # those that run, too: they may have to begin again
        if held and held + job.held_bytes > self._max_bytes and not always:
            raise QueueFull(f"the requests of the jobs take {held // 2**20} MiB already")
        super()._admit(job, always=always)


class ClusterBackend:
    """See Backend. For the event loop's thread."""

    def __init__(self, replicas: Replicas, settings: Settings) -> None:
        self.jobs = EdgeJobs(settings)
        self.replicas = replicas
        models = settings.models
        self._default_model = settings.default_model or (models[0].name if models else "")
        self._calls: dict[str, set[str]] = {}  # the ids of those under way, by replica
        self._cancelling: set[asyncio.Task[None]] = set()
        self._caring = [asyncio.create_task(self._renew()), asyncio.create_task(self._count())]

    async def close(self) -> None:
        """To be called when no job runs any more."""
        for task in self._caring:
            task.cancel()
        if self._cancelling:
            await asyncio.wait(self._cancelling, timeout=RENEW_SECONDS)

    async def events(
        self, job: Job, rpc: str, message: Any, *, admitted: bool = False
    ) -> AsyncGenerator[list[events_pb2.JobEvent], None]:
        own = type(message)()
        own.CopyFrom(message)
        if own.disconnect_policy == parameters_pb2.DISCONNECT_POLICY_KEEP:
            own.ClearField("disconnect_policy")  # the edge keeps jobs, and what replicas do is to end with it
        job.waiting = asyncio.create_task(self._run(job, rpc, own))
        async for made in self._read(job.mailbox):
            yield made

    async def preprocess(self, job: Job, message: Any) -> AsyncGenerator[list[events_pb2.JobEvent], None]:
        job.waiting = asyncio.create_task(self._run(job, "Preprocess", message))
        async for made in self._read(job.mailbox):
            yield made

    async def messages(
        self,
        method: str,
        message: Any,
        owner: str,
        model: str = "",
        replica: str = "",
        *,
        client: str = "",
        seconds: float | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """The messages of a call of a replica, serialized: of the one of this name, or of one that has the model.

        :param client: whose share of the device it uses
        :param seconds: until its deadline
        :raises ReplicaLost: it is gone
        :raises DarkroomError: the call failed
        """
        call = Call(uuid.uuid4().hex, method, message.SerializeToString(), owner, client, seconds)
        wanted, replica, ended = replica, "", False
        try:
            async with aclosing(self.replicas.call(call, model or self._default_model, wanted)) as replies:
                async for reply in replies:
                    if isinstance(reply, Residence):
                        replica = reply.replica
                        self._calls.setdefault(replica, set()).add(call.id)
                        if wanted not in ("", replica):
                            raise ReplicaLost(f"the replica {wanted} is gone")
                    for each in messages_of(reply):
                        yield each
            ended = True
        except DarkroomError:
            ended = True
            raise
        except ReplicaLost:
            ended = wanted in ("", replica)
            raise
        finally:
            if replica:
                self._forget(replica, call.id)
            if not ended and replica:
                self._cancel(replica, call.id)

    async def _read(self, mailbox: Mailbox) -> AsyncGenerator[list[events_pb2.JobEvent], None]:
        while True:
            _, event = await mailbox.get()
            if isinstance(event, Ended):
                if event.error is not None:
                    raise event.error
                return
            assert isinstance(event, Forwarded)
            yield event.messages

    async def _run(self, job: Job, rpc: str, message: Any) -> None:
        """Have a job done, and put all of its events and its end into its mailbox."""
        error: DarkroomError | None = None
        try:
            await self._run_until_done(job, rpc, message)
        except DarkroomError as failure:
            error = failure
        except Exception:
            log.exception("the job %s failed", job.request_id)
            error = JobFailed("the server failed; its log says more")
        job.waiting = None
        job.mailbox.put(Ended(error))

    async def _run_until_done(self, job: Job, rpc: str, message: Any) -> None:
        delivered, lost = Delivered(), ""
        for restarts in range(MAX_RESTARTS + 1):
            if restarts:
                log.warning("the job %s begins again at another replica: %s", job.request_id, lost)
                if delivered.accepted is not None:  # else the client has seen nothing of it
                    job.mailbox.put(begun_again(job, restarts))
            try:
                await self._run_once(job, rpc, message, delivered, restarts)
            except ReplicaLost as error:
                lost = str(error)
            except (ShuttingDown, DeviceLost, Cancelled) as error:  # the last: of a lease that was not renewed in time
                lost = str(error)
                await asyncio.sleep(RETRY_SECONDS)
            except RequestIdInUse as error:  # the replica is there still, and its lease of the job ends soon
                if not restarts and not job.base:  # else it is an earlier run of this job, by another edge
                    raise
                lost = str(error)
                await asyncio.sleep(RETRY_SECONDS * 2**restarts)
            else:
                return
            if delivered.accepted is not None and rpc != "Preprocess":
                message = type(message).FromString(await self.jobs.read(resolved, message, delivered.accepted))
        raise ReplicasLost(f"the job was begun {MAX_RESTARTS + 1} times, and what did it was lost each time: {lost}")

    async def _run_once(self, job: Job, rpc: str, message: Any, delivered: Delivered, restarts: int) -> None:
        """Have a job done by one replica. :raises ReplicaLost: it is gone"""
        model = message.parameters.model if rpc != "Preprocess" else ""
        again = bool(restarts or job.base)  # then it has been admitted, whatever its deadline
        seconds = None if again or job.deadline is None else max(0.0, job.deadline - time.monotonic())
        messages = self.messages(IMAGES + rpc, message, job.token, model, client=job.client, seconds=seconds)
        parse, base, done = RESPONSES[rpc].FromString, job.base + restarts * RUN_SEQUENCES, False
        try:
            async with aclosing(messages):
                async for data in messages:
                    event = parse(data).event
                    event.sequence += base
                    done = event.HasField("completed")
                    if event.HasField("queued"):
                        event.queued.restarts = restarts
                    for made in delivered.new(event):
                        note_progress(job, made[0])
                        job.mailbox.put(forwarded(made))
        except ReplicaLost:
            if not done:
                raise
        if not done:
            raise ReplicaLost("the replica's stream ended before the job")

    def _forget(self, replica: str, call_id: str) -> None:
        calls = self._calls.get(replica, set())
        calls.discard(call_id)
        if not calls:
            self._calls.pop(replica, None)

    def _cancel(self, replica: str, call_id: str) -> None:
        task = asyncio.create_task(self.replicas.cancel(replica, call_id))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def names(self) -> list[str]:
        """Those of the replicas that are there."""
        return [each["replica"] for each in await self.replicas.describe()]

    async def _count(self) -> None:
        """Count the replicas and the jobs that wait at them, again and again. While there are no replicas, as many as
        there were are awaited."""
        admission = self.jobs.admission
        while True:
            with suppress(Exception):  # as of a cluster that does not answer now
                there = await self.replicas.describe()
                admission.devices = len(there) or admission.devices
                admission.elsewhere = max(0, sum(each["queued"] for each in there) - self.jobs.counts()[0])
            await asyncio.sleep(COUNT_SECONDS)

    async def _renew(self) -> None:
        """Renew the leases of all calls. What does not reach a replica now does so next time, or it is gone."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            renewals = [self.replicas.renew(replica, list(ids)) for replica, ids in self._calls.items()]
            await asyncio.gather(*renewals, return_exceptions=True)


def messages_of(reply: Reply) -> Sequence[bytes]:
    """The messages of a reply. :raises DarkroomError: it is a failure"""
    if isinstance(reply, bytes):
        raise error_of(status_pb2.Status.FromString(reply))
    return reply if isinstance(reply, list) else ()


def begun_again(job: Job, restarts: int) -> Forwarded:
    """Says that a job begins again. Its sequence is before those of the run."""
    sequence = job.base + restarts * RUN_SEQUENCES
    queued = events_pb2.QueuedEvent(restarts=restarts)
    event = events_pb2.JobEvent(request_id=job.request_id, sequence=sequence, queued=queued)
    return Forwarded([event])  # without a key: no other takes its place


def forwarded(made: list[events_pb2.JobEvent]) -> Forwarded:
    """The messages of one event, for a mailbox."""
    first = made[0]
    match kind := first.WhichOneof("event"):
        case "preview":
            return Forwarded(made, (kind, first.preview.image_index), preview=True)
        case "queued" | "loading":
            return Forwarded(made, (kind,))
        case "image":
            return Forwarded(made, picture_bytes=first.image.total_bytes)
    return Forwarded(made)


def note_progress(job: Job, event: events_pb2.JobEvent) -> None:
    """Note how far a job is, as an engine's events would."""
    match event.WhichOneof("event"):
        case "accepted":
            job.accepted = event.accepted
            given = event.accepted.parameters
            last = given.hires_fix if given.HasField("hires_fix") else given
            quotas.count_job(job, last.width * last.height * len(event.accepted.seeds))
        case "queued":
            job.seen.position = event.queued.position
        case "step":
            if job.queued:
                job.begun_elsewhere(event.step.elapsed_seconds)
                job.on_start(job)
            job.seen.stepped(event.step.step, event.step.elapsed_seconds, event.step.batch_rows)
        case "image":
            job.seen.images += 1
