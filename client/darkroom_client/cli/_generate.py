"""`darkroom generate`: its options. What it does is in `_work`, which `--help` need not load."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from darkroom_client.cli import _options

if TYPE_CHECKING:
    from darkroom_client.options import JobOptions


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="Each is a job of its own.")] = None,
    out: Annotated[
        str | None, typer.Option(help="A file, a folder, or a pattern of {prompt}, {seed}, {index} and {suffix}.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="PICTURE", help="Take the recipe of this PNG; other options override it."),
    ] = None,
    seed: _options.Seed = None,
    steps: _options.Steps = None,
    guidance_scale: _options.GuidanceScale = None,
    negative_prompt: _options.NegativePrompt = None,
    width: _options.Width = None,
    height: _options.Height = None,
    num_images: Annotated[int | None, typer.Option(min=1, help="Pictures of each prompt.")] = None,
    model: _options.Model = None,
    scheduler: Annotated[str | None, typer.Option(help="A name from `darkroom schedulers`.")] = None,
    sigma_schedule: Annotated[str | None, typer.Option(help="default, karras, exponential or beta.")] = None,
    timestep_spacing: Annotated[str | None, typer.Option(help="linspace, leading or trailing.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A scheduler's option.")] = None,
    guidance_rescale: Annotated[float | None, typer.Option(help="0 (off) to 1.")] = None,
    clip_skip: Annotated[int | None, typer.Option(help="Final layers of the text encoder to leave out.")] = None,
    eta: Annotated[float | None, typer.Option(help="Weight of DDIM's noise, 0 to 1.")] = None,
    extension: Annotated[
        list[str] | None, typer.Option(metavar="NAME.KEY=VALUE", help="A parameter of a plugin; VALUE is JSON.")
    ] = None,
    deterministic: Annotated[
        bool | None, typer.Option("--deterministic/--no-deterministic", help="Identical bytes each time; slower.")
    ] = None,
    image_format: Annotated[str | None, typer.Option("--format", help="png, jpeg or webp.")] = None,
    previews: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep all previews, and a contact sheet.")
    ] = None,
    preview: Annotated[str | None, typer.Option(metavar="MODE", help="off, latent-rgb, tiny-vae or full-vae.")] = None,
    no_preview: Annotated[bool, typer.Option("--no-preview", help="Show and send no previews.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds that each job may take.")] = None,
    as_json: _options.AsJson = False,
    address: _options.Address = None,
    token: _options.Token = None,
    root_certificate: _options.RootCertificate = None,
) -> None:
    """Makes pictures from text, shows them as they develop, and prints the paths of the files written."""
    from darkroom_client.cli._work import Order

    options: JobOptions = {
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "width": width,
        "height": height,
        "num_images": num_images,
        "model": model,
        "guidance_rescale": guidance_rescale,
        "clip_skip": clip_skip,
        "eta": eta,
        "extensions": _options.extensions(extension or []),
        "deterministic": deterministic,
        "timeout": timeout,
    }
    further = _options.scheduler_options(option or [])
    order = Order(prompts or [], source, out, image_format, options)
    order.schedule_by(scheduler, sigma_schedule, timestep_spacing, further)
    client = {"address": address, "token": token, "root_certificate": root_certificate}
    if not order.run(client, previews, "off" if no_preview else preview, as_json=as_json):
        raise typer.Exit(1)
