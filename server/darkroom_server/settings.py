"""What the operator sets: by environment (DARKROOM_…), or by the flags of `darkroom serve`."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from darkroom_plugins.request import PreviewMode, SafetyPolicy

DEFAULT_LISTEN = "127.0.0.1:50051"
MIB = 1024 * 1024


Dtype = Literal["auto", "float32", "float16", "bfloat16"]


class MemoryOptions(BaseModel, extra="forbid"):
    """How a model's weights and activations are kept small, or its evaluation fast: diffusers' options by their names
    there."""

    offload: Literal["none", "model", "sequential", "group"] = "none"  # where weights are while they are not used
    attention_slicing: Annotated[int, Field(ge=1)] | Literal["auto", "max"] | None = None
    vae_slicing: bool = False
    vae_tiling: bool = False
    layerwise_casting: Literal["float8_e4m3fn", "float8_e5m2"] | None = None  # what the denoiser's weights are kept in
    quantize: Literal["int8", "int4", "float8"] | None = None  # the denoiser's weights, by torchao
    attention_backend: str | None = None  # None: torch's scaled dot product attention chooses
    compile: bool = False  # the denoiser, by torch.compile


class ModelSettings(MemoryOptions):
    """A model to offer, and what requests for it get by default."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]+$", max_length=128)]
    path: Path | None = None  # a diffusers folder, or a single-file checkpoint (.safetensors); or else:
    hub: str | None = None  # a repository of the hub, "owner/name"
    revision: str | None = None  # of the repository
    variant: str | None = None  # of the weights' files, for instance "fp16"
    config: Path | None = None  # of a single-file checkpoint: a folder with the configuration of its architecture
    vae: Path | None = None  # a VAE to use in place of the model's: a folder or a single file
    tiny_vae: Path | None = None  # a folder with an AutoencoderTiny, for previews
    safety: SafetyPolicy = "off"  # what happens with pictures in which the checker finds something; block: no previews
    preload: bool = True  # load it at the start, as far as the budget goes
    description: str = ""
    dtype: Dtype | None = None  # None: that of Settings
    device: str | None = None  # None: that of Settings
    default_scheduler: str | None = None  # None: the entry of the scheduler that the model comes with
    default_num_inference_steps: Annotated[int, Field(ge=1)] = 30
    default_guidance_scale: Annotated[float, Field(ge=0, le=100)] = 7.5
    default_preview_mode: PreviewMode = "latent-rgb"


class AssetSettings(BaseModel, extra="forbid"):
    """A ControlNet (a diffusers folder), or a LoRA or embedding (a safetensors file)."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]+$", max_length=128)]
    path: Path
    description: str = ""
    preprocessor: str | None = None  # of a ControlNet: what makes the maps that it was trained on


class Limits(BaseModel, extra="forbid"):
    """What a request may ask for; ServerLimits of the API, field by field."""

    max_batch_rows: Annotated[int, Field(ge=2)] = 32
    max_images: Annotated[int, Field(ge=1)] = 16
    max_inference_steps: Annotated[int, Field(ge=1, le=1000)] = 500
    max_edge: Annotated[int, Field(ge=64)] = 2048
    max_pixels: Annotated[int, Field(ge=64 * 64)] = 2048 * 2048
    max_prompt_characters: Annotated[int, Field(ge=1)] = 10_000
    max_queued_jobs: Annotated[int, Field(ge=1)] = 1000
    max_request_bytes: Annotated[int, Field(ge=64 * 1024)] = 32 * MIB
    chunk_bytes: Annotated[int, Field(ge=1024, le=3 * MIB)] = 3 * MIB


class Settings(BaseSettings):
    """Everything that is set for one server."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", env_nested_delimiter="__", extra="ignore")

    listen: str = DEFAULT_LISTEN
    token: str | None = None  # what clients must send as a bearer token
    device: str = "auto"  # torch's name of a device
    dtype: Dtype = "auto"  # float16 on CUDA, float32 elsewhere
    models: list[ModelSettings] = []  # none: the embedded demo model
    default_model: str | None = None  # None: the first
    controlnets: list[AssetSettings] = []
    loras: list[AssetSettings] = []
    embeddings: list[AssetSettings] = []
    limits: Limits = Limits()
    memory_budget: Annotated[int, Field(ge=1)] | None = None  # bytes of weights on the device; None: no limit
    park_budget: Annotated[int, Field(ge=0)] = 0  # bytes of weights kept in the CPU's memory for a fast return
    idle_seconds: Annotated[float, Field(gt=0)] | None = None  # after which a model that is not used is let go
    blocked_plugins: list[str] = []
    encoder_threads: Annotated[int, Field(ge=1)] = 2
    reader_threads: Annotated[int, Field(ge=1)] = 2  # that decode what clients send, and make control maps
    max_waiting_bytes: Annotated[int, Field(ge=MIB)] = 2048 * MIB  # of the pictures of jobs that wait
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        for kind in ("models", "controlnets", "loras", "embeddings"):
            names = [each.name for each in getattr(self, kind)]
            for name in {n for n in names if names.count(n) > 1}:
                raise ValueError(f"{kind}: the name {name!r} is given {names.count(name)} times")
        names = [model.name for model in self.models]
        if self.default_model is not None and self.models and self.default_model not in names:
            raise ValueError(f"default_model: there is no model {self.default_model!r}, but {', '.join(names)}")
        host = self.listen.rpartition(":")[0]
        if not self.token and not _is_loopback(host):
            raise ValueError(f"listen: {host} is reached from other machines; set a token, or listen on 127.0.0.1")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in ("localhost", "unix", "unix-abstract") or host.startswith("unix:")


DEMO_LORAS = {"outline": "Shapes as coloured outlines.", "stripes": "Shapes in stripes."}


def with_demo(settings: Settings) -> Settings:
    """Settings without models with the embedded one, its ControlNet and its LoRAs beside those that are listed."""
    from darkroom_demo import CONTROLNET_PATH, LORA_PATHS

    canny = AssetSettings(name="canny", path=CONTROLNET_PATH, preprocessor="canny", description="Shapes along edges.")
    loras = [
        AssetSettings(name=name, path=path, description=DEMO_LORAS.get(name, "")) for name, path in LORA_PATHS.items()
    ]
    return settings.model_copy(
        update={
            "models": [demo_model()],
            "controlnets": [*settings.controlnets, *_others([canny], settings.controlnets)],
            "loras": [*settings.loras, *_others(loras, settings.loras)],
        }
    )


def _others(own: list[AssetSettings], given: list[AssetSettings]) -> list[AssetSettings]:
    names = {each.name for each in given}
    return [each for each in own if each.name not in names]


def demo_model() -> ModelSettings:
    """The embedded model, which is offered when nothing is configured."""
    from darkroom_demo import MODEL_PATH

    return ModelSettings(
        name="shapes",
        path=MODEL_PATH,
        description="Coloured shapes on a coloured background, 64x64: small, trained for demonstration.",
        default_num_inference_steps=25,
        default_guidance_scale=3.0,
        default_preview_mode="full-vae",
    )
