"""Updates: what a LoRA adds to a layer's output, in each dialect's form. The layer's weight does not change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, Self

from darkroom_plugins import UnsupportedCombination, Violation
from darkroom_plugins.builtin.loras.headers import einsum, kron
from darkroom_plugins.deferred import nn, torch
from darkroom_plugins.files.structures.network import Shape


@dataclass(frozen=True, slots=True, eq=False)
class Update(ABC):
    """A change of a layer's weight, kept as the factors of a product."""

    shape: Shape  # of the layer's weight

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """The same, times a factor."""

    @abstractmethod
    def delta(self) -> torch.Tensor:
        """The change of the weight, in its shape.

        :raises ValueError, RuntimeError: the factors' shapes do not fit each other or the weight
        """

    def __call__(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """What is added to the layer's output."""
        return with_weight(layer, x, self.delta())

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same with each tensor changed."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        changed: dict[str, Any] = {n: function(v) for n, v in values.items() if isinstance(v, torch.Tensor)}
        changed |= {n: v.mapped(function) for n, v in values.items() if isinstance(v, Update)}
        return replace(self, **changed)


@dataclass(frozen=True, slots=True, eq=False)
class LowRank(Update):
    """LoRA (Hu et al. 2021): up @ down, or two convolutions."""

    down: torch.Tensor  # (rank, in), or (rank, in, h, w)
    up: torch.Tensor  # (out, rank), or (out, rank, 1, 1)

    def scaled(self, factor: float) -> Self:
        return replace(self, up=self.up * factor)

    def delta(self) -> torch.Tensor:
        return _shaped(self.up.flatten(1) @ self.down.flatten(1), self.shape)

    def __call__(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        inner = with_weight(layer, x, self.down)
        return nn.functional.conv2d(inner, self.up) if self.up.dim() == 4 else nn.functional.linear(inner, self.up)


@dataclass(frozen=True, slots=True, eq=False)
class Hadamard(Update):
    """LoHa (Hyeon-Woo et al. 2022): the elementwise product of two low-rank matrices, or of two Tucker products."""

    a1: torch.Tensor  # (out, rank); with a core (rank, out)
    b1: torch.Tensor  # (rank, in), or (rank, in * h * w)
    a2: torch.Tensor
    b2: torch.Tensor
    core1: torch.Tensor | None = None  # (rank, rank, h, w)
    core2: torch.Tensor | None = None

    def scaled(self, factor: float) -> Self:
        return replace(self, a1=self.a1 * factor)

    def delta(self) -> torch.Tensor:
        return _shaped(product(self.a1, self.b1, self.core1) * product(self.a2, self.b2, self.core2), self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker(Update):
    """LoKr (Yeh et al. 2023): the Kronecker product of two matrices; the second may be of a convolution."""

    first: torch.Tensor  # (out / m, in / n)
    second: torch.Tensor  # (m, n), (m, n * h * w) or (m, n, h, w)

    def scaled(self, factor: float) -> Self:
        return replace(self, first=self.first * factor)

    def delta(self) -> torch.Tensor:
        first = self.first.reshape(*self.first.shape, *[1] * (self.second.dim() - 2))
        return _shaped(kron(first, self.second), self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Dense(Update):
    """A whole matrix, also flat; also of normalisations."""

    weight: torch.Tensor

    def scaled(self, factor: float) -> Self:
        return replace(self, weight=self.weight * factor)

    def delta(self) -> torch.Tensor:
        return _shaped(self.weight, self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Shift(Update):
    """A change of the bias alone."""

    bias: torch.Tensor  # (out,)

    def scaled(self, factor: float) -> Self:
        return replace(self, bias=self.bias * factor)

    def delta(self) -> torch.Tensor:
        return self.bias.new_zeros(()).expand(self.shape)

    def __call__(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """To be broadcast over the layer's output."""
        after = x.dim() - 2 if isinstance(layer, nn.Conv2d | nn.GroupNorm) else 0  # axes after the channels
        return self.bias.reshape(-1, *[1] * after)


@dataclass(frozen=True, slots=True, eq=False)
class Decomposed(Update):
    """DoRA (Liu et al. 2024) of another update: its sum with the layer's weight W, rescaled to given magnitudes. As in
    PEFT, a factor scales the inner update only."""

    inner: Update
    magnitude: torch.Tensor  # as the weight, with 1 in all axes but `axis`
    axis: int

    def scaled(self, factor: float) -> Self:
        return replace(self, inner=self.inner.scaled(factor))

    def delta(self) -> torch.Tensor:
        """Of the inner update."""
        return self.inner.delta()

    def __call__(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        from accelerate.utils import align_module_device

        with align_module_device(layer):  # under sequential offload it is elsewhere
            weight: Any = layer.weight
            if type(weight) not in (torch.Tensor, nn.Parameter):
                problem = "a DoRA needs the model's weights as they are, and they are quantized"
                raise UnsupportedCombination([Violation("parameters.loras", problem)])
            weight = weight.to(x.device, torch.float32)
        merged = weight + self.delta().float()
        others = [axis for axis in range(weight.dim()) if axis != self.axis]
        norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
        unit = merged / norm.clamp_min(torch.finfo(norm.dtype).tiny)  # rows of zeros stay so
        return with_weight(layer, x, (unit * self.magnitude.float() - weight).to(x.dtype))


def with_weight(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer's output with this weight in place of its own, without bias; all layers are linear in it."""
    if isinstance(layer, nn.Conv2d):
        return nn.functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    if isinstance(layer, nn.GroupNorm):
        return nn.functional.group_norm(x, layer.num_groups, weight, None, layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return nn.functional.layer_norm(x, layer.normalized_shape, weight, None, layer.eps)
    return nn.functional.linear(x, weight)


def combined(updates: Sequence[Update]) -> tuple[Update, ...]:
    """Updates of one layer that have the same sum: the low-rank ones concatenated along the rank."""
    low = [each for each in updates if isinstance(each, LowRank)]
    rest = tuple(each for each in updates if not isinstance(each, LowRank))
    if len(low) < 2:
        return tuple(updates)
    down, up = torch.cat([each.down for each in low]), torch.cat([each.up for each in low], dim=1)
    return LowRank(low[0].shape, down, up), *rest


def product(a: torch.Tensor, b: torch.Tensor, core: torch.Tensor | None) -> torch.Tensor:
    """The product of two factors, or the Tucker product with a core."""
    return a @ b if core is None else einsum("ijhw,ip,jr->prhw", core, a, b)


def _shaped(delta: torch.Tensor, shape: Shape) -> torch.Tensor:
    if delta.shape[0] != shape[0] or delta.numel() != prod(shape):
        raise ValueError(f"it is of {' x '.join(map(str, delta.shape))}, not {' x '.join(map(str, shape))}")
    return delta.reshape(shape)
