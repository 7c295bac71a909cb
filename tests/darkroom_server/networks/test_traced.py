"""Networks that run from traces: they make the same to the last bit, whatever comes in and is changed about them."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch
from torch import nn

from darkroom_plugins.fixed_outputs import FixedOutput
from darkroom_server.device.threads import background
from darkroom_server.networks import traced as module
from darkroom_server.networks.traced import traced
from tests.support import RunningServer, generate_request


class Network(nn.Module):
    """Counts how often Python ran it."""

    def __init__(self, then: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.SiLU())
        self.then = then
        self.runs = 0
        self.requires_grad_(False)

    def forward(self, rows: torch.Tensor, more: Any = None, flag: bool = False) -> Any:
        self.runs += 1
        made = self.then(self.second(self.first(rows)))
        made = made if more is None else made + more["of rows"] + more["of all"]
        return (made + 1,) if flag else made


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if there were no traces yet."""
    monkeypatch.setattr(module, "alive", WeakValueDictionary())
    with torch.inference_mode():
        yield
    settle()


def settle() -> None:
    """Wait until the tracer has nothing to do."""
    background().submit(int).result()


def prepared(network: Network, *args: Any, **kwargs: Any) -> Network:
    """The network traced for such a call; `runs` counts from there."""
    network.forward = traced(network)  # type: ignore[method-assign]
    network(*args, **kwargs)
    settle()
    network.runs = 0
    return network


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(count))


def expected(network: Network, *args: Any, **kwargs: Any) -> Any:
    return Network.forward(network, *args, **kwargs)


def same(made: Any, other: Any) -> bool:
    return all(map(torch.equal, *(each if isinstance(each, tuple) else (each,) for each in (made, other))))


def test_a_trace_serves_any_number_of_rows_but_one() -> None:
    network = prepared(Network(), rows(5))
    for count in (2, 3, 5, 32):
        assert torch.equal(network(rows(count)), expected(network, rows(count)))
    assert network.runs == 4  # those of `expected`
    network(rows(1))
    assert network.runs == 5
    settle()
    network(rows(1))
    assert network.runs == 5


def test_each_kind_of_input_has_its_own() -> None:
    network = prepared(Network(), rows(2))
    more = {"of rows": rows(2), "of all": torch.ones(())}
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (rows(2), {"more": more}),
        (rows(2), {"flag": True}),
        (rows(6).view(2, 3, 4), {}),
    ]
    for given, named in kinds:
        for _ in range(2):
            made, before = network(given, **named), network.runs
            assert same(made, expected(network, given, **named))
            settle()
            network.runs = 0
        assert before == 0
    longer = {"of rows": rows(3), "of all": torch.ones(())}
    assert torch.equal(network(rows(3), more=longer), expected(network, rows(3), more=longer))
    assert network.runs == 1


@pytest.mark.parametrize(
    "then",
    [
        lambda x: x * 2 if len(x) > 2 else x,
        lambda x: x.repeat(5, 1)[: 5 * x.shape[0]].view(-1, int(x.shape[0]), 4).sum(0) * float(x.shape[0]),
        lambda x: x + float(x.sum()),
        lambda x: torch.cat([x[number : number + 1] for number in range(len(x))]),
    ],
)
def test_what_is_not_the_same_for_all_rows_is_not_used(then: Callable[[torch.Tensor], torch.Tensor]) -> None:
    network = prepared(Network(then), rows(5))
    for count in (2, 5, 7):
        assert torch.equal(network(rows(count)), expected(network, rows(count)))
    assert network.runs == 6


def test_changes_are_minded() -> None:
    network, given = prepared(Network(), rows(2)), rows(2)
    weight = network.first._parameters["weight"]
    network.first._parameters["weight"] = nn.Parameter(torch.ones(4, 4), requires_grad=False)
    assert torch.equal(network(given), expected(network, given))
    assert network.runs == 1  # weights are inputs of the trace
    network.first._parameters["weight"] = weight

    network.runs = 0
    handle = network.second[0].register_forward_hook(lambda *_: torch.zeros(2, 4))
    assert torch.equal(network(given), torch.zeros(2, 4))
    handle.remove()
    own = network.second[1]
    network.second._modules["1"] = nn.Identity()
    assert torch.equal(network(given), expected(network, given))
    network.second._modules["1"] = own
    vars(network.second)["processor"] = object()
    assert torch.equal(network(given), expected(network, given))
    del network.second.processor
    network.first.forward = lambda x: x  # type: ignore[method-assign, assignment]
    assert torch.equal(network(given), expected(network, given))
    del network.first.forward
    assert network.runs == 7
    assert torch.equal(network(given), expected(network, given))
    assert network.runs == 8


def test_what_is_given_of_layers_is_an_input() -> None:
    network = prepared(Network(), rows(2))
    for count in (2, 2, 3):
        vars(network.first)["forward"] = FixedOutput(rows(count) * 3)
        assert torch.equal(network(rows(count)), network.second(rows(count) * 3))
        settle()
        del network.first.forward
    assert network.runs == 1


def test_slow_networks_and_many_kinds_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "LONGEST", 0.0)
        network = prepared(Network(), rows(2))
        network(rows(2))
        assert network.runs == 1
    monkeypatch.setattr(module, "MOST", 2)
    network, other = prepared(Network(), rows(2)), prepared(Network(), rows(2))
    last = prepared(Network(), rows(2))
    last(rows(2))
    assert last.runs == 1
    del network
    gc.collect()
    last(rows(2))
    settle()
    last(rows(2))
    other(rows(2))
    assert (last.runs, other.runs) == (2, 0)


def test_a_trace_that_fails_is_used_no_more(caplog: pytest.LogCaptureFixture) -> None:
    others = set(module.alive)
    network = prepared(Network(), rows(2))

    def fail(inputs: list[torch.Tensor]) -> Any:
        raise RuntimeError("out of order")

    (forward,) = (each for key, each in module.alive.items() if key not in others)
    forward.traces = dict.fromkeys(forward.traces, fail)
    for _ in range(2):
        assert torch.equal(network(rows(2)), expected(network, rows(2)))
    assert len([record for record in caplog.records if "is discarded" in record.message]) == 1


def test_a_call_that_is_wrong_says_so_and_costs_no_trace() -> None:
    network, wrong = prepared(Network(), rows(2)), rows(2)[:, :3]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network(wrong)
    broken = dict(network.first._parameters)
    network.first._parameters["weight"] = nn.Parameter(torch.ones(5, 5), requires_grad=False)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network(rows(2))
    network.first._parameters.update(broken)
    network.runs = 0
    network(rows(2))
    assert network.runs == 0


def test_nothing_of_a_trace_outlives_its_network() -> None:
    kept = torch.ones(4)
    network = prepared(Network(lambda x, kept=kept: x + kept), rows(2))
    network(rows(2))
    assert network.runs == 0
    weight, constant = weakref.ref(network.first.weight), weakref.ref(kept)
    del network, kept
    gc.collect()
    assert weight() is None
    assert constant() is None  # which is a part of the trace


def test_a_servers_pictures_are_the_same_from_traces(tiny_model: Path) -> None:
    request, others = {"prompt": "x", "seed": 3, "num_inference_steps": 4}, set(module.alive)
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}]) as server:
        before = []
        for count in (1, 3, 3):  # each network traced in its turn, as one is at a time
            before.append(server.start(generate_request(**request, num_images=count)).read())
            settle()
        unet, decoder = (each for key, each in module.alive.items() if key not in others)
        assert any(unet.traces.values())
        assert any(decoder.traces.values())
        after = [server.start(generate_request(**request, num_images=count)).read() for count in (1, 3, 3)]
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
