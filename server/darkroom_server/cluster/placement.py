"""Which replica gets a call: one where its model is in memory, or is about to be."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from darkroom_server.cluster.wire import Residence

SPILL = 8  # calls by which the replicas that have a model may be ahead before another one loads it


class Placement:
    """What an edge knows of where models are: what replicas have said, the newest of each, and the calls that it has
    sent itself, which bring their models wherever they go. Replicas are told apart by their names."""

    def __init__(self) -> None:
        self._said: dict[str, Residence] = {}
        self._calls: dict[str, tuple[str, str]] = {}  # under way, by their ids: the replica and the model
        self._models: defaultdict[str, Counter[str]] = defaultdict(Counter)  # of the calls under way, by replica

    def hear(self, said: Residence) -> None:
        """A replica has said what it has in memory. What is older than what is known is left. For any thread."""
        known = self._said.get(said.replica)
        if known is None or known.at < said.at:
            self._said[said.replica] = said

    def models(self, replica: str) -> set[str]:
        """Those that are in memory there, or soon will be."""
        said = self._said.get(replica)
        return {*(said.models if said else ()), *self._models.get(replica, ())}

    def _has(self, replica: str, model: str) -> bool:
        said = self._said.get(replica)
        return (said is not None and model in said.models) or model in self._models.get(replica, ())

    def choose(self, call: str, model: str, busy: Mapping[str, int]) -> str:
        """The replica for a call, which is under way there from now on. `busy`: those to choose from, with the numbers
        of their calls."""
        here = {name for name in busy if self._has(name, model)}
        others = busy.keys() - here
        if not here or (others and _least(here, busy) >= _least(others, busy) + SPILL):
            here = others
        least = _least(here, busy)
        free = (name for name in here if busy[name] == least)
        chosen = min(free, key=lambda name: (len(self.models(name)), random.random()))
        self.end(call)
        self._calls[call] = chosen, model
        self._models[chosen][model] += 1
        return chosen

    def end(self, call: str) -> None:
        """A call is under way no more. Idempotent."""
        if (found := self._calls.pop(call, None)) is not None:
            replica, model = found
            self._models[replica][model] -= 1
            self._models[replica] += Counter()  # without those that are none

    def keep(self, replicas: Iterable[str]) -> None:
        """Forget what was said by others."""
        for gone in self._said.keys() - set(replicas):
            self._said.pop(gone, None)
            if not self._models[gone]:
                del self._models[gone]


def _least(replicas: Iterable[str], busy: Mapping[str, int]) -> int:
    return min(map(busy.__getitem__, replicas))
