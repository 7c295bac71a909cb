"""The options of the commands that make pictures, in groups that they share. Nothing here loads gRPC."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

import typer

from darkroom_client._enums import (
    ImageFormatName,
    PreviewModeName,
    PromptSyntaxName,
    ResizeModeName,
    SigmaScheduleName,
    TimestepSpacingName,
    one_of,
)
from darkroom_client.cli import _values

if TYPE_CHECKING:
    from darkroom_client.options import JobOptions


def _choice(names: Any, *declarations: str, metavar: str, about: str = "") -> Any:
    """An option that takes one of the names of a `Literal`, in any spelling; its help lists them."""
    choices: tuple[str, ...] = get_args(names)

    def read(text: str) -> str:
        try:
            return one_of(choices, text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
    return typer.Option(*declarations, metavar=metavar, parser=read, help=f"{about}{listed}.")


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Timeout = Annotated[float | None, typer.Option(metavar="SECONDS", help="The most that each job may take.")]
Format = Annotated[ImageFormatName | None, _choice(ImageFormatName, "--format", metavar="FORMAT")]


@dataclass(frozen=True, slots=True)
class Source:
    """The recipe to begin with."""

    recipe_of: Annotated[
        Path | None,
        typer.Option("--from", metavar="PICTURE", help="Take the recipe of this PNG; other options override it."),
    ] = None
    no_controls: Annotated[bool, typer.Option("--no-controls", help="Leave out the recipe's ControlNets.")] = False


@dataclass(frozen=True, slots=True)
class Server:
    """Where the server is."""

    panel: ClassVar = "Server"

    address: Annotated[
        str | None,
        typer.Option(envvar="DARKROOM_ADDRESS", metavar="HOST:PORT", help="The server; by default 127.0.0.1:50051."),
    ] = None
    token: Annotated[
        str | None, typer.Option(envvar="DARKROOM_TOKEN", help="The bearer token, where the server asks.")
    ] = None
    root_certificate: Annotated[
        Path | None,
        typer.Option(
            envvar="DARKROOM_ROOT_CERTIFICATE",
            metavar="FILE",
            help="PEM file of who signed the server's; switches TLS on.",
        ),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """The arguments of Client and AsyncClient."""
        return {"address": self.address, "token": self.token, "root_certificate": self.root_certificate}


@dataclass(frozen=True, slots=True)
class Picture:
    """What to make."""

    seed: Annotated[int | None, typer.Option(help="Starts the random numbers; by default random.")] = None
    steps: Annotated[int | None, typer.Option(help="Denoising steps; by default the model's.")] = None
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance; by default the model's.")] = (
        None
    )
    negative_prompt: Annotated[str | None, typer.Option(help="What the picture should not be.")] = None
    prompt_syntax: Annotated[
        PromptSyntaxName | None,
        _choice(
            PromptSyntaxName, metavar="SYNTAX", about="With weighted, (word:1.3) weighs more and no prompt is cut off. "
        ),
    ] = None
    width: Annotated[int | None, typer.Option(help="Pixels; by default the model's, or the edited picture's.")] = None
    height: Annotated[int | None, typer.Option(help="Pixels; by default the model's, or the edited picture's.")] = None
    model: Annotated[
        str | None, typer.Option(help="A name from `darkroom models`; by default the server's default.")
    ] = None
    task: Annotated[str | None, typer.Option(help="A name from `darkroom tasks`; by default what is asked for.")] = None
    guidance_rescale: Annotated[float | None, typer.Option(help="0 (off) to 1.")] = None
    guidance_start: Annotated[
        float | None, typer.Option(help="Guide from this share of the steps on; those without cost half.")
    ] = None
    guidance_end: Annotated[float | None, typer.Option(help="Guide up to this share of the steps.")] = None
    cache_interval: Annotated[
        int | None, typer.Option(help="Run the whole denoiser only this often, its outer layers alone between: faster.")
    ] = None
    clip_skip: Annotated[int | None, typer.Option(help="Final layers of the text encoder to leave out.")] = None
    extension: Annotated[
        list[str] | None, typer.Option(metavar="NAME.KEY=VALUE", help="A parameter of a plugin; VALUE is JSON.")
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
            "task": self.task,
            "guidance_rescale": self.guidance_rescale,
            "guidance_start": self.guidance_start,
            "guidance_end": self.guidance_end,
            "cache_interval": self.cache_interval,
            "clip_skip": self.clip_skip,
            "extensions": _values.by_name(self.extension, "--extension", "NAME.KEY=VALUE"),
            "timeout": self.timeout,
        }


@dataclass(frozen=True, slots=True)
class Sdxl:
    """What only models of two text encoders take."""

    panel: ClassVar = "SDXL"

    prompt_2: Annotated[str | None, typer.Option(help="For the second text encoder; by default the prompt.")] = None
    negative_prompt_2: Annotated[
        str | None, typer.Option(help="For the second text encoder; by default the negative prompt.")
    ] = None
    original_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Of the picture to imitate; by default the picture's own size.")
    ] = None
    crop_offset: Annotated[
        str | None, typer.Option(metavar="LEFT,TOP", help="Pixels cut off of it; by default none.")
    ] = None
    target_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="To which it was scaled; by default the picture's own size.")
    ] = None

    def keywords(self) -> "JobOptions":
        """The keywords of `generate` and `edit`."""
        sizes = _values.sizes(self.original_size, self.crop_offset, self.target_size)
        return {
            "prompt_2": self.prompt_2,
            "negative_prompt_2": self.negative_prompt_2,
            "size_conditioning": sizes,  # type: ignore[typeddict-item]  # its fields by name
        }


@dataclass(frozen=True, slots=True)
class Scheduling:
    """The noise scheduler."""

    panel: ClassVar = "Scheduler"

    scheduler: Annotated[str | None, typer.Option(help="A name from `darkroom schedulers`.")] = None
    sigma_schedule: Annotated[SigmaScheduleName | None, _choice(SigmaScheduleName, metavar="NAME")] = None
    timestep_spacing: Annotated[TimestepSpacingName | None, _choice(TimestepSpacingName, metavar="NAME")] = None
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A scheduler's option.")] = None
    eta: Annotated[float | None, typer.Option(help="Weight of DDIM's noise, 0 to 1.")] = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """LoRAs and ControlNets."""

    panel: ClassVar = "LoRAs and ControlNets"

    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:WEIGHT]", help="From `darkroom loras`; may be repeated. Weight: -10 to 10, or 1."),
    ] = None
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=PHOTO[:SCALE]",
            help="A ControlNet from `darkroom controlnets`, and a picture of which its usual preprocessor makes the "
            "map; may be repeated. Scale: 0 to 10, or 1.",
        ),
    ] = None
    control_map: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=MAP[:SCALE]", help="The same with a map that is made already."),
    ] = None
    preprocess: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=NAME", help="Another one from `darkroom preprocessors` for --control MODEL."),
    ] = None
    preprocess_option: Annotated[
        list[str] | None, typer.Option(metavar="MODEL.KEY=VALUE", help="An option of that preprocessor.")
    ] = None
    control_option: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL.KEY=VALUE", help="start or end (0 to 1, of the steps), or guess_mode=true."),
    ] = None


@dataclass(frozen=True, slots=True)
class Results:
    """What becomes of the pictures."""

    panel: ClassVar = "Results"

    out: Annotated[
        str | None, typer.Option(help="A file, a folder, or a pattern of {prompt}, {seed}, {index} and {suffix}.")
    ] = None
    num_images: Annotated[int | None, typer.Option(min=1, help="Pictures of each prompt.")] = None
    deterministic: Annotated[
        bool | None, typer.Option("--deterministic/--no-deterministic", help="Identical bytes each time; slower.")
    ] = None
    image_format: Format = None
    previews: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep all previews, and a contact sheet.")] = None
    preview: Annotated[PreviewModeName | None, _choice(PreviewModeName, metavar="MODE")] = None
    no_preview: Annotated[bool, typer.Option("--no-preview", help="Show and send no previews.")] = False
    echo_maps: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the maps of the ControlNets.")] = None
    as_json: AsJson = False

    @property
    def preview_mode(self) -> PreviewModeName | None:
        """What --preview or --no-preview says; None: nothing."""
        return "off" if self.no_preview else self.preview


@dataclass(frozen=True, slots=True)
class Editing:
    """The kind of change."""

    panel: ClassVar = "Edit"

    strength: Annotated[
        float | None,
        typer.Option(help="0 (the picture stays) to 1 (nothing of it is left); by default 0.8, under a mask 1."),
    ] = None
    mask: Annotated[
        Path | None,
        typer.Option(help="Repaint only where this picture, of the same size, is white; what is black is kept."),
    ] = None
    mask_blur: Annotated[int | None, typer.Option(help="Pixels, 0 to 64, by which its edge is softened.")] = None
    padding_crop: Annotated[
        int | None,
        typer.Option(help="Repaint the mask's box alone, with so many pixels around it, at the model's full size."),
    ] = None
    keep_unmasked: Annotated[
        bool, typer.Option("--keep-unmasked", help="Put the picture's own pixels back outside of the mask.")
    ] = False
    outpaint: Annotated[
        str | None,
        typer.Option(metavar="L,T,R,B", help="Paint on beyond the edges: pixels at the left, top, right and bottom."),
    ] = None
    resize_mode: Annotated[
        ResizeModeName | None,
        _choice(ResizeModeName, metavar="MODE", about="How it is fitted to --width and --height; by default crop: "),
    ] = None
