"""The shapes of a network's weights, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]  # by the weights' names
Config: TypeAlias = Mapping[str, Any]


class Network(dict[str, Shape]):
    """The shapes of layers that are added."""

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        """A linear layer."""
        self[f"{name}.weight"] = (outputs, inputs)
        if bias:
            self[f"{name}.bias"] = (outputs,)

    def conv(self, name: str, inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> None:
        """A convolution."""
        self[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        if bias:
            self[f"{name}.bias"] = (outputs,)

    def norm(self, name: str, channels: int, groups: int = 1) -> None:
        """A layer or group norm."""
        if channels % groups:
            raise ValueError("the groups do not divide the channels")
        self[f"{name}.weight"] = self[f"{name}.bias"] = (channels,)

    def resnet(self, name: str, inputs: int, outputs: int, groups: int, time: int | None = None) -> None:
        """diffusers' ResnetBlock2D."""
        self.norm(f"{name}.norm1", inputs, groups)
        self.conv(f"{name}.conv1", inputs, outputs)
        if time is not None:
            self.linear(f"{name}.time_emb_proj", time, outputs)
        self.norm(f"{name}.norm2", outputs, groups)
        self.conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            self.conv(f"{name}.conv_shortcut", inputs, outputs, 1)


Build: TypeAlias = Callable[[Network, Config], None]
Kinds: TypeAlias = Mapping[str, tuple[Build, Config]]  # by class; the defaults of its options that shapes depend on
