"""`darkroom preprocess`: a control map from a picture."""

from pathlib import Path
from typing import Annotated

import typer

from darkroom_client.cli import _options, _values
from darkroom_client.cli._groups import with_option_groups
from darkroom_client.cli._options import Server


@with_option_groups
def preprocess(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Preprocessor from `darkroom preprocessors`.")],
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="Picture to make the control map from, or - for stdin.")
    ],
    server: Server,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Option of the preprocessor; VALUE is JSON or text. Repeatable."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="File, folder, or - for stdout. Default: IMAGE-NAME.png in this folder."),
    ] = None,
    no_clobber: _options.NoClobber = False,
    image_format: _options.Format = None,
    timeout: _options.Timeout = None,
) -> None:
    """Make a control map from a picture, such as its edges, and print the path of the file written.

    Examples:
    darkroom preprocess canny photo.png
    darkroom preprocess canny photo.png --option low_threshold=50 --out edges.png
    """
    from darkroom_client._sync import Client
    from darkroom_client.cli._files import Output, format_for

    output = Output(out, automatic="{prompt}{suffix}", no_clobber=no_clobber)
    chosen_format = format_for(out, image_format)
    options, data = _values.parse_pairs(option), _values.read_picture(image, "IMAGE")
    with Client(**server.keywords()) as client:
        stream = client.preprocess(data, name, options=options or None, format=chosen_format, timeout=timeout)
        (control_map,) = stream.control_images()
    path = output.write(control_map.image_bytes, suffix=control_map.suffix, prompt=f"{image.stem} {name}")
    if path is not None:
        typer.echo(path)
