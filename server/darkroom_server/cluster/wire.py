"""What edges and replicas say to each other. Failures are values: an exception that crossed would be a pickle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

RENEW_SECONDS, LEASE_SECONDS = 1.0, 5.0  # between an edge's signs of life, and after the last of which its calls end


@dataclass(frozen=True)
class Residence:
    """What a replica has in memory."""

    replica: str  # its name
    at: float  # when it was so, by the replica's time.monotonic
    models: tuple[str, ...]  # those that are there, or are being loaded


# A reply to a call: first who the replica is, and again whenever that has changed; serialized messages, those that were
# there together in one list; at last, if the call failed, its google.rpc.Status, serialized.
Reply = Residence | list[bytes] | bytes


@dataclass(frozen=True)
class Call:
    """A call of an edge at a replica. What fields say has been made sure of by the edge."""

    id: str
    method: str  # as gRPC names it, ``/package.Service/Method``
    request: bytes  # serialized
    owner: str  # the fingerprint of the caller's token; empty without one
    client: str = ""  # who calls, if no token says so: gRPC's peer
    seconds: float | None = None  # until its deadline


class ClusterError(Exception):
    """The cluster does not start, or cannot be joined."""


class ReplicaLost(Exception):
    """The replica of a call is gone, and with it what it had not sent."""


class Replicas(Protocol):
    """The replicas, as an edge sees them."""

    def call(self, call: Call, model: str, replica: str = "") -> AsyncGenerator[Reply, None]:
        """Call the replica of this name, if it is there; else one where the model is loaded if possible. Waits for one.
        To be closed.

        :raises ReplicaLost: it is gone
        """

    async def cancel(self, replica: str, call_id: str) -> None:
        """End a call at this replica."""

    async def renew(self, replica: str, call_ids: Sequence[str]) -> None:
        """Say that these calls at this replica are wanted still."""

    async def describe(self) -> list[dict[str, Any]]:
        """What each replica that is there says of itself, see Replica.describe. Empty: there is none."""

    async def metrics(self, reader: str) -> dict[str, str]:
        """What each tells Prometheus of its engine, by its name, see Replica.metrics."""

    async def close(self) -> None:
        """Let go of them."""


def being_cancelled() -> bool:
    """Whether a CancelledError is meant for the present task, and is not one of what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
