"""Keys and values of cross-attention that are made once. That pictures stay what they are, with LoRAs and all else, the
parity tests show."""

from collections import Counter
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from darkroom_plugins.builtin.families import cross_attention_cache as cache
from darkroom_plugins.builtin.families.cross_attention_cache import Projections, projected
from darkroom_plugins.sample import BatchCache, Evaluation, PromptEmbedding, Row, own_prompts
from tests.tiny import unet


class Counting(nn.Linear):
    """Counts its products."""

    products: ClassVar[Counter[int]] = Counter()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.products[len(input)] += 1
        return super().forward(input)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(1)
    made = unet().eval().requires_grad_(False)
    Counting.products.clear()
    for layer in Projections(made).layers:
        layer.__class__ = Counting
    return made


def prompt(seed: int) -> PromptEmbedding:
    return PromptEmbedding(torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(seed)))


def evaluate(network: nn.Module, prompts: list[PromptEmbedding]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(prompts), 4, 8, 8, generator=generator)
    hidden = torch.cat([each.hidden for each in prompts])
    return network(latents, torch.arange(len(prompts)), hidden, return_dict=False)[0]


def test_each_prompt_is_multiplied_once(network: nn.Module) -> None:
    kept, (first, second) = Projections(network), (prompt(1), prompt(2))
    layers = len(kept.layers)
    assert layers
    for batch in ([first, second], [first, first, second], [second]):
        expected = evaluate(network, batch)
        with kept.fixed(batch, BatchCache()):
            assert torch.allclose(evaluate(network, batch), expected, atol=1e-5)
    assert Counting.products == {1: 3 * layers, 2: layers, 3: layers}  # of those of one row, two are made to be kept


def test_the_network_is_as_before_when_an_evaluation_fails(network: nn.Module) -> None:
    kept, batch = Projections(network), [prompt(1)]
    with pytest.raises(RuntimeError), kept.fixed(batch, BatchCache()):
        raise RuntimeError
    assert not any("forward" in vars(layer) for layer in kept.layers)


def test_what_is_kept_is_bounded(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, prompts = Projections(network), [prompt(seed) for seed in range(4)]
    monkeypatch.setattr(cache, "MAX_BYTES", 2 * cache.MAX_BYTES // kept.capacity(prompts))
    for each in prompts:
        with kept.fixed([each], BatchCache()):
            pass
    assert list(kept.cached) == prompts[-2:]
    before = Counting.products.copy()
    with kept.fixed(prompts, BatchCache()):  # more than have room
        evaluate(network, prompts)
    assert Counting.products - before == {4: len(kept.layers)}


def test_those_of_a_prompt_go_with_it(network: nn.Module) -> None:
    kept, first, second = Projections(network), prompt(1), prompt(2)
    with kept.fixed([first, second], BatchCache()):
        pass
    del first
    assert list(kept.cached) == [second]


def an_evaluation(*prompts: PromptEmbedding, adapters: tuple[Any, ...] = ()) -> Evaluation:
    sample: Any = SimpleNamespace(adapters=adapters)
    rows, count = [Row(sample, each, unconditional=False) for each in prompts], len(prompts)
    batch_cache = BatchCache()
    gathered = own_prompts(rows, batch_cache)
    return Evaluation(rows, torch.ones(count, 4, 8, 8), torch.zeros(count), gathered, batch_cache=batch_cache)


def test_a_batch_is_put_together_once(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, batch_cache, batch = Projections(network), BatchCache(), [prompt(1), prompt(2)]
    joined: list[int] = []
    monkeypatch.setattr(cache.torch, "cat", lambda parts: joined.append(len(parts)) or torch.concat(parts))
    for _ in range(3):
        with kept.fixed(batch, batch_cache):
            pass
    assert joined == [2] * len(kept.layers)
    monkeypatch.setattr(cache, "MAX_BYTES", cache.MAX_BYTES // kept.capacity(batch))
    again = [batch[0]] * 2  # one prompt has room, twice of it has not
    for _ in range(2):
        with kept.fixed(again, batch_cache):
            pass
    assert joined[len(kept.layers) :] == [2] * 2 * len(kept.layers)


def test_what_a_conditioner_made_of_the_prompts_counts(network: nn.Module) -> None:
    results = []
    for factor in (None, 2):
        evaluation = an_evaluation(prompt(1), prompt(2))
        if factor:
            evaluation.prompts = factor * evaluation.prompts
        with projected(network, evaluation):
            taken = any("forward" in vars(layer) for layer in Projections(network).layers)
            made = network(evaluation.latents, evaluation.timesteps, evaluation.prompts, return_dict=False)[0]
            results.append((taken, made))
    assert [taken for taken, _ in results] == [True, False]
    assert not torch.allclose(results[0][1], results[1][1], atol=1e-3)


def test_adapters_may_change_the_weights_for_an_evaluation(network: nn.Module) -> None:
    with projected(network, an_evaluation(prompt(1), adapters=("any",))):
        assert not any("forward" in vars(layer) for layer in Projections(network).layers)


def test_layers_that_something_else_changed_are_left_alone(network: nn.Module) -> None:
    kept, batch = Projections(network), [prompt(1)]
    own = kept.layers[0].forward = lambda prompts: prompts
    with kept.fixed(batch, BatchCache()):
        assert kept.layers[0].forward is own
        assert "forward" not in vars(kept.layers[1])
