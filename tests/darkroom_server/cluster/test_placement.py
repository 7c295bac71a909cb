"""Where calls go: to a replica that has their model, by what replicas say and what the edge has sent there itself."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from darkroom_server.cluster.placement import SPILL, Placement
from darkroom_server.cluster.wire import Residence


def test_calls_that_come_at_once_bring_a_model_to_one_replica() -> None:
    placement = Placement()
    for name in ("a", "b"):
        placement.hear(Residence(name, 1.0, ("first",)))
    where = {placement.choose(f"call {number}", "second", {"a": 0, "b": 0}) for number in range(5)}
    assert len(where) == 1


def test_the_newest_counts_whichever_way_it_comes() -> None:
    placement = Placement()
    placement.hear(Residence("a", 2.0, ("new",)))
    placement.hear(Residence("a", 1.0, ("old",)))
    assert placement.models("a") == {"new"}


def test_what_a_call_has_brought_is_there_until_the_replica_says_so() -> None:
    placement = Placement()
    placement.hear(Residence("a", 1.0, ()))
    placement.choose("call", "x", {"a": 0})
    placement.hear(Residence("a", 2.0, ()))  # before it was loaded
    assert placement.models("a") == {"x"}
    placement.hear(Residence("a", 3.0, ("x",)))
    placement.end("call")
    placement.end("call")
    assert placement.models("a") == {"x"}
    placement.keep([])
    assert placement.models("a") == set()


def test_those_that_have_a_model_may_be_ahead_by_some_calls() -> None:
    placement = Placement()
    placement.hear(Residence("a", 1.0, ("x",)))
    assert placement.choose("one", "x", {"a": SPILL - 1, "b": 0}) == "a"
    assert placement.choose("two", "x", {"a": SPILL, "b": 0}) == "b"
    assert placement.choose("three", "x", {"a": SPILL, "b": 0}) == "b"  # where it is about to be


def test_a_new_model_goes_where_the_fewest_are() -> None:
    placement = Placement()
    placement.hear(Residence("a", 1.0, ("x", "y")))
    placement.hear(Residence("b", 1.0, ("x",)))
    assert placement.choose("one", "z", {"a": 0, "b": 0}) == "b"


@given(st.integers(0, 2**32))
def test_each_replica_comes_to_keep_its_models(seed: int) -> None:
    """As many replicas as models, each with room for one. All begin with the same; they say what they have when a call
    begins, before it has loaded anything, and when it ends."""
    rng, placement = random.Random(seed), Placement()
    has = {f"r{number}": "m0" for number in range(3)}
    for name in has:
        placement.hear(Residence(name, 0.0, ("m0",)))
    open_calls, busy = list[tuple[str, str]](), Counter(dict.fromkeys(has, 0))
    for number in range(1, 300):
        if len(open_calls) == 4:
            call, name = open_calls.pop(rng.randrange(4))
            placement.hear(Residence(name, number - 0.5, (has[name],)))
            placement.end(call)
            busy[name] -= 1
        model = f"m{rng.randrange(3)}"
        name = placement.choose(str(number), model, busy)
        open_calls.append((str(number), name))
        busy[name] += 1
        placement.hear(Residence(name, float(number), (has[name],)))
        assert has[name] == model or number < 50
        has[name] = model
