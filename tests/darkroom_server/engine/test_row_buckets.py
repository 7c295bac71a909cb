"""Batches of few different numbers of rows, as on CUDA by default: here they are configured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkroom.v1.parameters_pb2 import ControlSpec, LoraSpec
from darkroom_plugins import hookimpl
from darkroom_plugins.builtin.families.unet import UNetFamily
from darkroom_plugins.contract import BatchContract, Conditioner
from darkroom_plugins.sample import Evaluation
from darkroom_server.device.resources import row_buckets
from darkroom_server.engine.buckets import in_sizes, next_size
from darkroom_server.engine.recovery import RowLimits
from tests.support import RunningServer, generate_request, png
from tests.tiny import save_controlnet, save_lora

POWERS = (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(1, [1]), (3, [4]), (5, [8]), (9, [8, 1]), (12, [8, 4]), (13, [16]), (20, [16, 4]), (26, [32]), (39, [32, 8])],
)
def test_a_batch_is_padded_a_little_or_else_divided(rows: int, sizes: Sequence[int]) -> None:
    found: list[int] = []

    def evaluate(numbers: Sequence[int]) -> list[torch.Tensor]:
        found.append(len(numbers))
        return [torch.tensor(number) for number in numbers]

    assert [int(output) for output in in_sizes(evaluate, range(rows), POWERS)] == [*range(rows)]
    assert found == sizes


def test_other_sizes() -> None:
    assert next_size(7, ()) == 7
    assert next_size(7, (3,)) == 3
    assert next_size(1, (6, 12)) == 6


def test_they_are_the_default_on_cuda_alone() -> None:
    assert row_buckets(torch.device("cuda", 1), 32) == POWERS
    assert row_buckets(torch.device("cuda"), 32, []) == ()
    assert row_buckets(torch.device("cpu"), 32) == ()
    assert row_buckets(torch.device("cpu"), 32, [8, 2]) == (2, 8)


@pytest.mark.parametrize(("most", "more"), [(1, ()), (2, (2,)), (3, (2, 3)), (33, (2, 4, 8, 16, 32, 33))])
def test_a_full_batch_is_one_of_them(most: int, more: Sequence[int]) -> None:
    sizes = row_buckets(torch.device("cuda"), most)
    assert sizes == (1, *more)
    assert next_size(most, sizes) == most


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows of all evaluations."""
    found: list[int] = []
    predict = UNetFamily.predict

    def counting(family: UNetFamily, evaluation: Evaluation) -> torch.Tensor:
        found.append(len(evaluation.latents))
        return predict(family, evaluation)

    monkeypatch.setattr(UNetFamily, "predict", counting)
    return found


def test_pictures_in_padded_batches_are_those_of_others(tiny_model: Path, tmp_path: Path, counts: list[int]) -> None:
    net = save_controlnet(tmp_path / "net", tiny_model, seed=1)
    lora = save_lora(tmp_path / "lora.safetensors", tiny_model, 2)
    picture = png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    plain = {"prompt": "x", "num_inference_steps": 4, "guidance_scale": 4.0}
    requests = [
        generate_request(**plain, seed=1, scheduler="euler-ancestral"),
        generate_request(**plain, seed=2, controls=[ControlSpec(model="net", image=picture)]),
        generate_request(**plain, seed=3, loras=[LoraSpec(name="lora", weight=0.8)], cache_interval=2),
        generate_request(**plain | {"guidance_scale": 1.0}, seed=4, num_images=3),
        generate_request(**plain, seed=5, num_images=2, deterministic=True),
    ]
    made = {}
    for buckets in (None, [4, 6]):
        counts.clear()
        with RunningServer(
            models=[{"name": "tiny", "path": tiny_model}],
            controlnets=[{"name": "net", "path": net}],
            loras=[{"name": "lora", "path": lora}],
            row_buckets=buckets,
        ) as server:
            made[str(buckets)] = [stream.read() for stream in server.together(requests)]
    assert set(counts) <= {2, 4, 6}  # 2: to compare the bucket of deterministic rows with
    for one, other in zip(*made.values(), strict=True):
        assert max(np.abs(a - b).max() for a, b in zip(one.pixels, other.pixels, strict=True)) <= 1
        if one is made["None"][-1]:
            assert one.files() == other.files()


@pytest.mark.parametrize(("buckets", "warm"), [([1, 4], {1, 4}), ([], {2, 4, 8})])
def test_each_is_warmed_up_while_the_model_loads(
    tiny_model: Path, counts: list[int], monkeypatch: pytest.MonkeyPatch, buckets: list[int], warm: set[int]
) -> None:
    monkeypatch.setattr("darkroom_server.app.wants_warm_up", lambda model: True)
    models, limits = [{"name": "tiny", "path": tiny_model}], {"max_batch_rows": 8}
    with RunningServer(models=models, row_buckets=buckets, limits=limits) as server:
        assert set(counts) == warm
        counts.clear()
        server.generate(prompt="x", num_inference_steps=3, num_images=2)
        assert set(counts) == {4}


class Alone(Conditioner):
    """Shares evaluations with nothing."""

    name = "alone"
    contract = BatchContract.SOLO

    def wants(self, request: Any, parameters: Any) -> bool:
        return True


class AlonePlugin:
    darkroom_api_version = 1

    @hookimpl
    def darkroom_conditioners(self) -> list[Any]:
        return [Alone()]


def test_those_of_solo_contributions_have_their_own_rows_alone(counts: list[int]) -> None:
    with RunningServer({"alone": AlonePlugin()}, row_buckets=[4]) as server:
        server.generate(prompt="x", num_inference_steps=2, guidance_scale=4.0)
    assert set(counts) == {2}


@pytest.mark.parametrize(("buckets", "expected"), [([4], [4, 1, 1]), ([1, 2, 4, 8], [2, 1, 1])])
def test_no_rows_are_repeated_that_do_not_fit_into_memory(
    buckets: list[int], expected: list[int], counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = UNetFamily.predict

    def small(family: UNetFamily, evaluation: Evaluation) -> torch.Tensor:
        output = predict(family, evaluation)
        if len(output) > 1:
            raise torch.cuda.OutOfMemoryError
        return output

    monkeypatch.setattr(UNetFamily, "predict", small)
    with RunningServer(row_buckets=buckets) as server:
        made = server.generate(prompt="x", num_inference_steps=2, guidance_scale=4.0)
    assert made.kinds[-1] == "completed"
    assert counts[:3] == expected
    assert set(counts[3:]) == {1}


def test_learnt_limits_hold_for_repeated_rows(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowLimits, "of", lambda limits, work, most: min(most, 6))
    with RunningServer(row_buckets=[2, 4, 8]) as server:
        server.generate(prompt="x", num_inference_steps=1, num_images=3, guidance_scale=4.0)
    assert counts == [4, 2]
