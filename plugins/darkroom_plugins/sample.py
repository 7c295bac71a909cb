"""The state of one image in the making, and of one evaluation of the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from darkroom_plugins.tensors import to_device

if TYPE_CHECKING:
    import numpy as np
    import torch

    from darkroom_plugins.canvas import Canvas
    from darkroom_plugins.contract import Adapter, Assets, Conditioner, Family, Inspector, Task
    from darkroom_plugins.request import Pixels, Request

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """An encoded prompt: what one row is conditioned on."""

    hidden: torch.Tensor  # (1, tokens, width)
    pooled: torch.Tensor | None = None  # (1, width), for families that use one
    warnings: tuple[str, ...] = ()  # sentences for the user, for instance that the prompt was cut off


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """A part of a prompt: text, or in its place an embedding from a file that the operator lists."""

    text: str
    weight: float = 1.0  # 1: as the text encoder makes it
    embedding: Any = None  # of the textual-inversion plugin; hashed by identity
    new_chunk: bool = False  # whether it starts on a new input of the text encoder, where there may be several


class BatchCache:
    """Tensors made of a batch's parts, as long as its parts are the same objects: all prompts as one tensor, for
    instance. Evaluations of the batch share them, so that nothing may write into them, nor into the parts."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[tuple[object, ...], Any]] = {}

    def get_or_make(self, name: Hashable, make: Callable[[Any], T], parts: Sequence[object]) -> T:
        """``make(parts)``, or what it gave last under this name for the same objects. Plugins put their own name into
        the name. Samples cannot be parts, as they keep caches."""
        import torch

        kept = self._made.pop(name, None)
        if kept is None or [*map(id, kept[0])] != [*map(id, parts)]:
            del kept  # its memory is for what comes in its place
            with torch.inference_mode(False), torch.no_grad():  # as tensors that count writes
                kept = tuple(parts), make(parts)
        self._made[name] = kept
        return kept[1]

    def clear(self) -> None:
        """Drop all: something wrote into them."""
        self._made.clear()


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
    canvas: Canvas
    assets: Assets
    generator: torch.Generator  # on the CPU, drawing in the order in which diffusers draws
    inspectors: tuple[Inspector, ...] = ()
    controls: tuple[Pixels, ...] = ()  # the map of each of request.controls: (height, width, 3) uint8, of request size
    first: int = 0  # its first evaluation; above 0 where a task leaves out the first steps
    evaluation: int = 0  # the next one to run
    rows: tuple[PromptEmbedding, ...] = ()  # unconditional first where there is guidance
    latents: torch.Tensor = field(init=False)  # (1, channels, h, w), noisy, of scheduler scale; set by Task.begin
    extra_channels: torch.Tensor | None = None  # (1, more, h, w): put behind the latents in each evaluation
    state: dict[str, Any] = field(default_factory=dict)  # a plugin's own, under its contribution's name

    @property
    def seed(self) -> int:
        """This image's seed."""
        return self.request.seed + self.index

    @property
    def timestep(self) -> torch.Tensor:
        """The timestep of the next evaluation: a scalar."""
        return self.timesteps[self.evaluation]

    @property
    def conditions(self) -> tuple[PromptEmbedding, ...]:
        """What the rows of the next evaluation are conditioned on: without the unconditional one where there is no
        guidance at this point."""
        guides = self.within(self.request.guidance_start, self.request.guidance_end)
        return self.rows if guides else self.rows[-1:]

    def within(self, start: float, end: float) -> bool:
        """Whether the next evaluation is between these shares of all, as diffusers has it for ControlNets."""
        done, count = self.evaluation - self.first, len(self.timesteps) - self.first
        return done / count >= start and (done + 1) / count <= end

    @property
    def done(self) -> bool:
        """Whether its last evaluation has run."""
        return self.evaluation >= len(self.timesteps)


@dataclass(slots=True, eq=False)
class Row:
    """One conditioning of one sample in an evaluation."""

    sample: Sample
    prompt: PromptEmbedding
    unconditional: bool  # the row that guidance leads away from


@dataclass(slots=True, eq=False)
class Evaluation:
    """One forward of the denoiser over rows of one or more samples: all rows of each, or where memory is short only
    some. It changes no sample. Other evaluations share its tensors: a conditioner may put others in the place of
    `prompts`, but nothing may be written into any of them."""

    rows: list[Row]
    latents: torch.Tensor  # (rows, channels, h, w), scaled as the schedulers ask
    timesteps: torch.Tensor  # (rows,) float32
    prompts: torch.Tensor  # (rows, tokens, width)
    extra_channels: torch.Tensor | None = None  # (rows, more, h, w), for the denoiser alone
    arguments: dict[str, Any] = field(default_factory=dict)  # more for the denoiser's forward, for all rows alike
    batch_cache: BatchCache = field(default_factory=BatchCache)
    residuals: list[torch.Tensor] | None = None  # see add_residuals

    def add_residuals(self, residuals: Sequence[torch.Tensor]) -> None:
        """Add to the outputs of the denoiser's blocks, on top of what others added: a tensor (rows, channels, h, w) for
        each, for a UNet those of its down blocks in their order, then of its middle block (the skip connections of
        diffusers' ControlNetModel).

        :raises ValueError: they do not fit these rows, or the residuals that are there already
        """
        if any(len(each) != len(self.rows) for each in residuals):
            raise ValueError(f"residuals of {[len(each) for each in residuals]} rows for {len(self.rows)}")
        if self.residuals is None:
            self.residuals = list(residuals)
            return
        there, added = [each.shape for each in self.residuals], [each.shape for each in residuals]
        if there != added:
            raise ValueError(f"residuals of the shapes {added} beside others of {there}")
        self.residuals = [one + other for one, other in zip(self.residuals, residuals, strict=True)]

    def select(self, indices: Sequence[int]) -> Evaluation:
        """Only these rows, without arguments and residuals."""
        if [*indices] == [*range(len(self.rows))]:
            return replace(self, arguments={}, residuals=None)
        import torch

        with torch.inference_mode(False), torch.no_grad():  # as tensors that count writes
            picked = to_device(torch.tensor(indices), self.timesteps.device)
            extra = self.extra_channels[picked] if self.extra_channels is not None else None
            rows = [self.rows[index] for index in indices]
            return Evaluation(rows, self.latents[picked], self.timesteps[picked], self.prompts[picked], extra)


def own_prompts(rows: Sequence[Row], batch_cache: BatchCache) -> torch.Tensor:
    """The prompts that rows have of their own, (rows, tokens, width): those of an evaluation as the engine gathers it,
    the same object, until a conditioner puts others in their place."""
    import torch  # which those who only look at requests go without

    return batch_cache.get_or_make("prompts", torch.cat, [row.prompt.hidden for row in rows])


@dataclass(slots=True)
class Picture:
    """A decoded image on its way to the client."""

    pixels: np.ndarray[Any, Any]  # (height, width, 3) uint8 RGB
    seed: int
    metadata: dict[str, Any] = field(default_factory=dict)  # JSON-able: sent with the image, embedded when asked for
    text: dict[str, str] = field(default_factory=dict)  # further text chunks to embed, by keyword
    findings: Mapping[str, Any] = field(default_factory=dict)  # what inspectors found, by their names
