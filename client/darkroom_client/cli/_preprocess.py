"""`darkroom preprocess`."""

from pathlib import Path
from typing import Annotated

import typer

from darkroom_client.cli import _options, _values
from darkroom_client.cli._groups import grouped
from darkroom_client.cli._options import Server


@grouped
def preprocess(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `darkroom preprocessors`.")],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture to make the map from.")],
    server: Server,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the preprocessor; may be repeated.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="A file or a folder; by default IMAGE-NAME.png, here.")] = None,
    image_format: _options.Format = None,
    timeout: _options.Timeout = None,
) -> None:
    """Makes a control map from a picture, for instance its edges, and prints the file's path."""
    from darkroom_client._sync import Client
    from darkroom_client.cli._files import Namer, format_for

    namer = Namer(out, 1, automatic="{prompt}{suffix}")
    chosen = format_for(out, image_format)
    options, data = _values.by_key(option), _values.picture(image, "IMAGE")
    with Client(**server.keywords()) as client:
        stream = client.preprocess(data, name, options=options or None, format=chosen, timeout=timeout)
        (made,) = stream.control_images()
    typer.echo(made.save(namer.path(index=1, prompt=f"{image.stem} {name}", seed=0, suffix=made.suffix)))
