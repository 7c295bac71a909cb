"""Server settings and their validation; see `server/configuration.md`. `config.reader` reads them."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from darkroom_plugins.files.hub_paths import hub_place, is_weights_file
from darkroom_plugins.files.safetensors_files import PICKLES, REFUSED
from darkroom_plugins.request import PreviewMode, SafetyPolicy
from darkroom_server.config.address import TcpAddress, parse_address
from darkroom_server.config.consistency import MAX_BATCH_ROWS, inconsistencies
from darkroom_server.config.presets import PresetSettings, spelled
from darkroom_server.config.tls import checked

DEFAULT_LISTEN = "127.0.0.1:50051"
DEMO = "shapes"
MIB = 1024 * 1024
OTLP_PORT = 4317  # of OTLP over gRPC
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]+)?")

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
NAME, MAX_NAME = r"^[A-Za-z0-9._/-]+$", 128
Name = Annotated[str, Field(pattern=NAME, max_length=MAX_NAME)]


def _weights(path: Path) -> Path:
    if path.suffix.lower() in PICKLES:
        raise ValueError(f"{path.name}: {REFUSED}; convert it to safetensors")
    if hub_place(path):
        return path
    path = path.expanduser()
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(f"{path.name} is neither a folder nor a safetensors file")
    return path


def _existing_weights(path: Path) -> Path:
    path = _weights(path)
    if not hub_place(path) and not path.exists():
        raise ValueError(f"there is nothing at {path}")
    return path


def _existing_folder(path: Path) -> Path:
    path = path.expanduser()
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}")
    return path


def _address(text: str) -> str:
    return str(parse_address(text))


def _port(text: str) -> str:
    address = parse_address(text)
    if not isinstance(address, TcpAddress):
        raise ValueError(f"{text!r} is no port: HOST:PORT is needed")
    return str(address)


def _collector(url: str) -> str:
    """:raises ValueError: it is no address of a collector, or the packages to speak to it are not installed"""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or "@" in parts.netloc:
        raise ValueError(f"{url!r} is no collector: http://HOST:PORT is needed, or https://HOST:PORT")
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter.otlp.proto.grpc") is None:
        raise ValueError("the packages of the extra `otel` are missing: pip install 'darkroom-diffusion[otel]'")
    return f"{parts.scheme}://{parts.netloc}" if parts.port else f"{parts.scheme}://{parts.netloc}:{OTLP_PORT}"


def _database(url: str) -> str:
    """It is not repeated, as it may have a password, nor what others say of it.

    :raises ValueError: it is no database's, or the packages to speak to it are not installed
    """
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("it is no database: postgresql://USER@HOST/DATABASE is needed")
    if find_spec("psycopg") is None:
        raise ValueError("the packages of the extra `postgres` are missing: pip install 'darkroom-diffusion[postgres]'")
    from psycopg import Error, conninfo

    try:
        parts = conninfo.conninfo_to_dict(url)
    except Error:
        parts = {"host": "@"}
    # Else a part of the password is taken for a host or a port, and said where that is not found.
    ports = str(parts.get("port", "")).replace(",", "")
    if "@" in str(parts.get("host", "")) or (ports and not ports.isdecimal()):
        raise ValueError("it cannot be read: what is special in a password is written as %40 for @, %2F for /")
    return url


def _origin(text: str) -> str:
    """:raises ValueError: it is not spelled as browsers send it"""
    if text != "*" and not ORIGIN.fullmatch(text):
        raise ValueError(f"{text!r} is no origin: https://example.com, in lower case and without a path, or * for all")
    return text


def between(least: float, most: float) -> AfterValidator:
    """A range of two ends; pydantic's own says the one that is passed."""

    def check(value: float) -> float:
        if not least <= value <= most:
            raise ValueError(f"must be from {least} to {most}")
        return value

    return AfterValidator(check)


# An existing folder or safetensors file; or hub:OWNER/NAME@REVISION, or hub:OWNER/NAME@REVISION/FILE.
WeightsPath = Annotated[Path, AfterValidator(_existing_weights)]
# The same of an asset, which is listed as unusable where there is nothing: no single file keeps a server from starting.
AssetPath = Annotated[Path, AfterValidator(_weights)]


class MemoryOptions(BaseModel, extra="forbid"):
    """Memory and speed options of a model, by diffusers' names."""

    offload: Literal["none", "model", "sequential", "group"] = "none"  # where unused weights are kept
    attention_slicing: Annotated[int, Field(ge=1)] | Literal["auto", "max"] | None = None
    vae_slicing: bool = False
    vae_tiling: bool = False
    layerwise_casting: Literal["float8_e4m3fn", "float8_e5m2"] | None = None  # storage dtype of the denoiser
    # torchao, the denoiser's linear layers: weights only; with float8-dynamic activations too.
    quantize: Literal["int8", "int4", "float8", "float8-dynamic"] | None = None
    attention_backend: str | None = None  # None: torch's SDPA chooses the kernel
    compile: bool | Literal["load"] = False  # torch.compile, denoiser only; "load": compiled while loading
    cuda_graphs: bool = False  # the denoiser's evaluations of a few rows are recorded, and launched as a whole

    @property
    def approximations(self) -> tuple[str, ...]:
        """Sentences that name the lossy options in use."""
        if self.quantize == "float8-dynamic":
            return ("The linear layers of the denoiser multiply in float8.",)
        kinds = (kind for kind in (self.quantize, self.layerwise_casting) if kind is not None)
        return tuple(f"The weights of the denoiser are rounded to {kind}." for kind in kinds)


class ModelSettings(MemoryOptions):
    """A model, and the defaults of its requests."""

    name: Name
    path: WeightsPath  # a diffusers folder or repository, or a single-file checkpoint (.safetensors)
    variant: str | None = None  # of the weight files, for instance "fp16"
    config: Annotated[WeightsPath | None, Field(validate_default=True)] = None  # required for a single-file checkpoint:
    # a diffusers folder of its architecture
    vae: WeightsPath | None = None  # replaces the model's VAE: a folder or a single file
    tiny_vae: WeightsPath | None = None  # a folder with an AutoencoderTiny, for tiny-vae previews
    # Of its scheduler. None: as the checkpoint says, else as its configuration.
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    rescale_betas_zero_snr: bool | None = None
    safety: SafetyPolicy = "off"  # safety checker; block: disables previews
    preload: bool = True  # load at startup if it fits memory_budget
    description: str = ""
    dtype: Dtype | None = None  # None: Settings.dtype
    device: str | None = None  # None: Settings.device
    default_scheduler: str | None = None  # None: the entry of the model's own scheduler
    default_num_inference_steps: Annotated[int, Field(ge=1)] = 30
    default_guidance_scale: Annotated[float, between(0, 100)] = 7.5
    default_preview_mode: Annotated[PreviewMode, BeforeValidator(spelled)] = "latent-rgb"
    max_edge: Annotated[int, Field(ge=64)] | None = None  # pixels; None: four times the longer edge of its own size
    max_pixels: Annotated[int, Field(ge=64 * 64)] | None = None  # None: four times those of its own size
    presets: dict[Name, PresetSettings] = {}  # values for requests that name one

    # Validators see earlier fields in info.data, unless those are invalid themselves.

    @field_validator("path")
    @classmethod
    def _whole_repository(cls, path: Path) -> Path:
        place = hub_place(path)
        if place and place.inner and not place.is_file:
            raise ValueError("a model of the hub is a whole repository, or a .safetensors file in one")
        return path

    @field_validator("variant")
    @classmethod
    def _variant_of_folder(cls, variant: str | None, info: ValidationInfo) -> str | None:
        if variant is not None and "path" in info.data and is_weights_file(info.data["path"]):
            raise ValueError("a single-file checkpoint has no variants; a folder or a repository may")
        return variant

    @field_validator("config")
    @classmethod
    def _config_of_file(cls, config: Path | None, info: ValidationInfo) -> Path | None:
        if config is not None and is_weights_file(config):
            raise ValueError(f"{config} is a file; a folder is needed")
        if "path" not in info.data:
            return config
        single = is_weights_file(info.data["path"])
        if single and config is None:
            raise ValueError("a single-file checkpoint needs, in darkroom.toml, a diffusers folder of its architecture")
        if config is not None and not single:
            raise ValueError("only a single-file checkpoint (.safetensors) has a config; others bring their own")
        return config


class AssetSettings(BaseModel, extra="forbid"):
    """A ControlNet (a diffusers folder), or a LoRA or embedding (a safetensors file); or one of the hub."""

    name: Name
    path: AssetPath
    description: str = ""
    preprocessor: str | None = None  # ControlNets only: makes maps as in its training


class Limits(BaseModel, extra="forbid"):
    """Limits of a request; the API's ServerLimits, field by field."""

    max_batch_rows: Annotated[int, Field(ge=2)] = MAX_BATCH_ROWS
    max_images: Annotated[int, Field(ge=1)] = 16
    max_inference_steps: Annotated[int, between(1, 1000)] = 500
    max_edge: Annotated[int, Field(ge=64)] = 2048
    max_pixels: Annotated[int, Field(ge=64 * 64)] = 2048 * 2048
    max_prompt_characters: Annotated[int, Field(ge=1)] = 10_000
    max_queued_jobs: Annotated[int, Field(ge=1)] = 1000
    # Of one client: a token, or, without tokens, a connection. None: half of max_queued_jobs.
    max_queued_jobs_per_client: Annotated[int, Field(ge=1)] | None = None
    max_request_bytes: Annotated[ByteSize, Field(ge=64 * 1024)] = ByteSize(32 * MIB)
    chunk_bytes: Annotated[ByteSize, between(1024, 3 * MIB)] = ByteSize(3 * MIB)

    @property
    def queued_jobs_per_client(self) -> int:
        """`max_queued_jobs_per_client`, or its default."""
        return self.max_queued_jobs_per_client or max(1, self.max_queued_jobs // 2)


class TokenSettings(BaseModel, extra="forbid"):
    """A bearer token, its role and its limits. Tokens are long and random, so brute force is hopeless: a plain hash
    suffices, and a slow password hash would add nothing."""

    name: Name  # of the bearer
    role: Literal["user", "operator"] = "user"  # operators may also load and unload models
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]  # of the token, hexadecimal
    max_jobs: Annotated[int, Field(ge=1)] | None = None  # active at once; None: no limit of its own
    max_pixels: Annotated[int, Field(ge=64 * 64)] | None = None  # of the pictures of its active jobs together
    models: list[str] | None = None  # that it may use and sees; None: all


class TlsSettings(BaseModel, extra="forbid"):
    """Certificate files, PEM. Renewed ones are used from the next connection on."""

    certificate: Annotated[Path, AfterValidator(Path.expanduser)]  # the server's, with the intermediate ones behind it
    key: Annotated[Path, AfterValidator(Path.expanduser)]  # its private key, without a password
    # Of the CAs that sign clients' certificates. If set, clients must have one; else any client may connect.
    client_ca: Annotated[Path, AfterValidator(Path.expanduser)] | None = None

    @model_validator(mode="after")
    def _usable(self) -> Self:
        checked(self.certificate, self.key, self.client_ca)
        return self


class ClusterSettings(BaseModel, extra="forbid"):
    """Replicas on Ray Serve."""

    address: str | None = None  # of the cluster's head; None: a local one is started, and ends with the server
    replicas: Annotated[int, between(1, 10_000)] = 1
    # With a maximum their number follows the load, from `replicas` on.
    min_replicas: Annotated[int, between(0, 10_000)] = 1
    max_replicas: Annotated[int, between(1, 10_000)] | None = None
    wait_seconds: Annotated[float, Field(gt=0)] = 5.0  # of waiting work for each replica, above which more are started
    idle_seconds: Annotated[float, Field(ge=0)] = 300.0  # for which fewer would do, until there are fewer
    # What each takes of a machine, in Ray's units. CPUs are only counted: `threads` says how many threads compute.
    replica_cpus: Annotated[float, Field(ge=0)] = 1.0
    replica_gpus: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_replicas is None:
            if "min_replicas" in self.model_fields_set and self.min_replicas != 1:
                raise ValueError("min_replicas is for replicas that follow the load: set max_replicas, too")
            return self
        for name in ("min_replicas", "replicas"):
            if (least := getattr(self, name)) > self.max_replicas:
                raise ValueError(f"{name}, {least}, is more than max_replicas, {self.max_replicas}")
        return self

    @property
    def most_replicas(self) -> int:
        """How many there may be."""
        return self.max_replicas or self.replicas


class Settings(BaseSettings):
    """All settings of a server."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", env_nested_delimiter="__", extra="forbid")

    engine: Literal["local", "ray"] = "local"  # in this process; or those of replicas on Ray Serve
    cluster: ClusterSettings = ClusterSettings()  # of the engine "ray"
    listen: Annotated[str, AfterValidator(_address)] = DEFAULT_LISTEN  # see config.address
    http: Annotated[str, AfterValidator(_address)] | None = None  # where HTTP's doors listen; None: there are none
    cors_origins: list[Annotated[str, AfterValidator(_origin)]] = []  # whose pages browsers let in by HTTP
    # Of "", the server as a whole, until its models are loaded: for liveness probes, or for those that route by it.
    health_while_starting: Literal["serving", "not-serving"] = "serving"
    log_format: Literal["console", "json"] = "console"
    log_prompts: bool = False  # in the log's line of a job
    metrics: Annotated[str, AfterValidator(_port)] | None = None  # HOST:PORT to serve metrics on; None: nowhere
    traces: Annotated[str, AfterValidator(_collector)] | None = None  # where jobs' spans are sent; None: nowhere
    tokens: list[TokenSettings] = []  # empty: no authentication, loopback only, unless clients have certificates
    tls: TlsSettings | None = None  # None: not encrypted
    device: str = "auto"  # a torch device
    dtype: Dtype = "auto"  # float16 on CUDA, float32 elsewhere
    allow_tf32: bool | None = None  # in float32 on CUDA; None: as torch has it, for convolutions only
    models: list[ModelSettings] = []  # empty: the embedded demo model
    default_model: str | None = None  # None: the first
    controlnets: list[AssetSettings] = []
    loras: list[AssetSettings] = []
    embeddings: list[AssetSettings] = []
    lora_folder: Annotated[Path, AfterValidator(_existing_folder)] | None = None  # of files that come and go
    embedding_folder: Annotated[Path, AfterValidator(_existing_folder)] | None = None
    limits: Limits = Limits()
    # To decode one picture, whole or in tiles; None: the memory that the device has.
    max_decode_bytes: Annotated[ByteSize, Field(ge=MIB)] | None = None
    memory_budget: Annotated[ByteSize, Field(ge=1)] | None = None  # weights on the device; None: no limit
    park_budget: Annotated[ByteSize, Field(ge=0)] = ByteSize(0)  # unloaded weights kept in CPU memory
    idle_seconds: Annotated[float, Field(gt=0)] | None = None  # idle models are unloaded after this; None: never
    blocked_plugins: list[str] = []
    threads: Annotated[int, Field(ge=1)] | None = None  # that compute on a CPU; None: measured while serving
    # Of the smallest batch of `deterministic` jobs; None: 2 on a CPU, 8 on a GPU.
    deterministic_rows: Annotated[int, Field(ge=1)] | None = None
    # The numbers of rows that batches have; empty: any; None: on CUDA powers of two, else any.
    row_buckets: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=64)] | None = None
    encoder_threads: Annotated[int, Field(ge=1)] = 2
    reader_threads: Annotated[int, Field(ge=1)] = 2  # decode input images, run preprocessors
    # Of the processes that decode input images, one a reader thread: memory and time for one picture.
    upload_memory: Annotated[ByteSize, Field(ge=64 * MIB)] = ByteSize(512 * MIB)
    upload_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    max_waiting_bytes: Annotated[ByteSize, Field(ge=MIB)] = ByteSize(2048 * MIB)  # input images of queued jobs
    # Finished pictures that wait for slow readers: bytes in all, and seconds in which a client reads nothing.
    max_unread_bytes: Annotated[ByteSize, Field(ge=MIB)] = ByteSize(1024 * MIB)
    slow_reader_seconds: Annotated[float, Field(gt=0)] = 60.0
    # Jobs with DisconnectPolicy KEEP: for how long after their end, and how many bytes of all of them.
    keep_results_seconds: Annotated[float, Field(ge=0)] = 3600.0
    max_kept_bytes: Annotated[ByteSize, Field(ge=MIB)] = ByteSize(1024 * MIB)
    state_dir: Path | None = None  # the log of kept jobs, which outlives the process; None: they are in memory
    job_log: Annotated[str, AfterValidator(_database)] | None = None  # the same in a database that servers share
    drain_seconds: Annotated[float, Field(ge=0)] = 20.0  # the usual supervisors wait for 30
    # How long one piece of work may keep the engine, or a plugin a thread, until the server says that it is not
    # serving, and until it ends, for its supervisor to start it again; None: never.
    stall_seconds: Annotated[float, Field(gt=0)] = 120.0
    stall_exit_seconds: Annotated[float, Field(gt=0)] | None = 600.0

    @property
    def devices(self) -> set[str]:
        """Of its models, as configured."""
        return {model.device or self.device for model in self.models} or {self.device}

    @field_validator("state_dir")
    @classmethod
    def _folder(cls, path: Path | None) -> Path | None:
        path = path.expanduser() if path is not None else None
        if path is not None and path.exists() and not path.is_dir():
            raise ValueError(f"{path} is not a folder")
        return path

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, given: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Cross-field validation runs even if single fields are invalid, to report all violations at once."""
        wrong = [(place, "inconsistent", words) for place, words in inconsistencies(given, DEMO)]
        try:
            settings = validate(given)
        except ValidationError as error:
            wrong += [(each["loc"], each["type"], each["msg"].removeprefix("Value error, ")) for each in error.errors()]
        if wrong:
            errors: list[InitErrorDetails] = [
                {"type": PydanticCustomError(kind, words), "loc": place, "input": None} for place, kind, words in wrong
            ]
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return settings
