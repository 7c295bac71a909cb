"""The state of one image in the making, and of one evaluation of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    from darkroom_plugins.contract import Adapter, Conditioner, Family, Task
    from darkroom_plugins.request import Request


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """An encoded prompt: what one row is conditioned on."""

    hidden: torch.Tensor  # (1, tokens, width)
    pooled: torch.Tensor | None = None  # (1, width), for families that use one
    warnings: tuple[str, ...] = ()  # sentences for the user, for instance that the prompt was cut off


@dataclass(slots=True, eq=False)
class Sample:
    """One image in the making. What is None is set when the sample begins, before its first evaluation."""

    request: Request
    index: int  # which image of its job
    model: Family
    task: Task
    conditioners: tuple[Conditioner, ...]
    adapters: tuple[Adapter, ...]
    scheduler: Any  # its own diffusers scheduler object, timesteps set
    timesteps: torch.Tensor  # (evaluations,), on the CPU
    evaluation: int = 0  # the next one to run; begins above 0 where a task leaves out the first steps
    generator: torch.Generator | None = None  # on the CPU, drawing in the order in which diffusers draws
    rows: tuple[PromptEmbedding, ...] = ()  # unconditional first where there is guidance
    latents: torch.Tensor | None = None  # (1, channels, h, w), noisy, of scheduler scale
    state: dict[str, Any] = field(default_factory=dict)  # a plugin's own, under its contribution's name

    @property
    def seed(self) -> int:
        """This image's seed."""
        return self.request.seed + self.index

    @property
    def timestep(self) -> torch.Tensor:
        """The timestep of the next evaluation: a scalar."""
        return self.timesteps[self.evaluation]


@dataclass(slots=True, eq=False)
class Row:
    """One conditioning of one sample in an evaluation."""

    sample: Sample
    prompt: PromptEmbedding
    unconditional: bool  # the row that guidance leads away from


@dataclass(slots=True, eq=False)
class Evaluation:
    """One forward of the denoiser over the rows of one or more samples. It changes none of them."""

    rows: list[Row]
    latents: torch.Tensor  # (rows, channels, h, w), scaled as the schedulers ask
    timesteps: torch.Tensor  # (rows,) float32
    prompts: torch.Tensor  # (rows, tokens, width)
    arguments: dict[str, Any] = field(default_factory=dict)  # more for the denoiser's forward, from conditioners


@dataclass(slots=True)
class Picture:
    """A decoded image on its way to the client."""

    pixels: np.ndarray[Any, Any]  # (height, width, 3) uint8 RGB
    seed: int
    metadata: dict[str, Any] = field(default_factory=dict)  # JSON-able: sent with the image, embedded when asked for
    text: dict[str, str] = field(default_factory=dict)  # further text chunks to embed, by keyword
