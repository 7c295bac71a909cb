"""The option groups of the commands. Imports no gRPC, so that `--help` stays fast."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

import typer

from darkroom_client._enums import (
    ImageFormatName,
    PromptSyntaxName,
    SigmaScheduleName,
    TimestepSpacingName,
    one_of,
)
from darkroom_client.cli import _values

if TYPE_CHECKING:
    from darkroom_client.options import JobOptions


def choice(names: Any, *declarations: str, metavar: str, before: str = "", after: str = ".") -> Any:
    """An option for one of the names of a `Literal`, in any spelling. Its help lists them."""
    choices: list[str] = list(get_args(names))

    def parse(text: str) -> str:
        try:
            return one_of(choices, text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
    return typer.Option(
        *declarations, metavar=metavar, parser=parse, autocompletion=lambda: choices, help=f"{before}{listed}{after}"
    )


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON. Integers beyond 2^53 are text.")]
NoClobber = Annotated[bool, typer.Option("--no-clobber", help="Overwrite no file: number the new one.")]
Timeout = Annotated[float | None, typer.Option(metavar="SECONDS", help="Time limit of each job.")]
Format = Annotated[
    ImageFormatName | None,
    choice(ImageFormatName, "--format", metavar="FORMAT", after=". Default: by the extension of --out, else png."),
]


_RETRIES = 3  # of a call, whatever its time limit: who has forgotten to start the server shall hear it soon


@dataclass(frozen=True, slots=True)
class Source:
    """The recipe to start from."""

    recipe_of: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="PICTURE", help="Start from the recipe of this picture; other options override it."
        ),
    ] = None
    no_controls: Annotated[
        bool, typer.Option("--no-controls", help="Drop the recipe's ControlNets, whose pictures it does not contain.")
    ] = False


@dataclass(frozen=True, slots=True)
class Server:
    """The server's address and credentials."""

    panel: ClassVar = "Server"

    address: Annotated[
        str | None,
        typer.Option(envvar="DARKROOM_ADDRESS", metavar="HOST:PORT", help="Server address. Default: 127.0.0.1:50051."),
    ] = None
    token: Annotated[
        str | None, typer.Option(envvar="DARKROOM_TOKEN", help="Bearer token, if the server requires one.")
    ] = None
    root_certificate: Annotated[
        Path | None,
        typer.Option(
            "--root-certificate",
            "--tls-ca",
            envvar="DARKROOM_ROOT_CERTIFICATE",
            metavar="FILE",
            help="PEM file of the CA that signed the server's certificate. Enables TLS.",
        ),
    ] = None
    client_certificate: Annotated[
        Path | None,
        typer.Option(
            envvar="DARKROOM_CLIENT_CERTIFICATE",
            metavar="FILE",
            help="PEM file of the client's own certificate, if the server asks for one. Enables TLS.",
        ),
    ] = None
    client_key: Annotated[
        Path | None,
        typer.Option(envvar="DARKROOM_CLIENT_KEY", metavar="FILE", help="PEM file of that certificate's private key."),
    ] = None
    tls: Annotated[bool, typer.Option("--tls", help="Use TLS, with the CAs that gRPC knows.")] = False

    def keywords(self) -> dict[str, Any]:
        """The arguments of Client and AsyncClient."""
        connection = {"address": self.address, "token": self.token, "tls": self.tls, "retries": _RETRIES}
        files = ("root_certificate", "client_certificate", "client_key")
        return connection | {name: getattr(self, name) for name in files}


@dataclass(frozen=True, slots=True)
class Picture:
    """The parameters of a picture."""

    seed: Annotated[int | None, typer.Option(help="Random seed. Default: a random one.")] = None
    steps: Annotated[int | None, typer.Option(help="Denoising steps. Default: the model's.")] = None
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance scale; no guidance up to 1. Default: the model's."),
    ] = None
    negative_prompt: Annotated[
        str | None, typer.Option(help="What the picture should not show. Needs a guidance scale above 1.")
    ] = None
    prompt_syntax: Annotated[
        PromptSyntaxName | None,
        choice(
            PromptSyntaxName,
            metavar="SYNTAX",
            after=". Weighted: (word:1.3) emphasizes, and long prompts are not truncated. Default: plain.",
        ),
    ] = None
    width: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Default: the model's, or that of the picture to edit.")
    ] = None
    height: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Default: the model's, or that of the picture to edit.")
    ] = None
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model from `darkroom models`. Default: the server's.")
    ] = None
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Preset of the model, from `darkroom models`, for options that are not given."
        ),
    ] = None
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Task from `darkroom tasks`. Default: by the command and its options."),
    ] = None
    guidance_rescale: Annotated[
        float | None, typer.Option(help="Rescaling of the guided prediction against over-exposure, 0 (off) to 1.")
    ] = None
    guidance_start: Annotated[
        float | None,
        typer.Option(help="Fraction of the steps at which guidance starts. Approximate: steps without it cost half."),
    ] = None
    guidance_end: Annotated[float | None, typer.Option(help="Fraction of the steps at which guidance ends.")] = None
    cache_interval: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="DeepCache: run all layers of the denoiser at every Nth evaluation only. Approximate."
        ),
    ] = None
    clip_skip: Annotated[int | None, typer.Option(help="Final layers of the text encoder to skip.")] = None
    extension: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME.KEY=VALUE", help="Parameter of plugin NAME; VALUE is JSON or text. Repeatable."),
    ] = None
    timeout: Timeout = None

    def keywords(self) -> "JobOptions":
        """The keywords of `generate` and `edit`."""
        return {
            "seed": self.seed,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt,
            "prompt_syntax": self.prompt_syntax,
            "width": self.width,
            "height": self.height,
            "model": self.model,
            "preset": self.preset,
            "task": self.task,
            "guidance_rescale": self.guidance_rescale,
            "guidance_start": self.guidance_start,
            "guidance_end": self.guidance_end,
            "cache_interval": self.cache_interval,
            "clip_skip": self.clip_skip,
            "extensions": _values.parse_dotted_pairs(self.extension, "--extension", "NAME.KEY=VALUE"),
            "timeout": self.timeout,
        }


@dataclass(frozen=True, slots=True)
class Sdxl:
    """Parameters of models with two text encoders."""

    panel: ClassVar = "SDXL"

    prompt_2: Annotated[str | None, typer.Option(help="Prompt for the second text encoder. Default: the prompt.")] = (
        None
    )
    negative_prompt_2: Annotated[
        str | None, typer.Option(help="Negative prompt for the second text encoder. Default: the negative prompt.")
    ] = None
    original_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Conditioning on an original size. Default: the picture's size.")
    ] = None
    crop_offset: Annotated[
        str | None,
        typer.Option(metavar="LEFT,TOP", help="Conditioning on a crop of the original, in pixels. Default: 0,0."),
    ] = None
    target_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Conditioning on a target size. Default: the picture's size.")
    ] = None

    def keywords(self) -> "JobOptions":
        """The keywords of `generate` and `edit`."""
        sizes = _values.parse_sizes(self.original_size, self.crop_offset, self.target_size)
        return {
            "prompt_2": self.prompt_2,
            "negative_prompt_2": self.negative_prompt_2,
            "size_conditioning": sizes,  # type: ignore[typeddict-item]  # its fields by name
        }


@dataclass(frozen=True, slots=True)
class Scheduling:
    """The noise scheduler and its options."""

    panel: ClassVar = "Scheduler"

    scheduler: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Noise scheduler from `darkroom schedulers`. Default: the model's."),
    ] = None
    sigma_schedule: Annotated[
        SigmaScheduleName | None, choice(SigmaScheduleName, metavar="NAME", before="Spacing of the noise levels: ")
    ] = None
    timestep_spacing: Annotated[
        TimestepSpacingName | None, choice(TimestepSpacingName, metavar="NAME", before="Choice of the timesteps: ")
    ] = None
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Further option of the scheduler; VALUE is JSON or text. Repeatable."),
    ] = None
    eta: Annotated[float | None, typer.Option(help="Noise weight of DDIM, 0 to 1.")] = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """LoRAs and ControlNets."""

    panel: ClassVar = "LoRAs and ControlNets"

    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:WEIGHT]", help="LoRA from `darkroom loras`. WEIGHT: -10 to 10, default 1. Repeatable."
        ),
    ] = None
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=PHOTO[:SCALE]",
            help="ControlNet from `darkroom controlnets`, whose preprocessor makes the control map of PHOTO. "
            "SCALE: 0 to 10, default 1. Repeatable.",
        ),
    ] = None
    control_map: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=MAP[:SCALE]", help="ControlNet with a finished control map. Repeatable."),
    ] = None
    preprocess: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=NAME",
            help="Other preprocessor for --control MODEL, from `darkroom preprocessors`. Repeatable.",
        ),
    ] = None
    preprocess_option: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL.KEY=VALUE", help="Option of the preprocessor of MODEL. Repeatable."),
    ] = None
    control_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL.KEY=VALUE",
            help="start or end (fraction of the steps), or guess_mode (true or false). Repeatable.",
        ),
    ] = None
