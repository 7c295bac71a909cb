"""Fair shares: whose turn it is, by what clients have had, or a client's lanes. Plain numbers; knows no engine.

Each client has a tag that grows by the cost of what it is given over the weight of its job's priority. A virtual time
grows by the cost over the weights of all that have work: the tag of a client that gets its share keeps up with it. Who
gets less falls behind, and goes first. So every client is served again and again, whoever comes and goes
(start-time fair queueing, with the virtual time of generalised processor sharing).

Tags that are within two turns of one another are as good as equal: of such clients the one that wants the least goes
first, so that little work is done at once. No tag is further than that from the virtual time: what others left over is
not held against who took it, and who was away, or wanted little, cannot save up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Generic, TypeVar

WEIGHTS = {"low": 0.25, "normal": 1.0, "high": 4.0}  # by priority
SLACK = 2.0  # longest turns
FADES = 0.98  # of the longest turn, from turn to turn

Client = TypeVar("Client", bound=Hashable)
Cost = tuple[float, float]  # seconds, and the same over the weights of the client's jobs


class FairShares(Generic[Client]):
    """The tags of the clients that have work."""

    def __init__(self) -> None:
        self._tags: dict[Client, float] = {}
        self._weights: dict[Client, float] = {}  # as of late
        self._left: dict[Client, float] = {}  # of clients without work that had more than their share
        self._virtual = 0.0
        self.spent = 0.0  # by all, ever
        self.turn = 0.0  # cost of the longest turn of late

    def copy(self) -> FairShares[Client]:
        """May be called on another thread: a client may have a tag and no weight yet."""
        other, weights = FairShares[Client](), dict(self._weights)
        other._tags, other._left = dict(self._tags), dict(self._left)
        other._weights = {client: weights.get(client, 1.0) for client in other._tags}
        other._virtual, other.spent, other.turn = self._virtual, self.spent, self.turn
        return other

    def __contains__(self, client: Client) -> bool:
        """Whether it has work."""
        return client in self._tags

    def join(self, client: Client, weight: float = 1.0) -> None:
        """A client has work, which it had not."""
        self._tags[client] = max(self._left.pop(client, 0.0), self._virtual)
        self._weights[client] = weight

    def leave(self, client: Client) -> None:
        """A client has no work any more."""
        tag = self._tags.pop(client)
        del self._weights[client]
        self._left = {each: left for each, left in self._left.items() if left > self._virtual}
        if not self._tags:
            self._virtual, self._left = 0.0, {}
        elif tag > self._virtual:
            self._left[client] = tag

    @property
    def slack(self) -> float:
        """Tags that are closer are as good as equal."""
        return SLACK * self.turn

    def tag(self, client: Client) -> float:
        """The less, the sooner is its turn. May be called on another thread."""
        tag, slack = self._tags.get(client, self._virtual), self.slack
        return min(max(tag, self._virtual - slack), self._virtual + slack)

    def due(self, clients: Iterable[Client], wants: Callable[[Client], Any]) -> Client:
        """Whose turn it is, of some that have work: who has had the least, or as good as that and wants the least."""
        tags = {client: self.tag(client) for client in clients}
        most = min(tags.values()) + self.slack
        return min((client for client, tag in tags.items() if tag <= most), key=wants)

    def charge(self, costs: Mapping[Client, Cost], turns: float = 1) -> None:
        """The clients have shared a turn, or several: what each has had of it, and the same over its jobs' weights."""
        whole = sum(cost for cost, _ in costs.values())
        self.spent += whole
        if not self._tags:
            return
        longest = max(whole, max((weighed for _, weighed in costs.values()), default=0.0))
        self.turn = max(longest / turns, FADES**turns * self.turn)
        for client, (cost, weighed) in costs.items():
            if client in self._tags:
                self._tags[client] = self.tag(client) + weighed
                self._weights[client] = cost / weighed if weighed else self._weights[client]
            else:  # its last job has ended with this turn
                self._left[client] = max(self._left.get(client, 0.0), self._virtual) + weighed
        self._virtual += whole / sum(self._weights.values())
