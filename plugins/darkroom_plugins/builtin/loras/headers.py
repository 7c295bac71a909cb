"""Tensors of which only the header is known: arithmetic of shapes, for what a file would make of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from darkroom_plugins.deferred import torch
from darkroom_plugins.files.safetensors_files import opened

if TYPE_CHECKING:
    from darkroom_plugins.files.structures.network import Shape


@dataclass(frozen=True, slots=True)
class Header:
    """A tensor's shape. Methods are those of a tensor, and raise ValueError where its would not work."""

    shape: Shape
    floating: bool = True

    def is_floating_point(self) -> bool:
        return self.floating

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return prod(self.shape)

    def flatten(self, start: int) -> Header:
        if start >= self.dim():
            raise ValueError(f"a tensor of {self.dim()} axes has none of index {start}")
        return Header((*self.shape[:start], prod(self.shape[start:])))

    def reshape(self, *shape: Any) -> Header:
        wanted: Sequence[int] = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        known = prod(each for each in wanted if each != -1)
        found = tuple(self.numel() // max(known, 1) if each == -1 else each for each in wanted)
        if prod(found) != self.numel():
            raise ValueError(f"{self.shape} cannot be of shape {found}")
        return Header(found)

    def expand(self, shape: Shape) -> Header:
        return Header(tuple(shape))

    def new_zeros(self, shape: Shape) -> Header:
        return Header(tuple(shape))

    def __matmul__(self, other: Header) -> Header:
        if self.dim() != 2 or other.dim() != 2 or self.shape[1] != other.shape[0]:
            raise ValueError(f"{self.shape} and {other.shape} have no product")
        return Header((self.shape[0], other.shape[1]))

    def __mul__(self, other: Header) -> Header:
        if self.shape != other.shape:
            raise ValueError(f"{self.shape} is not {other.shape}")
        return self


Tensor: TypeAlias = "torch.Tensor | Header"


def read_headers(file: Path) -> dict[str, Header]:
    """The headers of a safetensors file's tensors, by name.

    :raises OSError, ValueError: it cannot be read, or is no safetensors file
    """
    with opened(file) as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  # it is no mapping
        return {n: Header(tuple(each.get_shape()), "F" in each.get_dtype()) for n, each in slices.items()}


def einsum(equation: str, *operands: Any) -> Any:
    """torch.einsum, also of headers."""
    if not isinstance(operands[0], Header):
        return torch.einsum(equation, *operands)
    inputs, output = equation.split("->")
    sizes: dict[str, int] = {}
    for letters, operand in zip(inputs.split(","), operands, strict=True):
        if len(letters) != operand.dim() or any(
            sizes.setdefault(a, n) != n for a, n in zip(letters, operand.shape, strict=True)
        ):
            raise ValueError(f"{[each.shape for each in operands]} have no product")
    return Header(tuple(sizes[letter] for letter in output))


def kron(first: Any, second: Any) -> Any:
    """torch.kron, of tensors of as many axes, also of headers."""
    if not isinstance(first, Header):
        return torch.kron(first, second)
    return Header(tuple(a * b for a, b in zip(first.shape, second.shape, strict=True)))
