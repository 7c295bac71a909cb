"""Ray Serve's request router: which replica gets a call."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from darkroom_server.cluster.placement import Placement

if TYPE_CHECKING:
    from ray.serve._private.common import ReplicaID

PLACEMENT = Placement()  # of this process, whose handles all lead to the same replicas


def _forget_unsent(call: str, chosen: asyncio.Future[RunningReplica]) -> None:
    if chosen.cancelled():
        PLACEMENT.end(call)


class ModelRouter(RequestRouter):
    """The replica that Placement chooses comes first, else any. A call with `replica` is for the one of that name, if
    it is there."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        named = {each.replica_id.unique_id: each for each in candidate_replicas}
        if name := pending_request.kwargs.get("replica"):
            return [[named[name]] if name in named else candidate_replicas]
        busy = {name: self.replica_queue_len_cache.get(each.replica_id) or 0 for name, each in named.items()}
        call = pending_request.metadata.internal_request_id
        chosen = PLACEMENT.choose(call, pending_request.metadata.multiplexed_model_id, busy)
        pending_request.future.add_done_callback(partial(_forget_unsent, call))
        return [[named[chosen]], candidate_replicas]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        PLACEMENT.keep(each.replica_id.unique_id for each in replicas)
        for each in replicas:
            if said := each.routing_stats.get("residence"):
                PLACEMENT.hear(said)
        super().update_replicas(replicas)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        PLACEMENT.end(internal_request_id)
