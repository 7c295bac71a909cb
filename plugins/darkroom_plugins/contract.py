"""What plugins contribute. Each contribution has a name of its own, and what its hook's docstring asks for.

Threads: everything here runs on the engine's thread, where torch may be used, but for what is asked before a job is
queued (`key`, `wants`, `first_evaluation`, `read_prompt`, `prompt_keys` on the planner's thread; `incompatibility`,
`Task.canvas`, `Preprocessor.run` in a pool), `AssetUser.load_asset` (the loader's thread) and `Finisher.finish` (in a
pool).

Parameters: what is asked about a request, a sample or an evaluation has `parameters` as its last argument: the instance
of the contribution's `Parameters` that the client sent in `extensions` under the plugin's name, None where it sent none
or where the class has none; of an evaluation one a row, in the order of its rows.

Failures: whatever a hook raises, `SystemExit` included, fails the one job that it was called for, with the name of the
plugin and of the hook. What it gives is checked: shapes, dtypes, on a CPU also that all numbers are finite, and that
nothing was written into tensors that others share (see `calls.py`).
"""

from __future__ import annotations

import contextlib
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from pydantic import BaseModel

    from darkroom_plugins.canvas import Canvas
    from darkroom_plugins.files import ModelFiles
    from darkroom_plugins.request import EditChoice, Pixels, PreviewMode, Request, SchedulerChoice
    from darkroom_plugins.sample import Evaluation, Picture, PromptEmbedding, PromptPiece, Row, Sample

AssetKind = Literal["controlnet", "lora", "embedding"]
# Components that settings of the server add to a model; of the first the name in model_index.json, too.
SAFETY_CHECKER = "safety_checker"
TINY_VAE = "tiny_vae"
PromptReader = Callable[[str], "tuple[PromptPiece, ...]"]


class BatchContract(enum.Enum):
    """What a contribution asks of the batches that its samples are in."""

    ROW_WISE = "row-wise"  # its rows may share an evaluation with any others
    KEYED = "keyed"  # only with samples of the same `key`
    SOLO = "solo"  # with none but its own sample's rows


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model is, read from its configuration files alone."""

    family: str
    prediction_type: str
    size_factor: int  # pixels; width and height are multiples of it
    default_width: int  # pixels
    default_height: int  # pixels
    max_clip_skip: int
    text_encoders: int = 1
    takes_sizes: bool = False  # whether it is told of sizes and crops, as SDXL
    inpainting: bool = False  # whether its denoiser takes a mask and the masked picture beside the latents
    max_cache_interval: int = 1  # evaluations; above 1 where `predict` heeds Request.cache_interval (see deepcache.py)
    preview_modes: tuple[PreviewMode, ...] = ("off", "latent-rgb", "full-vae")


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetInfo:
    """What a file of an asset is, as far as it says so itself."""

    components: tuple[str, ...] = ()  # the networks that it changes
    weight_bytes: int = 0


class Assets(Protocol):
    """The files that go with a model: ControlNets, LoRAs, embeddings."""

    def names(self, kind: AssetKind) -> Sequence[str]:
        """Those that fit the model, sorted."""

    def get(self, kind: AssetKind, name: str) -> Any:
        """What `AssetUser.load_asset` made of this file."""


class Contribution:
    """The base of what plugins contribute. `name` is unique among its kind; `Parameters` is a pydantic class, where
    the contribution takes some: clients send them in `extensions` under the plugin's name."""

    name: ClassVar[str]
    plugin: str = ""  # that contributed it; set by the server
    description: ClassVar[str] = ""
    Parameters: ClassVar[type[BaseModel] | None] = None
    contract: ClassVar[BatchContract] = BatchContract.ROW_WISE

    def key(self, request: Request, parameters: Any) -> Hashable:
        """What must be equal among samples of one batch; for KEYED contributions."""
        return None

    def components(self, model: Family, files: ModelFiles, settings: Any) -> Mapping[str, torch.nn.Module]:
        """Networks that it adds to a model with these settings of the server (`ModelSettings`), without weights (see
        `files.meta_network`), by their names among the model's components. Their weights come from `files.weights`.

        :raises OSError, ValueError: one is asked for and cannot be had; the message begins with the setting's key
        """
        return {}

    def release(self) -> None:
        """Let go of what can be made again, as caches on the device: memory is short. Asked of tasks, conditioners and
        adapters, between two evaluations."""


class Participant(Contribution):
    """A contribution of which any number takes part in a request."""

    def wants(self, request: Request, parameters: Any) -> bool:
        """Whether it takes part in this request: unless it says otherwise always, and one with `Parameters` where they
        were sent."""
        return self.Parameters is None or parameters is not None


class AssetUser(Participant):
    """A contribution that works with files which the operator lists, of one kind; there is one for each kind."""

    asset_kind: ClassVar[AssetKind | None] = None

    def describe_asset(self, path: Path) -> AssetInfo:
        """What the file or folder says of itself; raises OSError or ValueError where it is not of this kind."""
        return AssetInfo()

    def incompatibility(self, path: Path, model: Family) -> str | None:
        """Why it does not fit the model, a sentence without its full stop; None where it fits. Must not read the
        weights."""
        return None

    def load_asset(self, path: Path, model: Family) -> Any:
        """What `Assets.get` gives to those who use it with this model. Runs beside the engine, and maybe before the
        model itself is loaded: it must set nothing that belongs to the whole process."""
        raise NotImplementedError


class Family(ABC):
    """A model of one architecture: what its files say, and how its networks are used.

    The object lives as long as the server. Its `components` come and go with its weights: what is asked before a job is
    queued must do without them; everything that evaluates has them.
    """

    name: ClassVar[str]
    plugin: str = ""  # that contributed it; set by the server
    info: ModelInfo
    # Its networks without weights, by their names in model_index.json, and those that `Contribution.components` adds.
    meta_components: Mapping[str, torch.nn.Module]
    components: Mapping[str, torch.nn.Module]  # the same with weights, while it is loaded; set by the server
    scheduler_config: Mapping[str, Any]  # of the model's own scheduler
    device: torch.device
    dtype: torch.dtype

    @classmethod
    @abstractmethod
    def detect(cls, model_index: Mapping[str, Any]) -> bool:
        """Whether this family knows the model of this model_index.json."""

    @classmethod
    @abstractmethod
    def describe(cls, files: ModelFiles) -> ModelInfo:
        """What the model of these files is, by its configuration alone."""

    @classmethod
    @abstractmethod
    def open(cls, files: ModelFiles, device: torch.device, dtype: torch.dtype) -> Family:
        """The model of these files, without its weights."""

    def dtype_of(self, component: str) -> torch.dtype:
        """The type that a component's weights must have; the model's own but for good reasons."""
        return self.dtype

    @property
    def weight_bytes(self) -> int:
        """The size of its weights in memory."""
        sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in self.meta_components.items()}
        return sum(size * self.dtype_of(name).itemsize for name, size in sizes.items())

    @abstractmethod
    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of a picture of width x height pixels."""

    @abstractmethod
    def prompt_keys(self, request: Request, read: PromptReader) -> tuple[PromptKey, ...]:
        """What this request's rows are conditioned on, one key a row, the unconditional one first, all of one
        `length`. `read` gives a text's pieces as the conditioners read it."""

    @abstractmethod
    def encode_prompts(self, keys: Sequence[Any]) -> list[PromptEmbedding]:
        """The embedding of each of these, which are of `prompt_keys` of one request or more; the caller keeps them for
        others that have the same key."""

    def added_conditions(self, evaluation: Evaluation) -> dict[str, Any]:
        """What the denoiser and ControlNets are told of these rows beside the prompts: arguments of their forward."""
        return {}

    def structure(self, row: Row) -> Hashable:
        """What must be equal among the rows of one `predict` beside the batch key, as it changes from step to step; for
        instance whether the row reuses layers (see deepcache.py)."""
        return None

    @abstractmethod
    def predict(self, evaluation: Evaluation) -> torch.Tensor:
        """The denoiser's output for each row: (rows, channels, h, w)."""

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures of clean latents: (n, channels, h, w) to (n, 3, height, width), about -1 to 1. On CUDA it may be
        called in a stream of its own: what it keeps on the device must be there before."""

    def decode_tiled(self, latents: torch.Tensor) -> torch.Tensor | None:
        """The same, nearly, in tiles that overlap, for want of memory; None where that would take no less."""
        return None

    @abstractmethod
    def encode(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Scaled latents of pictures: (n, 3, height, width) in -1 to 1 to (n, channels, h, w), drawn from their
        distribution with the generator, or its mode."""


class PromptKey(Protocol):
    """Names a prompt, all that its embedding depends on; hashable."""

    @property
    def length(self) -> int:
        """How many tokens its embedding has."""

    def __hash__(self) -> int: ...


class Task(Contribution, ABC):
    """How an image begins, and what happens to it after each step."""

    rpcs: ClassVar[tuple[str, ...]]  # the RPCs that may name it: "Generate", "Edit"
    edits: ClassVar[tuple[type[EditChoice], ...]] = ()  # the kinds of Request.edit that it takes beside None
    adds_noise: ClassVar[bool] = False  # whether it needs a scheduler that can put noise on a picture

    def incompatibility(self, info: ModelInfo) -> str | None:
        """Why a model cannot do it, a sentence without its full stop; None where it can."""
        return None

    def canvas(self, request: Request, parameters: Any) -> Canvas:
        """The pictures to work from, fitted."""
        from darkroom_plugins.canvas import Canvas

        return Canvas.of(request)

    def first_evaluation(self, request: Request, timesteps: torch.Tensor, order: int, parameters: Any) -> int:
        """The index among the timesteps, (evaluations,), at which the sample begins; their number where none is to
        run. `order` is how many evaluations the scheduler needs for a step."""
        return 0

    @abstractmethod
    def begin(self, sample: Sample, parameters: Any) -> None:
        """Set the sample's first latents, (1, channels, h, w) of `Family.latent_shape` and the model's dtype, drawing
        from its generator."""

    def after_evaluation(self, sample: Sample, latents: torch.Tensor, parameters: Any) -> torch.Tensor:
        """The latents to go on with, given those that the scheduler's step made: (1, channels, h, w)."""
        return latents

    def estimate(self, sample: Sample, latents: torch.Tensor, parameters: Any) -> torch.Tensor:
        """What to show, given the estimate of the clean latents, (1, channels, h, w)."""
        return latents


class Conditioner(AssetUser, ABC):
    """Adds to what the rows of a sample are conditioned on."""

    def read_prompt(
        self, pieces: tuple[PromptPiece, ...], request: Request, assets: Assets, parameters: Any
    ) -> tuple[PromptPiece, ...]:
        """The pieces of a prompt as this conditioner reads them, given those of the conditioners before it; the first
        is given the whole text as one."""
        return pieces

    def begin(self, sample: Sample, parameters: Any) -> None:
        """Prepare: `sample.rows` hold the prompt embeddings and may be replaced by others of the same shapes; own state
        goes into `sample.state[name]`."""

    def condition(self, evaluation: Evaluation, parameters: Sequence[Any]) -> None:
        """Condition these rows, which are those of the samples that want it and no others: put other prompts, of the
        same shape, in the place of `evaluation.prompts`, or add to the denoiser's blocks by
        `evaluation.add_residuals`. One that is KEYED or SOLO may also set `evaluation.arguments`, which go to the
        denoiser for all rows of the batch. It must change no sample, and write into no tensor of the evaluation. Where
        memory is short, an evaluation holds only some of a sample's rows."""


class Adapter(AssetUser, ABC):
    """Changes a model's components while it evaluates, and restores them exactly."""

    def prompt_key(self, request: Request, parameters: Any) -> Hashable:
        """What must be equal for a prompt's embedding to be; None where it does not change text encoders."""
        return None

    def encoding(self, sample: Sample, parameters: Any) -> AbstractContextManager[None]:
        """A context in which the sample's prompts are encoded."""
        return contextlib.nullcontext()

    @abstractmethod
    def applied(self, model: Family, evaluation: Evaluation, parameters: Sequence[Any]) -> AbstractContextManager[None]:
        """A context in which the model evaluates these rows as their samples ask: those of all samples of the batch, of
        which it must leave those alone that do not want it (`self in row.sample.adapters`)."""


class Finisher(Participant, ABC):
    """Changes a decoded picture. Runs in a thread pool."""

    @abstractmethod
    def finish(self, picture: Picture, request: Request, parameters: Any) -> Picture:
        """The picture to go on with."""


class Inspector(Finisher, ABC):
    """A finisher that looks at what the model made first, with networks among the model's components."""

    @abstractmethod
    def inspect(self, samples: Sequence[Sample], pictures: Sequence[Pixels]) -> Sequence[Any]:
        """What it finds in the picture of each sample, (height, width, 3) uint8 of the size at which the model works,
        all of one model and size. Findings are JSON-able; `finish` has the picture's own in `picture.findings[name]`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerEntry:
    """A noise scheduler by name."""

    name: str
    scheduler: type[Any]  # a diffusers scheduler class
    description: str = ""
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # always set, over the model's configuration
    defaults: Mapping[str, Any] = field(default_factory=dict)  # set where the model's configuration is silent
    min_steps: int = 1
    max_steps: int = 1000
    sigma_schedules: tuple[str, ...] = ()
    timestep_spacings: tuple[str, ...] = ()
    takes_eta: bool = False
    Parameters: type[BaseModel] | None = None
    plugin: str = ""  # that contributed it; set by the server

    def build(self, config: Mapping[str, Any], choice: SchedulerChoice) -> Any:
        """A scheduler for a model of this scheduler configuration, without timesteps yet."""
        asked = choice.options.model_dump(exclude_none=True) if choice.options else {}
        if choice.sigma_schedule:
            flags = (s for s in self.sigma_schedules if s != "default")
            asked |= {f"use_{s}_sigmas": s == choice.sigma_schedule for s in flags}
        if choice.timestep_spacing:
            asked["timestep_spacing"] = choice.timestep_spacing
        return self.scheduler.from_config({**self.defaults, **config}, **{**self.options, **asked})


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessor:
    """Makes a control map from a picture: `run(pixels, parameters)`, (height, width, 3) uint8 to the same."""

    name: str
    run: Callable[[np.ndarray[Any, Any], Any], np.ndarray[Any, Any]]
    description: str = ""
    Parameters: type[BaseModel] | None = None
    plugin: str = ""  # that contributed it; set by the server


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewDecoder:
    """Makes small pictures of clean latents. `build(model)` is called once a model and gives the function:
    (n, channels, h, w) to (n, 3, h', w'), about -1 to 1, n of one shape at a time. One that runs one of the model's
    networks names it in `component`; where that is not the model's own, `components` adds it to models whose settings
    ask for it (as `Contribution.components`)."""

    name: PreviewMode
    build: Callable[[Family], Callable[[torch.Tensor], torch.Tensor]]
    component: str | None = None
    components: Callable[[Family, ModelFiles, Any], Mapping[str, torch.nn.Module]] = lambda model, files, settings: {}
    plugin: str = ""  # that contributed it; set by the server
