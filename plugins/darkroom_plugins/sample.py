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


@dataclass(frozen=True, slots=True)
class Features:
    """What the inner layers of a denoiser made of a row (see deepcache.py)."""

    evaluation: int  # at this of its sample's evaluations
    tensor: torch.Tensor  # (1, channels, h, w)


class Constants:
    """What is made of a batch's parts, for as long as the batch has the same ones: one tensor of all their prompts, for
    instance. It is shared by the evaluations of the batch, so that nothing may write into it, nor into the parts."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[tuple[object, ...], Any]] = {}

    def of(self, name: Hashable, make: Callable[[Any], T], parts: Sequence[object]) -> T:
        """What `make` makes of the parts: what it made the last time under this name, where they are the same objects.
        Plugins put their own name into the name. Samples cannot be parts, as those keep their constants."""
        kept = self._made.pop(name, None)
        if kept is None or [*map(id, kept[0])] != [*map(id, parts)]:
            del kept  # its memory is for what comes in its place
            kept = tuple(parts), make(parts)
        self._made[name] = kept
        return kept[1]


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
    inspectors: tuple[Inspector, ...] = ()
    controls: tuple[Pixels, ...] = ()  # the map of each of request.controls: (height, width, 3) uint8, of request size
    first: int = 0  # its first evaluation; above 0 where a task leaves out the first steps
    evaluation: int = 0  # the next one to run
    generator: torch.Generator | None = None  # on the CPU, drawing in the order in which diffusers draws
    rows: tuple[PromptEmbedding, ...] = ()  # unconditional first where there is guidance
    latents: torch.Tensor | None = None  # (1, channels, h, w), noisy, of scheduler scale
    extra_channels: torch.Tensor | None = None  # (1, more, h, w): put behind the latents in each evaluation
    table: Mapping[int, Any] = field(default_factory=dict)  # the engine's: its scheduler's steps, where they are known
    features: dict[bool, Features] = field(default_factory=dict)  # its rows', by whether they are the unconditional one
    state: dict[str, Any] = field(default_factory=dict)  # a plugin's own, under its contribution's name
    constants: Constants = field(default_factory=Constants)  # of the batch that it is the first of

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

    @property
    def features(self) -> Features | None:
        """Its features of an evaluation before, where there are any."""
        return self.sample.features.get(self.unconditional)

    @features.setter
    def features(self, features: Features) -> None:
        self.sample.features[self.unconditional] = features

    @property
    def reuses(self) -> bool:
        """Whether its features serve the next evaluation, too. Not those of the same one, which is then made again."""
        age = self.sample.evaluation - self.features.evaluation if self.features else 0
        return 0 < age < self.sample.request.cache_interval


@dataclass(slots=True, eq=False)
class Evaluation:
    """One forward of the denoiser over rows of one or more samples: all rows of each, or where memory is short only
    some. It changes no sample. Its tensors may be those of the batch's other evaluations, too: others may be put in
    their place, but nothing may be written into them."""

    rows: list[Row]
    latents: torch.Tensor  # (rows, channels, h, w), scaled as the schedulers ask
    timesteps: torch.Tensor  # (rows,) float32
    prompts: torch.Tensor  # (rows, tokens, width)
    extra_channels: torch.Tensor | None = None  # (rows, more, h, w), for the denoiser alone
    arguments: dict[str, Any] = field(default_factory=dict)  # more for the denoiser's forward, from conditioners
    constants: Constants = field(default_factory=Constants)

    def select(self, indices: Sequence[int]) -> Evaluation:
        """Only these rows, without the arguments."""
        if [*indices] == [*range(len(self.rows))]:
            return replace(self, arguments={})
        picked = to_device(self.timesteps.new_tensor(indices, device="cpu").long(), self.timesteps.device)
        extra = self.extra_channels[picked] if self.extra_channels is not None else None
        rows = [self.rows[index] for index in indices]
        return Evaluation(rows, self.latents[picked], self.timesteps[picked], self.prompts[picked], extra)


def own_prompts(rows: Sequence[Row], constants: Constants) -> torch.Tensor:
    """The prompts that rows have of their own, (rows, tokens, width): those of an evaluation as the engine gathers it,
    the same object, until a conditioner puts others in their place."""
    import torch  # which those who only look at requests go without

    return constants.of("prompts", torch.cat, [row.prompt.hidden for row in rows])


@dataclass(slots=True)
class Picture:
    """A decoded image on its way to the client."""

    pixels: np.ndarray[Any, Any]  # (height, width, 3) uint8 RGB
    seed: int
    metadata: dict[str, Any] = field(default_factory=dict)  # JSON-able: sent with the image, embedded when asked for
    text: dict[str, str] = field(default_factory=dict)  # further text chunks to embed, by keyword
    findings: Mapping[str, Any] = field(default_factory=dict)  # what inspectors found, by their names
