"""The commands of `darkroom` that come with the server. Imports are inside: `darkroom --help` is fast."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer


def serve(
    listen: Annotated[str | None, typer.Option(help="Where to listen, HOST:PORT.  [default: 127.0.0.1:50051]")] = None,
    model: Annotated[
        list[Path] | None, typer.Option(help="A folder with a diffusers model; repeat for more. None: the demo model.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …  [default: CUDA where there is one]")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto: float16 on CUDA.")] = "auto",
    max_batch_rows: Annotated[int | None, typer.Option(help="The most rows in one batch.")] = None,
    block: Annotated[list[str] | None, typer.Option(help="A plugin not to load; repeat for more.")] = None,
) -> None:
    """Serve pictures: the embedded demo model, or the models named."""
    # OpenMP's threads spin while they wait unless told otherwise before torch is loaded; beside the event loop and the
    # encoders that costs more than it saves. An operator's own setting stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pydantic import ValidationError

    from darkroom_plugins.manager import PluginError
    from darkroom_server.settings import Settings, demo_model

    given: dict[str, Any] = {"listen": listen, "device": device, "blocked_plugins": block}
    if model:
        given["models"] = [{"name": path.resolve().name, "path": path, "dtype": dtype} for path in model]
    elif dtype != "auto":
        given["models"] = [demo_model().model_dump() | {"dtype": dtype}]
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
