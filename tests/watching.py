"""A checker of what Watch promises, over recorded histories: ordered, unique, reliable, resumable."""

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple


class Watched(NamedTuple):
    """An event as it was made, or as a watcher read it."""

    sequence: int
    event: Any
    key: Hashable  # of those that a newer one with the same key replaces; None: it is reliable


def check(made: Sequence[Watched], watchers: Sequence[Sequence[Sequence[Watched]]]) -> None:
    """Compare what was made with what each watcher read, by connection: each one began after the last event of the one
    before, and the last was read to the job's end.

    :raises AssertionError: a promise was not kept
    """
    by_sequence = {each.sequence: each for each in made}
    newest = {each.key: each.sequence for each in made if each.key is not None}
    needed = {each.sequence for each in made if each.key is None or newest[each.key] == each.sequence}
    for connections in watchers:
        read = [each for connection in connections for each in connection]
        for one, other in pairwise(read):
            assert one.sequence < other.sequence, f"{other.sequence} came after {one.sequence}"  # ordered, unique
        for each in read:
            assert by_sequence[each.sequence].event == each.event, f"{each.sequence} is another event"
        missing = needed - {each.sequence for each in read}
        assert not missing, f"{sorted(missing)[:5]} were not read"  # reliable, resumable
