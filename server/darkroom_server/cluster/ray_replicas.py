"""Replicas on Ray Serve: the cluster is joined or started, and calls go by Serve's handles."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "0")  # a thread beside the event loop, for one handle

import ray
from ray import exceptions, serve
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from darkroom_server.cluster.deployment import APPLICATION, DEPLOYMENT, application
from darkroom_server.cluster.router import PLACEMENT
from darkroom_server.cluster.streaming import Batch, Inbox, Queues, expected
from darkroom_server.cluster.wire import (
    RENEW_SECONDS,
    Call,
    ClusterError,
    ReplicaLost,
    Reply,
    Residence,
    being_cancelled,
)

if TYPE_CHECKING:
    from darkroom_server.config.settings import Settings

log = logging.getLogger(__name__)

# Of a local cluster, whose tasks and metrics nobody looks at: at rest it would take a quarter more CPU time. And
# replicas' code, which blocks nothing, needs no event loop beside Serve's: a call takes 1 ms of CPU less without.
QUIET = {
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10000",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
}
OBJECT_STORE_BYTES = 128 * 2**20  # of a local cluster, for messages on their way that are larger than 100 KiB
LOST = (  # and not what a replica's code raised
    exceptions.RayActorError,
    exceptions.ObjectLostError,
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
)
CONTROL_SECONDS = 2 * RENEW_SECONDS  # for an answer to cancel and renew: one replica must not hold up others' leases


class RayReplicas:
    """See Replicas."""

    def __init__(self, handle: Any, own: bool) -> None:
        """Called by `open`. `own`: the cluster is to end with this process."""
        self._handle, self._own = handle, own
        self._edge = uuid.uuid4().hex
        self._inboxes: dict[str, Inbox] = {}  # by replica
        self._queues: Queues = {}

    @classmethod
    async def open(cls, settings: Settings) -> RayReplicas:
        """Replicas that are ready: those of the cluster at `address` if it has them, else new ones of these settings.

        :raises ClusterError: with the reason
        """
        return await asyncio.to_thread(cls._open, settings)

    @classmethod
    def _open(cls, settings: Settings) -> RayReplicas:
        cluster = settings.cluster
        try:
            if cluster.address is None:
                for name, value in QUIET.items():
                    os.environ.setdefault(name, value)
                ray.init(
                    address="local",
                    num_cpus=max(os.cpu_count() or 1, math.ceil(cluster.most_replicas * cluster.replica_cpus)),
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
            else:
                ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.WARNING)
            serve.start(proxy_location="Disabled")
            if cluster.address is None or APPLICATION not in serve.status().applications:
                serve.run(
                    application(settings), name=APPLICATION, route_prefix=None, logging_config={"log_level": "WARNING"}
                )
            handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
        except (ConnectionError, RuntimeError, ValueError, RayServeException, exceptions.RayError) as error:
            _leave(own=cluster.address is None)
            raise ClusterError(f"the cluster does not start: {error}") from error
        return cls(handle, cluster.address is None)

    async def close(self) -> None:
        """Leave the cluster, and end it if it is this process's own."""
        for inbox in self._inboxes.values():
            inbox.close()
        await asyncio.to_thread(_leave, self._own)

    async def call(self, call: Call, model: str, replica: str = "") -> AsyncGenerator[Reply, None]:
        """See Replicas."""
        handle = self._handle.options(stream=True, multiplexed_model_id=model)
        with expected(self._queues, call.id):
            response = handle.call.remote(call, self._edge, replica=replica)
            try:
                with _losing():
                    first = await anext(response)
            except asyncio.CancelledError:
                response.cancel()
                raise
            PLACEMENT.hear(first)
            yield first
            async with aclosing(self._inbox(first.replica).replies(call.id)) as replies:
                async for reply in replies:
                    if isinstance(reply, Residence):
                        PLACEMENT.hear(reply)
                    yield reply

    def _inbox(self, replica: str) -> Inbox:
        if replica not in self._inboxes:
            self._inboxes = {name: inbox for name, inbox in self._inboxes.items() if not inbox.idle}
            self._inboxes[replica] = Inbox(partial(self._batches, replica), self._queues)
        return self._inboxes[replica]

    async def _batches(self, replica: str) -> AsyncGenerator[Batch, None]:
        """All that a replica sends to this edge. :raises ReplicaLost: it is gone"""
        response = self._handle.options(stream=True).replies.remote(self._edge, replica=replica)
        with _losing():
            async for batch in response:
                yield batch

    async def cancel(self, replica: str, call_id: str) -> None:
        """See Replicas."""
        await self._control(self._handle.cancel.remote(call_id, replica=replica))

    async def renew(self, replica: str, call_ids: Sequence[str]) -> None:
        """See Replicas."""
        await self._control(self._handle.renew.remote(call_ids, replica=replica))

    async def describe(self) -> list[dict[str, Any]]:
        """See Replicas."""
        return await self._all("describe")

    async def metrics(self, reader: str) -> dict[str, str]:
        """See Replicas."""
        return dict(await self._all("metrics", reader))

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        """The answers of all, but those that are lost."""
        try:
            found = await self._handle.broadcast(method, *arguments).results_async(return_exceptions=True)
        except DeploymentUnavailableError:  # there is none
            return []
        for each in found:
            if isinstance(each, BaseException) and not isinstance(each, LOST):
                raise each
        return [each for each in found if not isinstance(each, BaseException)]

    async def _control(self, response: Any) -> None:
        """Whatever keeps a sign from a replica is no error: its lease tells it the same later, or it is gone."""
        try:
            async with asyncio.timeout(CONTROL_SECONDS):
                await response
        except (*LOST, TimeoutError) as error:
            log.info("a replica does not hear: %s", _words(error))


@contextmanager
def _losing() -> Iterator[None]:
    """Around what a replica is heard by. :raises ReplicaLost: it is gone"""
    try:
        yield
    except LOST as error:
        raise ReplicaLost(_words(error)) from None
    except StopAsyncIteration:
        raise ReplicaLost("the call was ended at the replica") from None
    except asyncio.CancelledError:
        if being_cancelled():
            raise
        raise ReplicaLost("the call was cancelled at the replica") from None


def _words(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _leave(own: bool) -> None:
    if not ray.is_initialized():
        return
    if own:
        serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()
