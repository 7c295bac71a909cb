"""`darkroom models pull`: from the Hugging Face hub into its cache, and into darkroom.toml."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom_server.cli.flags import checked_name
from darkroom_server.cli.report import USAGE, fail

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = Path("darkroom.toml")


def pull(
    repository: Annotated[
        str,
        typer.Argument(metavar="OWNER/NAME[@REVISION]", help="Of the hub. Default: its newest commit."),
    ],
    name: Annotated[str | None, typer.Option(help="In requests. Default: the repository's or the file's.")] = None,
    variant: Annotated[str | None, typer.Option(help='Of a model\'s weight files, for instance "fp16".')] = None,
    lora: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="This file of the repository, a LoRA, not a model."),
    ] = None,
    embedding: Annotated[
        str | None, typer.Option(metavar="FILE", help="This file of the repository, a textual inversion.")
    ] = None,
    controlnet: Annotated[bool, typer.Option("--controlnet", help="The repository is a ControlNet's.")] = False,
    config: Annotated[
        Path,
        typer.Option(
            metavar="FILE", envvar="DARKROOM_CONFIG", dir_okay=False, help="Where it is written; a new file is made."
        ),
    ] = FILE,
) -> None:
    """Download a model, LoRA, ControlNet or embedding from the Hugging Face hub, and write it into darkroom.toml.

    It is in the hub's cache then, at the commit that the file names. HF_TOKEN gives access to gated repositories.

    Examples:
    darkroom models pull stabilityai/stable-diffusion-xl-base-1.0 --variant fp16 --name xl
    darkroom models pull latent-consistency/lcm-lora-sdxl --lora pytorch_lora_weights.safetensors --name lcm
    """
    from darkroom_server.cli.commands import _quiet_libraries

    _quiet_libraries()
    inner = lora or embedding or ""
    if sum(map(bool, (lora, embedding, controlnet, variant))) > 1:
        fail("--lora, --embedding, --controlnet and --variant do not go together", status=USAGE)
    kind = "loras" if lora else "embeddings" if embedding else "controlnets" if controlnet else "models"
    source, _, revision = repository.removeprefix("hub:").partition("@")
    name = checked_name(name or Path(inner or source).name.removesuffix(".safetensors"))
    text = _text(config, kind, name)
    try:
        entry = _fetched(kind, name, source, revision or None, inner, variant)
        _append(config, _addition(text, kind, entry, config))
    except (OSError, ValueError) as error:
        fail(str(error))
    typer.echo(f"{kind.removesuffix('s')} {name} is in {config}: {entry['path']}")


def _text(config: Path, kind: str, name: str) -> str:
    """What is in the file, if it can be added to. Asked before anything is downloaded.

    :raises typer.Exit: it cannot
    """
    from darkroom_server.config.reader import ConfigurationError, document

    if not os.access(config if config.exists() else config.parent, os.W_OK):
        fail(f"{config} cannot be written")
    try:
        text, table = document(config if config.exists() else None)
    except ConfigurationError as error:
        fail(*error.violations, status=USAGE)
    if any(isinstance(each, dict) and each.get("name") == name for each in table.get(kind, [])):
        fail(f"{config} has {name!r} in [[{kind}]] already; give another --name")
    return text


def _fetched(
    kind: str, name: str, repository: str, revision: str | None, inner: str, variant: str | None
) -> dict[str, str]:
    """The entry of what was downloaded, once the server can open it.

    :raises OSError, ValueError: it cannot be downloaded, or not be served; one sentence says why
    """
    from darkroom_plugins.files.hub import commit_of
    from darkroom_plugins.manager import load_plugins
    from darkroom_server.config.settings import Settings
    from darkroom_server.models.assets import AssetFiles
    from darkroom_server.models.model import ModelError
    from darkroom_server.models.opening import open_models

    place = f"hub:{repository}@{commit_of(repository, revision)}"
    entry = {"name": name, "path": f"{place}/{inner}" if inner else place} | ({"variant": variant} if variant else {})
    chosen: Mapping[str, Any] = {kind: [entry], "device": "cpu"}
    settings, plugins = Settings(**chosen), load_plugins()
    try:
        if kind == "models":
            model = open_models(settings, plugins, by_headers=True)[name]
            model.files.fetch(model.family.meta_components)
            return entry
        ((asset,),) = [each.values() for each in AssetFiles(settings, plugins, {}).entries.values() if each]
    except ModelError as error:
        raise ValueError(str(error)) from error
    if asset.unusable:
        raise ValueError(f"{name} cannot be used: {asset.unusable}")
    return entry


def _addition(text: str, kind: str, entry: Mapping[str, str], config: Path) -> str:
    """What adds an entry at the end of the file.

    :raises ValueError: that is no TOML, as where the file has the list in one line
    """
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in entry.items())
    gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    added = f"{gap}[[{kind}]]\n{lines}\n"
    try:
        tomllib.loads(text + added)
    except tomllib.TOMLDecodeError:
        one_line = ", ".join(f"{key} = {json.dumps(value)}" for key, value in entry.items())
        raise ValueError(f"{config} has {kind} in another form; add to it: {{ {one_line} }}") from None
    return added


def _append(config: Path, text: str) -> None:
    """All of it or nothing, as where the disk is full.

    :raises OSError: it cannot be written
    """
    left = text.encode()
    with config.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(end)
            raise
