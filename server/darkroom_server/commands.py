"""The commands of `darkroom` that come with the server. Imports are inside: `darkroom --help` is fast."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer


def serve(
    listen: Annotated[str | None, typer.Option(help="Where to listen, HOST:PORT.  [default: 127.0.0.1:50051]")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FOLDER", help="A folder with a diffusers model; repeat for more. None: the demo model."
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="A LoRA to offer, a safetensors file; repeat for more."),
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FOLDER", help="A ControlNet to offer, in diffusers' format; repeat for more."),
    ] = None,
    preprocessor: Annotated[
        list[str] | None,
        typer.Option(metavar="CONTROLNET=NAME", help="What makes a ControlNet's maps, from `darkroom preprocessors`."),
    ] = None,
    embedding: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="A textual inversion to offer, a safetensors file; repeat for more."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …  [default: CUDA where there is one]")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16, or auto: float16 on CUDA.  [default: auto]")
    ] = None,
    max_batch_rows: Annotated[int | None, typer.Option(help="The most rows in one batch.")] = None,
    block: Annotated[list[str] | None, typer.Option(help="A plugin not to load; repeat for more.")] = None,
) -> None:
    """Serve pictures: the embedded demo model, or the models named."""
    # OpenMP's threads spin while they wait unless told otherwise before torch is loaded; beside the event loop and the
    # encoders that costs more than it saves. An operator's own setting stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pydantic import ValidationError

    from darkroom_plugins.manager import PluginError
    from darkroom_server.settings import Settings

    given: dict[str, Any] = {
        "listen": listen,
        "device": device,
        "dtype": dtype,
        "blocked_plugins": block,
        "loras": _files(lora, "--lora"),
        "controlnets": _control_nets(controlnet, preprocessor or ()),
        "embeddings": _files(embedding, "--embedding"),
    }
    if model:
        given["models"] = _named(model, "--model")
    if max_batch_rows is not None:
        given["limits"] = {"max_batch_rows": max_batch_rows}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        for each in error.errors():
            _say(f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": Value error, "))
        raise typer.Exit(2) from None
    from darkroom_server.app import AddressInUse, run
    from darkroom_server.models import ModelError

    _quiet_libraries()
    try:
        raise typer.Exit(_run_event_loop(run(settings)))
    except (AddressInUse, ModelError, PluginError) as error:
        _say(str(error))
        raise typer.Exit(1) from None


def _control_nets(texts: Sequence[str] | None, preprocessors: Sequence[str]) -> list[dict[str, Any]] | None:
    """The settings of ControlNets, each with its preprocessor where one is said."""
    nets = _named(texts or (), "--controlnet")
    by_name = {net["name"]: net for net in nets}
    for text in preprocessors:
        name, _, preprocessor = text.partition("=")
        if name not in by_name or not preprocessor:
            known = ", ".join(by_name) or "none"
            _wrong("--preprocessor", f"{text!r} is not CONTROLNET=NAME; the ControlNets given are: {known}")
        by_name[name]["preprocessor"] = preprocessor
    return nets or None


def _files(texts: Sequence[str] | None, option: str) -> list[dict[str, Any]] | None:
    """The settings of safetensors files."""
    found = _named(texts or (), option)
    for each in found:
        if not each["path"].is_file():
            _wrong(option, f"{each['path']} is a folder; a safetensors file is needed")
    return found or None


def _named(texts: Sequence[str], option: str) -> list[dict[str, Any]]:
    """Name and path out of NAME=PATH, or out of PATH alone: then the name is the file's without its ending.

    :raises typer.BadParameter: there is nothing at the path, or the name is none
    """
    return [dict(zip(("name", "path"), _name_and_path(text, option), strict=True)) for text in texts]


def _name_and_path(text: str, option: str) -> tuple[str, Path]:
    name, equals, rest = text.partition("=")
    whole = Path(text).expanduser()
    if not equals or whole.exists():  # what is there as it stands is a path, equals signs and all
        path = whole.resolve()
        name, path = (path.stem if path.is_file() else path.name), whole
    else:
        path = Path(rest).expanduser()
    if not path.exists():
        _wrong(option, f"there is nothing at {path}")
    if not re.fullmatch(r"[A-Za-z0-9._/-]{1,128}", name):
        _wrong(option, f"{name!r} cannot be a name (letters, digits and any of ._/-): give one, NAME={path}")
    return name, path


def _wrong(option: str, problem: str) -> NoReturn:
    raise typer.BadParameter(problem, param_hint=option)


def plugins(
    block: Annotated[list[str] | None, typer.Option(help="A plugin not to load; repeat for more.")] = None,
) -> None:
    """List the plugins of the server that would start here: name, version, hooks."""
    from darkroom_plugins.manager import PluginError, load_plugins

    _quiet_libraries()
    try:
        infos = load_plugins(block or ()).infos
    except PluginError as error:
        _say(str(error))
        raise typer.Exit(1) from None
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "version", "hooks", "parameters", "")
    for info in infos:
        parameters = ", ".join(info.parameters.model_fields) if info.parameters else ""
        table.add_row(info.name, info.version, "\n".join(info.hooks), parameters, "built in" if info.builtin else "")
    Console().print(table)


def _run_event_loop(main: Any) -> int:
    import asyncio

    try:
        import uvloop
    except ImportError:  # not made for Windows
        return int(asyncio.run(main))
    return int(uvloop.run(main))


def _quiet_libraries() -> None:
    """Keep the progress bars and advice of the libraries out of the log, which goes to stderr."""
    import logging
    import sys

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _say(text: str) -> None:
    typer.secho(text, fg=typer.colors.RED, err=True)
