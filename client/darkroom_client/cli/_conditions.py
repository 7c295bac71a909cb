"""The LoRAs and ControlNets of a request, out of their options."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from darkroom.v1 import parameters_pb2
from darkroom_client._aio import AsyncClient
from darkroom_client.cli._options import Conditions, Server
from darkroom_client.cli._values import assigned, by_name, picture, scaled, wrong
from darkroom_client.errors import ControlNetNotFound
from darkroom_client.options import ControlSpec, JobOptions, LoraSpec
from darkroom_client.recipes import Recipe

_OPTIONS = ("start", "end", "guess_mode")  # of --control-option
_KEPT = ("preprocessor", "preprocessor_options", "scale", *_OPTIONS)  # of a recipe's control


def conditions(given: Conditions, server: Server, recipe: Recipe | None, *, echo_maps: bool = False) -> JobOptions:
    """The keywords `loras` and `controls`; without LoRAs, those of a recipe stay.

    A recipe has no pictures: each of its controls needs one that is given, and keeps what is not said of it.

    :raises typer.BadParameter: when an option is not what it should be.
    :raises DarkroomError: when the server has no such ControlNet, or cannot be asked.
    """
    old = list(recipe.parameters.controls) if recipe is not None else []
    if given.control or given.control_map or old:
        return {"loras": _loras(given.lora), "controls": _Controls(given, old).specs(server, echo_maps)}
    for option in ("preprocess", "preprocess_option", "control_option"):
        if getattr(given, option):
            wrong(f"--{option.replace('_', '-')}", "needs --control or --control-map")
    if echo_maps:
        wrong("--echo-maps", "needs --control or --control-map")
    return {"loras": _loras(given.lora)}


def _loras(texts: Sequence[str] | None) -> list[LoraSpec] | None:
    try:
        return [LoraSpec.parse(text) for text in texts or ()] or None
    except ValueError as error:
        wrong("--lora", str(error))


@dataclass(slots=True)
class _Control:
    """A control as it comes together; `values` are fields of ControlSpec."""

    model: str
    image: bytes
    is_photo: bool
    values: dict[str, Any]


class _Controls:
    """Reads the controls; what several options say of a ControlNet comes together by its name."""

    def __init__(self, given: Conditions, old: list[parameters_pb2.ControlSpec]) -> None:
        self._old = old
        self._chosen = dict(assigned(text, "--preprocess", "MODEL=NAME") for text in given.preprocess or ())
        self._details = by_name(given.preprocess_option, "--preprocess-option", "MODEL.KEY=VALUE")
        self._options = by_name(given.control_option, "--control-option", "MODEL.KEY=VALUE")
        self._photos = [self._control(text, "--control", "PHOTO") for text in given.control or ()]
        self._maps = [self._control(text, "--control-map", "MAP") for text in given.control_map or ()]
        self._check()

    def specs(self, server: Server, echo_maps: bool) -> list[ControlSpec]:
        """Those with a photo first, each in the order given."""
        unsaid = {each.model for each in self._photos if not each.values.get("preprocessor")}
        usual = _usual_preprocessors(unsaid, server) if unsaid else {}
        return [
            ControlSpec(
                **{"model": each.model, "image": each.image, "preprocessor": usual.get(each.model), **each.values},
                echo_map=echo_maps or None,
            )
            for each in [*self._photos, *self._maps]
        ]

    def _control(self, text: str, option: str, what: str) -> _Control:
        model, rest = assigned(text, option, f"MODEL={what} or MODEL={what}:SCALE")
        path, scale = scaled(rest)
        values = self._taken_from_recipe(model) | self._options.get(model, {})
        if scale is not None:
            values["scale"] = scale
        if option == "--control":
            self._set_preprocessor(model, values)
        else:
            values |= {"preprocessor": None, "preprocessor_options": None}
        return _Control(model, picture(path, option), option == "--control", values)

    def _taken_from_recipe(self, model: str) -> dict[str, Any]:
        old = next((each for each in self._old if each.model == model), None)
        if old is None:
            return {}
        self._old.remove(old)
        fields = json_format.MessageToDict(old, preserving_proto_field_name=True)
        return {name: fields[name] for name in _KEPT if name in fields}

    def _set_preprocessor(self, model: str, values: dict[str, Any]) -> None:
        if model in self._chosen and self._chosen[model] != values.get("preprocessor"):
            values |= {"preprocessor": self._chosen[model], "preprocessor_options": None}
        if model in self._details:
            values["preprocessor_options"] = {**(values.get("preprocessor_options") or {}), **self._details[model]}

    def _check(self) -> None:
        photos, maps = ({each.model for each in controls} for controls in (self._photos, self._maps))
        _only_of(photos, self._chosen, "--preprocess")
        _only_of(photos, self._details, "--preprocess-option")
        _only_of(photos | maps, self._options, "--control-option")
        for key in (key for options in self._options.values() for key in options):
            if key not in _OPTIONS:
                wrong("--control-option", f"there is no {key!r}, but {', '.join(_OPTIONS)}")
        if self._old:
            again = " ".join(map(_needed, self._old))
            wrong("--from", f"the recipe has ControlNets, but not their pictures: add {again}, or --no-controls")


def _needed(old: parameters_pb2.ControlSpec) -> str:
    return f"--control {old.model}=PHOTO" if old.preprocessor else f"--control-map {old.model}=MAP"


def _only_of(models: Collection[str], given: Mapping[str, Any], option: str) -> None:
    for model in given:
        if model not in models:
            wrong(option, f"there is no --control {model}=…")


def _usual_preprocessors(models: Iterable[str], server: Server) -> dict[str, str]:
    """What makes the maps of these ControlNets, as the server says."""
    known = asyncio.run(_known_preprocessors(server))
    for model in sorted(models):
        if model not in known:
            raise ControlNetNotFound(f"the server has no ControlNet {model}; it has {', '.join(known) or 'none'}")
        if not known[model]:
            ways = f"name it by --preprocess {model}=NAME, or give a map by --control-map {model}=MAP"
            wrong("--control", f"the server does not say what makes the maps of {model}: {ways}")
    return known


async def _known_preprocessors(server: Server) -> dict[str, str]:
    """The preprocessor of each ControlNet of the server; empty where it knows none."""
    async with AsyncClient(**server.keywords()) as client:
        return {each.name: each.preprocessor for each in await client.control_nets()}
