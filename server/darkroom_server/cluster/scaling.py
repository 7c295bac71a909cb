"""How many replicas there are to be: a policy for Ray Serve's autoscaler."""

from __future__ import annotations

import math
from typing import Any

WAITING = "waiting_seconds"  # until all jobs that wait at a replica will have begun
TAKEN = "taken"  # the share of the places in its batch that are taken
FULL = 0.8  # of the places of all replicas: with more of them taken none is ended


class Scaling:
    """More replicas when jobs wait for long, fewer when fewer have the places for all that runs.

    What waits is counted as work that may be shared out: 20 seconds at one replica are 5 at each of four. Batches that
    fill up without anybody waiting start nothing.
    """

    def __init__(self, wait_seconds: float) -> None:
        self._wait_seconds = wait_seconds

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number that is wanted, and no state. Called by Ray Serve, with its AutoscalingContext."""
        told = context.aggregated_metrics or {}
        waiting, taken = (told.get(name, {}) for name in (WAITING, TAKEN))
        here = context.current_num_replicas
        silent = here - len(taken)  # they have just begun: as if they were full
        by_places = math.ceil((sum(taken.values()) + silent) / FULL)
        by_waiting = math.ceil(sum(waiting.values()) / self._wait_seconds)
        return max(by_waiting, min(here, by_places)), {}
