"""Base classes of contributions. Each contribution has a name, unique among its kind.

Threads: methods run on the engine's thread, where torch may be used, except

| thread | methods |
| --- | --- |
| planner | `key`, `wants`, `first_evaluation`, `read_prompt`, `prompt_keys`, `load_asset` of embeddings |
| a pool | `incompatibility`, `Task.canvas`, `Preprocessor.run`, `Finisher.finish` |
| loader | `AssetUser.load_asset` of others |

Parameters: methods for a request, a sample or an evaluation have `parameters` as their last argument: the instance of
the contribution's `Parameters` that the client sent in `extensions` under the plugin's name, or None; for an evaluation
a sequence, one for each row.

Failures: an exception in a method, `SystemExit` included, fails the one job that it was called for, with the names of
plugin and hook. Results are checked: shapes, dtypes, on a CPU also that all values are finite, and that shared tensors
were not written into (see `calls.py`).
"""

from __future__ import annotations

import contextlib
import enum
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from darkroom_plugins.deferred import torch

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from pydantic import BaseModel

    from darkroom_plugins.canvas import Canvas
    from darkroom_plugins.files import ModelFiles
    from darkroom_plugins.files.structures.network import Shapes
    from darkroom_plugins.request import EditChoice, Pixels, PreviewMode, Request, SchedulerChoice
    from darkroom_plugins.sample import Evaluation, Picture, PromptEmbedding, PromptPiece, Row, Sample

AssetKind = Literal["controlnet", "lora", "embedding"]
# Components that server settings add to a model; SAFETY_CHECKER is also the name in model_index.json.
SAFETY_CHECKER = "safety_checker"
TINY_VAE = "tiny_vae"
PromptReader = Callable[[str], "tuple[PromptPiece, ...]"]


class BatchContract(enum.Enum):
    """Which samples may share a batch with a contribution's."""

    ROW_WISE = "row-wise"  # any; its rows are computed independently of others
    KEYED = "keyed"  # those of the same `key`
    SOLO = "solo"  # none


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Properties of a model, from its configuration files."""

    family: str
    prediction_type: str
    size_factor: int  # pixels; width and height must be multiples
    default_width: int  # pixels
    default_height: int  # pixels
    max_clip_skip: int
    text_encoders: int = 1
    takes_sizes: bool = False  # size and crop conditioning, as in SDXL
    inpainting: bool = False  # denoiser with mask and masked latents as extra input channels
    max_cache_interval: int = 1  # evaluations; above 1 if `predict` implements Request.cache_interval (DeepCache)
    preview_modes: tuple[PreviewMode, ...] = ("off", "latent-rgb", "full-vae")


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetInfo:
    """Properties of an asset, from its file's header."""

    components: tuple[str, ...] = ()  # that it changes
    weight_bytes: int = 0


class Assets(Protocol):
    """The assets of a model: ControlNets, LoRAs, textual-inversion embeddings."""

    def names(self, kind: AssetKind) -> Sequence[str]:
        """Names of those compatible with the model, sorted."""

    def get(self, kind: AssetKind, name: str) -> Any:
        """The result of `AssetUser.load_asset` for this one."""


class Contribution:
    """Base of most contributions. `name` is unique among its kind; `Parameters`, a pydantic class, is what clients may
    send in `extensions` under the plugin's name."""

    name: ClassVar[str]
    plugin: str = ""  # its plugin's name; set by the server
    description: ClassVar[str] = ""
    Parameters: ClassVar[type[BaseModel] | None] = None
    contract: ClassVar[BatchContract] = BatchContract.ROW_WISE

    def key(self, request: Request, parameters: Any) -> Hashable:
        """Of KEYED contributions: samples share a batch only if their keys are equal."""
        return None

    def components(self, model: Family, files: ModelFiles, settings: Any) -> Mapping[str, torch.nn.Module]:
        """Components to add to a model, by name, on the meta device (`files.meta_network`), as the server's
        `ModelSettings` for it ask. Their weights are loaded from `files.weights`.

        :raises OSError, ValueError: one is configured but cannot be opened; the message begins with the setting's key
        """
        return {}

    def release(self) -> None:
        """Out of memory: drop caches. Called on tasks, conditioners and adapters, between two evaluations."""


class Participant(Contribution):
    """A contribution of which any number may be active in a request."""

    def wants(self, request: Request, parameters: Any) -> bool:
        """Whether it is active in this request. Default: always; with `Parameters`, if the client sent them."""
        return self.Parameters is None or parameters is not None


class AssetUser(Participant):
    """A contribution that loads assets, files that the operator lists, of one kind. One contribution for each kind."""

    asset_kind: ClassVar[AssetKind | None] = None

    def describe_asset(self, path: Path) -> AssetInfo:
        """Properties from the header of a file or folder. If it raises, the asset is listed as unusable, with the
        message as the reason."""
        return AssetInfo()

    def company(self, row: Row) -> Hashable:
        """Of conditioners and adapters, for deterministic samples: rows of equal keys may share an evaluation, as what
        is done for them is the same but for their own numbers, in as many rows as the evaluation has. Default: the
        row's sample, which shares evaluations with no other."""
        return row.sample

    def incompatibility(self, path: Path, model: Family) -> str | None:
        """Why it does not fit the model, a sentence without full stop; None if it fits. If it raises, the message is
        the reason. Must not read weights."""
        return None

    def load_asset(self, path: Path, model: Family) -> Any:
        """The loaded asset, for `Assets.get`. Runs concurrently with the engine, possibly before the model is loaded:
        `model.components` may be empty, and process-wide state must not be changed."""
        raise NotImplementedError


class Family(ABC):
    """A model of one architecture: its configuration, and the use of its networks.

    The object lives as long as the server; its `components` only while the model is loaded. Methods called in planning
    do without them; methods that evaluate have them.
    """

    name: ClassVar[str]
    plugin: str = ""  # its plugin's name; set by the server
    # Whether `open` reads configurations and headers only, so that `darkroom check` need not import torch: `device` and
    # `dtype` are then stand-ins that have `type` and `itemsize`, `meta_components` is a `files.MetaNetworks`, and what
    # else is made of the files is made in `build`.
    reads_headers_only: ClassVar[bool] = False
    info: ModelInfo
    # Networks on the meta device, by their names in model_index.json, and those added by `Contribution.components`.
    meta_components: Mapping[str, torch.nn.Module]
    components: Mapping[str, torch.nn.Module]  # the same with weights, while loaded; set by the server
    scheduler_config: Mapping[str, Any]  # of the model's own scheduler
    device: torch.device
    dtype: torch.dtype

    @classmethod
    @abstractmethod
    def detect(cls, model_index: Mapping[str, Any]) -> bool:
        """Whether this family supports the model of this model_index.json."""

    @classmethod
    @abstractmethod
    def describe(cls, files: ModelFiles) -> ModelInfo:
        """Properties of the model, from its configuration files."""

    @classmethod
    @abstractmethod
    def open(cls, files: ModelFiles, device: torch.device, dtype: torch.dtype) -> Family:
        """The model, without weights."""

    def build(self) -> None:
        """Make what is made of the files at first use: the networks on the meta device, tokenizers. Called when the
        server starts, so that what is wrong with them is found there; raises as `open`."""
        for name in self.meta_components:
            self.meta_components[name]

    def config(self, component: str) -> Mapping[str, Any]:
        """A component's configuration: of a file, with the defaults of its class if `files.structures` covers it."""
        from darkroom_plugins.files import MetaNetworks

        return MetaNetworks(self.meta_components).config(component)

    def shapes(self, component: str) -> Shapes:
        """The shapes of a component's weights, by name."""
        from darkroom_plugins.files import MetaNetworks

        return MetaNetworks(self.meta_components).shapes(component)

    @property
    def own_scheduler(self) -> Mapping[str, Any]:
        """The configuration of the model's own scheduler, without the defaults of its class."""
        return self.scheduler_config

    @property
    def float32_components(self) -> Sequence[str]:
        """Components whose weights are in float32 whatever the model's dtype."""
        return ()

    def dtype_of(self, component: str) -> torch.dtype:
        """The dtype of a component's weights."""
        return torch.float32 if component in self.float32_components else self.dtype

    def itemsize_of(self, component: str) -> int:
        """Bytes of each of a component's weights."""
        return 4 if component in self.float32_components else self.dtype.itemsize

    @property
    def weight_bytes(self) -> int:
        """Size of its weights in memory, in bytes."""
        return sum(sum(map(prod, self.shapes(name).values())) * self.itemsize_of(name) for name in self.meta_components)

    @abstractmethod
    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(channels, h, w) of the latents of a picture of width x height pixels."""

    @abstractmethod
    def prompt_keys(self, request: Request, read: PromptReader) -> tuple[PromptKey, ...]:
        """One key for each row of the request, the unconditional one first, all of one `length`. `read` parses a text
        by the conditioners' `read_prompt`."""

    @abstractmethod
    def encode_prompts(self, keys: Sequence[Any]) -> list[PromptEmbedding]:
        """The prompt embeddings of keys of one or more requests. The caller caches them by key."""

    def added_conditions(self, evaluation: Evaluation) -> dict[str, Any]:
        """Further conditioning of these rows, as arguments of the forward of denoiser and ControlNets (SDXL's
        `added_cond_kwargs`)."""
        return {}

    def residual_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """(channels, h, w) of each residual that `Evaluation.add_residuals` takes, for latents of this size; none where
        the denoiser takes no residuals."""
        return []

    def structure(self, row: Row) -> Hashable:
        """A key that may change from step to step: rows share a `predict` only if theirs are equal. For instance,
        whether the next step is a cached one (DeepCache)."""
        return None

    @abstractmethod
    def predict(self, evaluation: Evaluation) -> torch.Tensor:
        """The denoiser's output for each row: (rows, channels, h, w)."""

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode clean latents, (n, channels, h, w), to pictures, (n, 3, height, width), about -1 to 1. On CUDA it may
        run on a side stream: tensors that it caches on the device must exist before."""

    def tiling(self, width: int, height: int) -> AbstractContextManager[None] | None:
        """Context manager in which `encode` and `decode` work in overlapping tiles: less memory, about the same result.
        It is left and entered again around the turns of other jobs within such a call. None where it makes no
        difference for pictures of width x height pixels."""
        return None

    @abstractmethod
    def encode(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Encode pictures, (n, 3, height, width) in -1 to 1, to scaled latents, (n, channels, h, w): a sample of their
        distribution drawn with the generator, without one the mode."""


class PromptKey(Protocol):
    """Key of a prompt embedding: all that it depends on; hashable."""

    @property
    def length(self) -> int:
        """Number of tokens of the embedding."""

    def __hash__(self) -> int: ...


class Task(Contribution, ABC):
    """Initial latents, and changes after each step."""

    rpcs: ClassVar[tuple[str, ...]]  # the RPCs that may name it: "Generate", "Edit"
    edits: ClassVar[tuple[type[EditChoice], ...]] = ()  # accepted types of Request.edit, beside None
    adds_noise: ClassVar[bool] = False  # whether it needs a scheduler with `add_noise`

    def incompatibility(self, info: ModelInfo) -> str | None:
        """Why a model does not support it, a sentence without full stop; None if it does."""
        return None

    def canvas(self, request: Request, parameters: Any) -> Canvas:
        """The input pictures, fitted to the working size."""
        from darkroom_plugins.canvas import Canvas

        return Canvas.of(request)

    def first_evaluation(self, request: Request, timesteps: torch.Tensor, order: int, parameters: Any) -> int:
        """The index into timesteps, (evaluations,), of the first evaluation; their number to run none. `order`:
        evaluations per step of the scheduler."""
        return 0

    @abstractmethod
    def begin(self, sample: Sample, parameters: Any) -> None:
        """Set `sample.latents`: (1, channels, h, w) as `Family.latent_shape`, in the model's dtype on its device, noise
        drawn from the sample's generator. Sentences for the user go to `sample.warnings`."""

    def after_evaluation(self, sample: Sample, latents: torch.Tensor, parameters: Any) -> torch.Tensor:
        """The latents after the scheduler's step, changed or not: (1, channels, h, w)."""
        return latents

    def estimate(self, sample: Sample, latents: torch.Tensor, parameters: Any) -> torch.Tensor:
        """The clean-image estimate for previews, changed or not: latents (1, channels, h, w)."""
        return latents


class Conditioner(AssetUser, ABC):
    """Adds to the conditioning of a sample's rows."""

    def read_prompt(
        self, pieces: tuple[PromptPiece, ...], request: Request, assets: Assets, parameters: Any
    ) -> tuple[PromptPiece, ...]:
        """Parse the pieces of a prompt further. The first conditioner gets the whole text as one piece, each other the
        result of the one before."""
        return pieces

    def begin(self, sample: Sample, parameters: Any) -> None:
        """Prepare the sample. `sample.rows` are its prompt embeddings and may be replaced by others of the same shapes;
        own state goes into `sample.state[name]`."""

    def condition(self, evaluation: Evaluation, parameters: Sequence[Any]) -> None:
        """Condition an evaluation of the rows in whose samples it is active, no others: replace `evaluation.prompts` by
        a tensor of the same shape, or call `evaluation.add_residuals`. KEYED and SOLO ones may also set
        `evaluation.arguments`, further arguments of the denoiser's forward for all rows. Must not change samples, nor
        write into the evaluation's tensors. An evaluation may hold a row several times, or not all of a sample's rows:
        to have one of few sizes, or when out of memory."""


class Adapter(AssetUser, ABC):
    """Changes a model's components for one evaluation, and restores them exactly."""

    def prompt_key(self, request: Request, parameters: Any) -> Hashable:
        """Part of the key of prompt embeddings; None if it does not change text encoders."""
        return None

    def encoding(self, sample: Sample, parameters: Any) -> AbstractContextManager[None]:
        """Context manager around the encoding of the sample's prompts."""
        return contextlib.nullcontext()

    @abstractmethod
    def applied(self, model: Family, evaluation: Evaluation, parameters: Sequence[Any]) -> AbstractContextManager[None]:
        """Context manager around `predict` of a batch. The evaluation has the rows of all samples; those where it is
        not active (`self not in row.sample.adapters`) must be unaffected."""


class Finisher(Participant, ABC):
    """Changes a decoded picture. Runs in a thread pool."""

    @abstractmethod
    def finish(self, picture: Picture, request: Request, parameters: Any) -> Picture:
        """The finished picture: the same object, changed, or another."""


class Inspector(Finisher, ABC):
    """A finisher that first inspects the decoded picture on the engine's thread, with networks of the model."""

    @abstractmethod
    def inspect(self, samples: Sequence[Sample], pictures: Sequence[Pixels]) -> Sequence[Any]:
        """A finding, JSON-able, for the picture of each sample: (height, width, 3) uint8 of the working size; all have
        one model and size. `finish` gets it as `picture.findings[name]`."""


@dataclass(frozen=True, kw_only=True)
class SchedulerEntry:
    """A noise scheduler: a diffusers class with a name."""

    name: str
    scheduler: type[Any]  # a class with diffusers' scheduler interface
    description: str = ""
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(
        default_factory=dict
    )  # constructor arguments that override the model's configuration
    defaults: Mapping[str, Any] = field(
        default_factory=dict
    )  # constructor arguments that the model's configuration overrides
    min_steps: int = 1
    max_steps: int = 1000
    sigma_schedules: tuple[str, ...] = ()
    timestep_spacings: tuple[str, ...] = ()
    takes_eta: bool = False
    Parameters: type[BaseModel] | None = None
    plugin: str = ""  # its plugin's name; set by the server

    @property
    def class_name(self) -> str:
        """The name of its class, as in a model's configuration."""
        return self.scheduler.__name__

    @property
    def takes_zero_snr(self) -> bool:
        """Whether it can begin at a signal-to-noise ratio of zero."""
        return "rescale_betas_zero_snr" in inspect.signature(self.scheduler.__init__).parameters

    def build(self, config: Mapping[str, Any], choice: SchedulerChoice) -> Any:
        """A scheduler for a model with this scheduler configuration; its timesteps are not set."""
        options = choice.options.model_dump(exclude_none=True) if choice.options else {}
        if choice.sigma_schedule:
            flags = (s for s in self.sigma_schedules if s != "default")
            options |= {f"use_{s}_sigmas": s == choice.sigma_schedule for s in flags}
        if choice.timestep_spacing:
            options["timestep_spacing"] = choice.timestep_spacing
        return self.scheduler.from_config({**self.defaults, **config}, **{**self.options, **options})


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessor:
    """Makes a control map from a picture: `run(pixels, parameters)`, (height, width, 3) uint8 to the same. With
    `Parameters`, `parameters` is an instance with defaults if the client sends none."""

    name: str
    run: Callable[[np.ndarray[Any, Any], Any], np.ndarray[Any, Any]]
    description: str = ""
    Parameters: type[BaseModel] | None = None
    plugin: str = ""  # its plugin's name; set by the server


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewDecoder:
    """Decodes clean latents to small pictures. `build(model)`, called once for each model, returns the function:
    (n, channels, h, w), of one shape, to (n, 3, h', w'), about -1 to 1. `component` names the network of the model that
    it runs, if any; `components` adds one that is not the model's own (as `Contribution.components`)."""

    name: PreviewMode
    build: Callable[[Family], Callable[[torch.Tensor], torch.Tensor]]
    component: str | None = None
    components: Callable[[Family, ModelFiles, Any], Mapping[str, torch.nn.Module]] = lambda model, files, settings: {}
    plugin: str = ""  # its plugin's name; set by the server
