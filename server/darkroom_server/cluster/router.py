"""Ray Serve's request router: which replica gets a call."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

SPILL = 8  # calls by which the replicas that have a model may be ahead before another one loads it


class ModelRouter(RequestRouter):
    """Replicas where the request's model is in memory come first, and within a rank the one with the fewest calls. A
    call with `replica` is for the one of that name, if it is there."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        if name := pending_request.kwargs.get("replica"):
            named = [each for each in candidate_replicas if each.replica_id.unique_id == name]
            return [named or candidate_replicas]
        model = pending_request.metadata.multiplexed_model_id
        having: list[RunningReplica] = []
        others: list[RunningReplica] = []
        for each in candidate_replicas:
            (having if model in each.routing_stats.get("models", ()) else others).append(each)
        if having and others and self._least(having) >= self._least(others) + SPILL:
            return [others, having]
        return [rank for rank in (having, others) if rank]

    def _least(self, replicas: list[RunningReplica]) -> int:
        """The fewest calls of any of them, as far as is known."""
        known: Any = (self.replica_queue_len_cache.get(each.replica_id) for each in replicas)
        return min(calls or 0 for calls in known)
