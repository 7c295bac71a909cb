"""The keywords `loras` and `controls` from the command's options."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from darkroom.v1 import parameters_pb2
from darkroom_client._aio import AsyncClient
from darkroom_client._text import did_you_mean, unknown
from darkroom_client.cli._options import Conditions, Server
from darkroom_client.cli._values import (
    parse_dotted_pairs,
    parse_scaled_path,
    read_picture,
    split_assignment,
    usage_error,
)
from darkroom_client.errors import ControlNetNotFound
from darkroom_client.options import ControlSpec, JobOptions, LoraSpec
from darkroom_client.recipes import Recipe

_OPTIONS = ("start", "end", "guess_mode")  # keys of --control-option
_RECIPE_FIELDS = ("preprocessor", "preprocessor_options", "scale", *_OPTIONS)  # defaults from a recipe


def conditions(given: Conditions, server: Server, recipe: Recipe | None, *, echo_maps: bool = False) -> JobOptions:
    """The keywords `loras` and `controls`. Without --lora, the recipe's LoRAs apply.

    Recipes have no pictures: each of their ControlNets needs --control or --control-map, and supplies defaults.

    :raises typer.BadParameter: for invalid options.
    :raises DarkroomError: if the server has no such ControlNet, or cannot be reached.
    """
    old = list(recipe.parameters.controls) if recipe is not None else []
    if given.control or given.control_map or old:
        return {"loras": _loras(given.lora), "controls": _Controls(given, old).specs(server, echo_maps)}
    for option in ("preprocess", "preprocess_option", "control_option"):
        if getattr(given, option):
            usage_error(f"--{option.replace('_', '-')}", "needs --control or --control-map")
    if echo_maps:
        usage_error("--echo-maps", "needs --control or --control-map")
    return {"loras": _loras(given.lora)}


def _loras(texts: Sequence[str] | None) -> list[LoraSpec] | None:
    try:
        return [LoraSpec.parse(text) for text in texts or ()] or None
    except ValueError as error:
        usage_error("--lora", str(error))


@dataclass(slots=True)
class _Control:
    """A ControlNet with its picture."""

    model: str
    image: bytes
    values: dict[str, Any]  # of further fields of ControlSpec


class _Controls:
    """Collects the options of each ControlNet by its name."""

    def __init__(self, given: Conditions, old: list[parameters_pb2.ControlSpec]) -> None:
        self._recipe_controls = old  # not yet used
        self._preprocessors = dict(
            split_assignment(text, "--preprocess", "MODEL=NAME") for text in given.preprocess or ()
        )
        self._preprocessor_options = parse_dotted_pairs(
            given.preprocess_option, "--preprocess-option", "MODEL.KEY=VALUE"
        )
        self._options = parse_dotted_pairs(given.control_option, "--control-option", "MODEL.KEY=VALUE")
        self._photos = [self._control(text, "--control", "PHOTO") for text in given.control or ()]
        self._maps = [self._control(text, "--control-map", "MAP") for text in given.control_map or ()]
        self._check()

    def specs(self, server: Server, echo_maps: bool) -> list[ControlSpec]:
        """Those of --control, then those of --control-map."""
        unspecified = {each.model for each in self._photos if not each.values.get("preprocessor")}
        defaults = _default_preprocessors(unspecified, server) if unspecified else {}
        return [
            ControlSpec(
                **{"model": each.model, "image": each.image, "preprocessor": defaults.get(each.model), **each.values},
                echo_map=echo_maps or None,
            )
            for each in [*self._photos, *self._maps]
        ]

    def _control(self, text: str, option: str, placeholder: str) -> _Control:
        model, rest = split_assignment(text, option, f"MODEL={placeholder} or MODEL={placeholder}:SCALE")
        path, scale = parse_scaled_path(rest)
        values = self._take_from_recipe(model) | self._options.get(model, {})
        if scale is not None:
            values["scale"] = scale
        if option == "--control":
            self._set_preprocessor(model, values)
        else:
            values |= {"preprocessor": None, "preprocessor_options": None}
        return _Control(model, read_picture(path, option), values)

    def _take_from_recipe(self, model: str) -> dict[str, Any]:
        """The values of the recipe's first unused ControlNet of this name."""
        old = next((each for each in self._recipe_controls if each.model == model), None)
        if old is None:
            return {}
        self._recipe_controls.remove(old)
        fields = json_format.MessageToDict(old, preserving_proto_field_name=True)
        return {name: fields[name] for name in _RECIPE_FIELDS if name in fields}

    def _set_preprocessor(self, model: str, values: dict[str, Any]) -> None:
        if model in self._preprocessors and self._preprocessors[model] != values.get("preprocessor"):
            values |= {"preprocessor": self._preprocessors[model], "preprocessor_options": None}
        if model in self._preprocessor_options:
            values["preprocessor_options"] = {
                **(values.get("preprocessor_options") or {}),
                **self._preprocessor_options[model],
            }

    def _check(self) -> None:
        photos, maps = ({each.model for each in controls} for controls in (self._photos, self._maps))
        _require_control(photos, self._preprocessors, "--preprocess")
        _require_control(photos, self._preprocessor_options, "--preprocess-option")
        _require_control(photos | maps, self._options, "--control-option")
        for key in (key for options in self._options.values() for key in options):
            if key not in _OPTIONS:
                usage_error(
                    "--control-option", f"{key!r} must be one of {', '.join(_OPTIONS)}{did_you_mean(key, _OPTIONS)}"
                )
        if self._recipe_controls:
            again = " ".join(map(_missing_option, self._recipe_controls))
            usage_error("--from", f"the recipe has ControlNets, but not their pictures: add {again}, or --no-controls")


def _missing_option(old: parameters_pb2.ControlSpec) -> str:
    return f"--control {old.model}=PHOTO" if old.preprocessor else f"--control-map {old.model}=MAP"


def _require_control(models: Collection[str], given: Mapping[str, Any], option: str) -> None:
    """Refuses an option for a ControlNet that is not among `models`."""
    for model in given:
        if model not in models:
            usage_error(option, f"there is no --control {model}=…")


def _default_preprocessors(models: Iterable[str], server: Server) -> dict[str, str]:
    """The server's preprocessor for each of these ControlNets."""
    known = asyncio.run(_known_preprocessors(server))
    for model in sorted(models):
        if model not in known:
            raise ControlNetNotFound(unknown("ControlNet", model, known))
        if not known[model]:
            ways = f"choose one by --preprocess {model}=NAME, or give a map by --control-map {model}=MAP"
            usage_error("--control", f"the server has no default preprocessor for {model}: {ways}")
    return known


async def _known_preprocessors(server: Server) -> dict[str, str]:
    """The preprocessor of each of the server's ControlNets; empty if not known."""
    async with AsyncClient(**server.keywords()) as client:
        return {each.name: each.preprocessor for each in await client.control_nets()}
