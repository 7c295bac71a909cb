"""The state of a sample, and of one evaluation of the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from darkroom_plugins.tensors import constant

if TYPE_CHECKING:
    import numpy as np
    import torch

    from darkroom_plugins.canvas import Canvas
    from darkroom_plugins.contract import Adapter, Assets, Conditioner, Family, Inspector, Task
    from darkroom_plugins.request import Pixels, Request

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class PromptEmbedding:
    """An encoded prompt: the conditioning of one row. Equal to itself alone; what is derived of it may be kept by weak
    reference."""

    hidden: torch.Tensor  # (1, tokens, width)
    pooled: torch.Tensor | None = None  # (1, width), for families that use one
    warnings: tuple[str, ...] = ()  # sentences for the user, for instance about truncation


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """A part of a prompt: text, or a textual-inversion embedding in its place."""

    text: str
    weight: float = 1.0  # prompt weight; 1: none
    embedding: Any = None  # of the plugin textual-inversion; hashed by identity
    new_chunk: bool = False  # whether it begins a new text-encoder chunk


class BatchCache:
    """Cache of tensors derived from a batch, for instance its concatenated prompts; valid while the parts are the same
    objects. Evaluations share them: nothing may write into them or the parts."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[tuple[object, ...], Any]] = {}

    def get_or_make(self, name: Hashable, make: Callable[[Any], T], parts: Sequence[object]) -> T:
        """The cached ``make(parts)`` if the last call with this name had the same parts, by identity. Plugins use names
        that contain their own. Samples must not be parts: they hold caches."""
        import torch

        cached = self._made.pop(name, None)
        if cached is None or [*map(id, cached[0])] != [*map(id, parts)]:
            del cached  # frees its memory first
            with torch.inference_mode(False), torch.no_grad():  # tensors with version counters
                cached = tuple(parts), make(parts)
        self._made[name] = cached
        return cached[1]

    def clear(self) -> None:
        """Drop all, as after a write into one."""
        self._made.clear()


@dataclass(slots=True, eq=False)
class Sample:
    """One image in the making. Fields without a value are set at begin, before the first evaluation."""

    request: Request
    index: int  # of the image in its job
    model: Family
    task: Task
    conditioners: tuple[Conditioner, ...]
    adapters: tuple[Adapter, ...]
    scheduler: Any  # its own diffusers scheduler object, timesteps set
    timesteps: torch.Tensor  # (evaluations,), on the CPU
    canvas: Canvas
    assets: Assets
    generator: torch.Generator  # on the CPU; draws are in diffusers' order
    bucket: int = 0  # if it is deterministic: rows of the smallest evaluation that it is part of; else 0
    inspectors: tuple[Inspector, ...] = ()
    controls: tuple[
        Pixels, ...
    ] = ()  # control map of each of request.controls: (height, width, 3) uint8, of working size
    first: int = 0  # index of its first evaluation; above 0 if a task skips steps
    evaluation: int = 0  # index of the next one
    rows: tuple[PromptEmbedding, ...] = ()  # unconditional first, with classifier-free guidance
    latents: torch.Tensor = field(init=False)  # (1, channels, h, w), noisy, in the scheduler's scale; set by Task.begin
    extra_channels: torch.Tensor | None = None  # (1, more, h, w): concatenated to the latents in each evaluation
    first_stage: torch.Tensor | None = None  # (1, channels, h', w'), clean: what a second stage goes on from
    state: dict[str, Any] = field(default_factory=dict)  # of contributions, by name
    warnings: list[str] = field(default_factory=list)  # sentences for the user, of Task.begin

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
        """The prompt embeddings of the next evaluation's rows: without the unconditional one outside the guidance
        interval."""
        guided = self.within(self.request.guidance_start, self.request.guidance_end)
        return self.rows if guided else self.rows[-1:]

    def within(self, start: float, end: float) -> bool:
        """Whether the next evaluation is between these fractions of all, as in diffusers' ControlNet pipelines."""
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
    unconditional: bool  # the negative row of classifier-free guidance


@dataclass(slots=True, eq=False)
class Evaluation:
    """One forward of the denoiser over rows of one or more samples: as a rule all rows of each, once; see
    `Conditioner.condition`. Its tensors are shared with other evaluations: a conditioner may replace `prompts`, but not
    write into any."""

    rows: list[Row]
    latents: torch.Tensor  # (rows, channels, h, w), after scale_model_input
    timesteps: torch.Tensor  # (rows,) float32
    prompts: torch.Tensor  # (rows, tokens, width)
    extra_channels: torch.Tensor | None = None  # (rows, more, h, w), for the denoiser, not ControlNets
    arguments: dict[str, Any] = field(default_factory=dict)  # further arguments of the denoiser's forward, for all rows
    batch_cache: BatchCache = field(default_factory=BatchCache)
    residuals: list[torch.Tensor] | None = None  # see add_residuals

    @property
    def bucket(self) -> int:
        """`Sample.bucket` of its samples, which all are deterministic or none."""
        return self.rows[0].sample.bucket

    @property
    def residual_shapes(self) -> list[tuple[int, int, int, int]]:
        """(rows, channels, h, w) of each residual that `add_residuals` takes."""
        shapes = self.rows[0].sample.model.residual_shapes(*self.latents.shape[2:])
        return [(len(self.rows), *shape) for shape in shapes]

    def add_residuals(self, residuals: Sequence[torch.Tensor]) -> None:
        """Add residuals, (rows, channels, h, w) each, to the denoiser's blocks and to residuals of others. For a UNet,
        as diffusers' ControlNetModel returns: one for each skip connection in order, then one for the mid block.

        :raises ValueError: their rows or shapes differ from the evaluation's or earlier residuals'
        """
        if any(len(each) != len(self.rows) for each in residuals):
            raise ValueError(f"residuals of {[len(each) for each in residuals]} rows for {len(self.rows)}")
        if self.residuals is None:
            self.residuals = list(residuals)
            return
        existing, added = [each.shape for each in self.residuals], [each.shape for each in residuals]
        if existing != added:
            raise ValueError(f"residuals of the shapes {added} beside others of {existing}")
        self.residuals = [one + other for one, other in zip(self.residuals, residuals, strict=True)]

    def select(self, indices: Sequence[int]) -> Evaluation:
        """An evaluation of these rows only, without arguments and residuals."""
        if [*indices] == [*range(len(self.rows))]:
            return replace(self, arguments={}, residuals=None)
        import torch

        with torch.inference_mode(False), torch.no_grad():  # tensors with version counters
            picked = constant(indices, self.timesteps.device)
            extra = self.extra_channels[picked] if self.extra_channels is not None else None
            rows = [self.rows[index] for index in indices]
            return Evaluation(rows, self.latents[picked], self.timesteps[picked], self.prompts[picked], extra)


def own_prompts(rows: Sequence[Row], batch_cache: BatchCache) -> torch.Tensor:
    """The rows' prompt embeddings, concatenated: (rows, tokens, width). `Evaluation.prompts` is this object until a
    conditioner replaces it."""
    import torch  # slow to import, and not needed for requests alone

    return batch_cache.get_or_make("prompts", torch.cat, [row.prompt.hidden for row in rows])


@dataclass(slots=True)
class Picture:
    """A decoded image on its way to the client."""

    pixels: np.ndarray[Any, Any]  # (height, width, 3) uint8 RGB
    seed: int
    metadata: dict[str, Any] = field(default_factory=dict)  # JSON-able: sent with the image, embedded on request
    text: dict[str, str] = field(default_factory=dict)  # further text chunks to embed, by keyword
    findings: Mapping[str, Any] = field(default_factory=dict)  # of inspectors, by name
