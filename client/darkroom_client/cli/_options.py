"""The options that several commands share, and the reading of NAME=VALUE."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

Address = Annotated[
    str | None,
    typer.Option(envvar="DARKROOM_ADDRESS", metavar="HOST:PORT", help="The server; by default 127.0.0.1:50051."),
]
Token = Annotated[str | None, typer.Option(envvar="DARKROOM_TOKEN", help="The bearer token, where the server asks.")]
RootCertificate = Annotated[
    Path | None,
    typer.Option(
        envvar="DARKROOM_ROOT_CERTIFICATE", metavar="FILE", help="PEM file of who signed the server's; switches TLS on."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Seed = Annotated[int | None, typer.Option(help="Starts the random numbers; by default random.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; by default the model's.")]
GuidanceScale = Annotated[float | None, typer.Option(help="Classifier-free guidance; by default the model's.")]
NegativePrompt = Annotated[str | None, typer.Option(help="What the picture should not be.")]
Width = Annotated[int | None, typer.Option(help="Pixels; by default the model's.")]
Height = Annotated[int | None, typer.Option(help="Pixels; by default the model's.")]
Model = Annotated[str | None, typer.Option(help="A name from `darkroom models`; by default the server's default.")]


def scheduler_options(assignments: Iterable[str]) -> dict[str, Any]:
    """{KEY: VALUE} out of KEY=VALUE.

    :raises typer.BadParameter: when one is not of that form.
    """
    return dict(_assignment(text, "--option", "KEY=VALUE") for text in assignments)


def extensions(assignments: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{NAME: {KEY: VALUE}} out of NAME.KEY=VALUE.

    :raises typer.BadParameter: when one is not of that form.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in assignments:
        path, value = _assignment(text, "--extension", "NAME.KEY=VALUE")
        name, dot, key = path.partition(".")
        if not (name and dot and key):
            raise typer.BadParameter(f"{text!r} is not NAME.KEY=VALUE", param_hint="--extension")
        found.setdefault(name, {})[key] = value
    return found


def _assignment(text: str, option: str, form: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise typer.BadParameter(f"{text!r} is not {form}", param_hint=option)
    return key, _json_value(value)


def _json_value(text: str) -> Any:
    """A JSON value; what is none is a string, so that words need no quotes."""
    try:
        return json.loads(text)
    except ValueError:
        return text
