"""The option groups of commands that run jobs: prompts, results and edits. Imports no gRPC, as `_options`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from darkroom_client._enums import PreviewModeName, PriorityName, ResizeModeName, UpscalerName
from darkroom_client.cli._options import Format, NoClobber, choice
from darkroom_client.cli._values import parse_scaling

MAX_PROMPTS = 1000  # of a template
AT_ONCE = 8  # jobs; the server batches them together


def _count(most: int, help: str) -> Any:
    """An option for a whole number from 1 to `most`."""

    def check(count: int | None) -> int | None:
        if count is not None and not 1 <= count <= most:
            raise typer.BadParameter(f"must be from 1 to {most}, not {count}")
        return count

    return typer.Option(metavar="N", callback=check, help=help)


@dataclass(frozen=True, slots=True)
class Prompting:
    """How prompts are read, and how many run at once."""

    panel: ClassVar = "Many prompts"

    jobs: Annotated[int, _count(64, help="Prompts sent at once, 1 to 64; the others wait here.")] = AT_ONCE
    combinations: Annotated[
        bool,
        typer.Option("--combinations", help="PROMPT is a template: every combination of its {one|two} and __names__."),
    ] = False
    samples: Annotated[
        int | None,
        _count(
            MAX_PROMPTS,
            help=f"PROMPT is a template: up to N different prompts of it by chance, 1 to {MAX_PROMPTS}. "
            "The same ones for the same --seed.",
        ),
    ] = None
    wildcards: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, metavar="DIR", help="Folder of NAME.txt with a text a line for each __NAME__."
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class Results:
    """The output of the command."""

    panel: ClassVar = "Results"

    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="File, folder, pattern with {prompt}, {seed}, {index} and {suffix}, or - for stdout. "
            "Default: PROMPT-SEED.png.",
        ),
    ] = None
    no_clobber: NoClobber = False
    num_images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Pictures per prompt, with consecutive seeds. Default: 1.")
    ] = None
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bytes at any load and at each repetition.")
    ] = False
    no_deterministic: Annotated[
        bool, typer.Option("--no-deterministic", help="Not so, whatever the recipe of --from says.")
    ] = False
    image_format: Format = None
    previews: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save all previews and a contact sheet in this folder.")
    ] = None
    preview: Annotated[
        PreviewModeName | None,
        choice(
            PreviewModeName,
            metavar="MODE",
            after=". Default: the model's; off if previews are neither shown nor saved.",
        ),
    ] = None
    no_preview: Annotated[bool, typer.Option("--no-preview", help="Same as --preview off.")] = False
    animate: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Save the picture as it develops, its previews as frames: .webp, .gif or .png (APNG). "
            "With several pictures numbered, or a pattern as that of --out.",
        ),
    ] = None
    open_pictures: Annotated[
        bool, typer.Option("--open", help="Open the finished pictures with the system's viewer.")
    ] = False
    echo_maps: Annotated[Path | None, typer.Option(metavar="DIR", help="Save the control maps in this folder.")] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per event. Integers beyond 2^53 are text.")
    ] = False
    priority: Annotated[
        PriorityName | None,
        choice(PriorityName, metavar="NAME", after=". Default: normal; high needs an operator's token."),
    ] = None
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Go on if this command or the server is interrupted; see `darkroom jobs`."),
    ] = False

    @property
    def preview_mode(self) -> PreviewModeName | None:
        """The mode of --preview or --no-preview; None without either."""
        return "off" if self.no_preview else self.preview


@dataclass(frozen=True, slots=True)
class SecondStage:
    """A second stage at a larger size."""

    panel: ClassVar = "Hires fix"

    hires_fix: Annotated[
        str | None,
        typer.Option(
            metavar="FACTOR|WxH",
            help="Make the picture at its size, upscale it by 1 to 8 or to a size, and denoise it again there.",
        ),
    ] = None
    no_hires_fix: Annotated[
        bool, typer.Option("--no-hires-fix", help="Not so, whatever the recipe of --from says.")
    ] = False
    hires_upscaler: Annotated[
        UpscalerName | None, choice(UpscalerName, metavar="NAME", after=". Default: pixel-lanczos.")
    ] = None
    hires_strength: Annotated[
        float | None, typer.Option(help="How much of the upscaled picture may change, 0 to 1.")
    ] = None
    hires_steps: Annotated[
        int | None, typer.Option(help="Denoising steps of the second stage. Default: as the first.")
    ] = None

    def keyword(self) -> dict[str, Any] | None:
        """The keyword `hires_fix`: what is given of it; None without any."""
        scaling = parse_scaling(self.hires_fix) if self.hires_fix is not None else {}
        more = {
            "upscaler": self.hires_upscaler,
            "strength": self.hires_strength,
            "num_inference_steps": self.hires_steps,
        }
        return {**scaling, **{name: value for name, value in more.items() if value is not None}} or None


@dataclass(frozen=True, slots=True)
class Editing:
    """The kind of edit and its parameters."""

    panel: ClassVar = "Edit"

    strength: Annotated[
        float | None,
        typer.Option(help="0 (picture unchanged) to 1 (nothing of it left). Default: 0.8, with --mask 1."),
    ] = None
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURE",
            help="Inpaint. Mask of the picture's size: white is repainted, black and transparent parts are kept.",
        ),
    ] = None
    mask_blur: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Blur radius of the mask's edge, 0 to 64. Default: 4.")
    ] = None
    padding_crop: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Inpaint only the mask's bounding box and this margin, at the model's full resolution.",
        ),
    ] = None
    keep_unmasked: Annotated[
        bool, typer.Option("--keep-unmasked", help="Copy the pixels outside of the mask from the picture.")
    ] = False
    outpaint: Annotated[
        str | None,
        typer.Option(
            metavar="L,T,R,B", help="Outpaint. Margins in pixels: left, top, right and bottom, or one number for all."
        ),
    ] = None
    resize_mode: Annotated[
        ResizeModeName | None,
        choice(ResizeModeName, metavar="MODE", before="Fit to --width and --height: ", after=". Default: crop."),
    ] = None
