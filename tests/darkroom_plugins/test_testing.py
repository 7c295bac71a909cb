"""Contributions tried as their authors would, without a server."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from darkroom_plugins import Adapter, BatchContract, Conditioner, Finisher, PluginFailed, Preprocessor, Task, calls
from darkroom_plugins.testing import Made, make, preprocess


class Residual(Conditioner):
    """Adds to the middle block."""

    def __init__(self, name: str, amount: float) -> None:
        self.name, self.amount = name, amount  # type: ignore[misc]

    def condition(self, evaluation: Any, parameters: Any) -> None:
        *skips, mid = map(torch.zeros, evaluation.residual_shapes)
        evaluation.add_residuals([*skips, mid + self.amount])


class Tint(Conditioner):
    """Has parameters, which it is handed with each row."""

    name = "tint"

    class Parameters(BaseModel):
        amount: float

    def condition(self, evaluation: Any, parameters: Any) -> None:
        added = torch.tensor([each.amount for each in parameters]).view(-1, 1, 1)
        evaluation.prompts = evaluation.prompts + added


class Halved(Adapter):
    name = "halved"

    @contextlib.contextmanager
    def applied(self, model: Any, evaluation: Any, parameters: Any) -> Iterator[None]:
        own = torch.tensor([self in row.sample.adapters for row in evaluation.rows]).view(-1, 1, 1, 1)

        def halve(layer: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
            return torch.where(own, output * 0.5, output)

        handle = model.components["unet"].conv_out.register_forward_hook(halve)
        try:
            yield
        finally:
            handle.remove()


class Inverted(Finisher):
    name = "inverted"

    def finish(self, picture: Any, request: Any, parameters: None) -> Any:
        picture.pixels = 255 - picture.pixels
        return picture


class Grey(Task):
    name = "grey"
    rpcs: ClassVar[tuple[str, ...]] = ("Generate",)

    def first_evaluation(self, request: Any, timesteps: torch.Tensor, order: int, parameters: None) -> int:
        return 1

    def begin(self, sample: Any, parameters: None) -> None:
        sample.latents = torch.zeros(1, 4, 16, 16)


def other(one: Made, two: Made) -> bool:
    return bool((one.pixels != two.pixels).any())


def test_the_same_again() -> None:
    assert not other(make(), make())
    assert other(make(), make(seed=2))
    assert other(make(), make(prompt="a hen"))


def test_residuals_add_up_whatever_the_names() -> None:
    both = make(Residual("a", 0.5), Residual("z", 0.25))
    assert not other(both, make(Residual("z", 0.5), Residual("a", 0.25)))
    assert not other(both, make(Residual("b", 0.75)))
    assert other(both, make(Residual("a", 0.5)))


def test_parameters_are_handed_over() -> None:
    tint = Tint()
    assert other(make(tint, parameters=Tint.Parameters(amount=0.5)), make(tint, parameters=Tint.Parameters(amount=1)))
    with pytest.raises(AssertionError, match="does not want"):
        make(tint)


def test_each_kind() -> None:
    plain = make()
    assert other(make(Halved()), plain)
    assert not other(make(), plain)  # the model is as it was
    assert ((make(Inverted()).pixels + plain.pixels) == 255).all()
    assert make(Grey()).evaluations == 3
    negative = Preprocessor(name="negative", run=lambda pixels, options: 255 - pixels)
    assert preprocess(negative, np.zeros((8, 8, 3), np.uint8), None).min() == 255


# ------------------------------------------------------------------------------------------------------ misbehaviour


class Bad(Conditioner):
    """Misbehaves in `condition`."""

    name = "bad"

    def __init__(self, what: Callable[[Any], Any], contract: BatchContract = BatchContract.ROW_WISE) -> None:
        self.what, self.contract = what, contract  # type: ignore[misc]

    def condition(self, evaluation: Any, parameters: Any) -> None:
        self.what(evaluation)


def replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], None]:
    return lambda evaluation: setattr(evaluation, name, change(getattr(evaluation, name)))


def leave(evaluation: Any) -> None:
    raise SystemExit(3)


MISBEHAVIOUR: dict[str, tuple[Callable[[Any], Any], str]] = {
    "fewer tokens": (replaced("prompts", lambda each: each[:, :4]), "shape"),
    "fewer rows": (replaced("prompts", lambda each: each[:1]), "shape"),
    "another dtype": (replaced("prompts", lambda each: each.double()), "float64"),
    "NaN": (replaced("prompts", lambda each: each * float("nan")), "not finite"),
    "writes into prompts": (lambda evaluation: evaluation.prompts.zero_(), "wrote into"),
    "writes into a row": (lambda evaluation: evaluation.rows[0].prompt.hidden.zero_(), "wrote into"),
    "writes into latents": (lambda evaluation: evaluation.latents.mul_(2), "wrote into"),
    "other latents": (replaced("latents", lambda each: each * 2), "in the place of latents"),
    "residuals of other rows": (lambda evaluation: evaluation.add_residuals([torch.zeros(9, 1, 1, 1)]), "9"),
    "too few residuals": (lambda evaluation: evaluation.add_residuals([torch.zeros(2, 8, 16, 16)]), "takes 3"),
    "arguments for all": (lambda evaluation: evaluation.arguments.update(residuals=None), "KEYED or SOLO"),
    "leaves": (leave, "SystemExit: 3"),
}


@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_misbehaviour_is_found(name: str) -> None:
    what, message = MISBEHAVIOUR[name]
    plain = make()
    with pytest.raises(PluginFailed, match=message) as caught:
        make(Bad(what))
    assert caught.value.metadata["plugin"] == "bad"
    assert caught.value.metadata["hook"] == "condition"
    assert not other(make(), plain)


def test_an_adapter_that_changes_others_rows_is_found() -> None:
    class All(Halved):
        @contextlib.contextmanager
        def applied(self, model: Any, evaluation: Any, parameters: Any) -> Iterator[None]:
            handle = model.components["unet"].conv_out.register_forward_hook(lambda layer, given, output: output * 0.5)
            try:
                yield
            finally:
                handle.remove()

    with pytest.raises(AssertionError, match="another sample"):
        make(All())


def test_paths_and_addresses_stay_here() -> None:
    def fail(evaluation: Any) -> None:
        raise OSError("cannot read /home/operator/models/secret.bin at 0x7f00deadbeef\nmore")

    with pytest.raises(PluginFailed) as caught:
        make(Bad(fail))
    assert str(caught.value) == "the plugin 'bad' failed in condition: OSError: cannot read …/secret.bin at 0x…"


def test_a_slow_hook_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(calls, "SLOW_SECONDS", 0.0)
    finisher = Inverted()
    finisher.plugin = "slow"
    for _ in range(3):
        make(finisher)
    (message,) = [record.getMessage() for record in caplog.records if "in finish" in record.getMessage()]
    assert message.startswith("the plugin 'slow' took long in finish")


def test_it_needs_no_diffusers() -> None:
    """Which takes seconds to import."""
    code = "from darkroom_plugins.testing import make\nmake()\nimport sys\nprint('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
