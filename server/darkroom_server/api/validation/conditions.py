"""Validation of conditions other than prompts: LoRAs, controls, size conditioning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from darkroom_plugins.quoting import quoted
from darkroom_plugins.request import ControlChoice, LoraChoice, SizeConditioning
from darkroom_server.api.validation.edit import decoded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.struct_pb2 import Struct
    from pydantic import BaseModel

    from darkroom.v1 import parameters_pb2
    from darkroom_plugins.contract import AssetKind, Preprocessor
    from darkroom_server.api.validation.violations import Findings
    from darkroom_server.models.catalog import Catalog
    from darkroom_server.models.model import Model
    from darkroom_server.pictures.uploads import Kind

MAX_LORAS, MAX_CONTROLS = 32, 8
MAX_SIZE = 32_768  # pixels; within the range of half precision


def preprocessor_options(
    path: str, name: str, options: Struct, entries: Mapping[str, Preprocessor], findings: Findings
) -> BaseModel | None:
    """The options of a preprocessor, with its defaults; None if it takes none. `path` is the prefix of the field paths:
    empty, or with a trailing dot."""
    entry, options_path = entries.get(name), f"{path}preprocessor_options"
    if entry is None:
        if name:
            findings.unknown("preprocessor", f"{path}preprocessor", name, entries)
        elif options.fields:
            findings.invalid(options_path, "must be unset without a preprocessor")
        return None
    if entry.Parameters is None and options.fields:
        findings.invalid(options_path, f"the preprocessor {name} takes none")
    return findings.parsed(options_path, options, entry.Parameters)


class ConditionsCheck:
    """Validates one Parameters message; violations go to the findings."""

    def __init__(self, catalog: Catalog, findings: Findings) -> None:
        self.catalog = catalog
        self.findings = findings

    def checked(
        self, given: parameters_pb2.Parameters, own_loras: int, model: Model | None, size: dict[str, Any]
    ) -> dict[str, Any]:
        """The fields of a Request. `own_loras`: how many are the request's own, and not its preset's; `size` has the
        picture's width and height."""
        for field, limit in (("loras", MAX_LORAS), ("controls", MAX_CONTROLS)):
            if len(getattr(given, field)) > limit:
                self.findings.invalid(f"parameters.{field}", f"must be up to {limit}")
                return {}
        return {
            "loras": self._loras(given, own_loras, model),
            "controls": self._controls(given, model),
            "size_conditioning": self._sizes(given, model, size),
        }

    def _loras(self, given: parameters_pb2.Parameters, own: int, model: Model | None) -> tuple[LoraChoice, ...]:
        names = [spec.name for spec in given.loras]
        for index, spec in enumerate(given.loras):
            path = f"parameters.loras[{index}].name" if index < own else "parameters.preset"
            self._listed("lora", path, spec.name, model)
            if spec.name in names[:index]:
                self.findings.invalid(path, f"{quoted(spec.name)} is named twice")
        return tuple(
            LoraChoice(
                name=spec.name,
                weight=self.findings.number(f"parameters.loras[{index}]", spec, "weight", 1.0, -10, 10),
            )
            for index, spec in enumerate(given.loras)
        )

    def _listed(self, kind: AssetKind, path: str, name: str, model: Model | None) -> None:
        asset = self.catalog.assets.entries[kind].get(name)
        if not name:
            self.findings.invalid(path, "must be set")
        elif asset is None:
            self.findings.unknown(kind, path, name, self.catalog.assets.entries[kind])
        elif model is not None and (problem := asset.refusal(model.name)):
            self.findings.unsupported(path, problem)

    def _controls(self, given: parameters_pb2.Parameters, model: Model | None) -> tuple[ControlChoice, ...]:
        found = (self._control(f"parameters.controls[{i}]", spec, model) for i, spec in enumerate(given.controls))
        return tuple(control for control in found if control is not None)

    def _control(self, path: str, spec: parameters_pb2.ControlSpec, model: Model | None) -> ControlChoice | None:
        self._listed("controlnet", f"{path}.model", spec.model, model)
        number = self.findings.number
        scale = number(path, spec, "scale", 1.0, 0, 10)
        start, end = number(path, spec, "start", 0.0, 0, 1), number(path, spec, "end", 1.0, 0, 1)
        if start >= end:
            self.findings.invalid(f"{path}.start", f"must be less than end, which is {end}")
        entries = self.catalog.plugins.preprocessors
        options = preprocessor_options(f"{path}.", spec.preprocessor, spec.preprocessor_options, entries, self.findings)
        kind: Kind = "image" if spec.preprocessor else "control_map"
        image = decoded(f"{path}.image", spec.image, kind, self.catalog.uploads, self.findings)
        if image is None:
            return None
        return ControlChoice(
            model=spec.model,
            image=image,
            preprocessor=spec.preprocessor or None,
            options=options,
            scale=scale,
            start=start,
            end=end,
            guess_mode=spec.guess_mode,
            echo_map=spec.echo_map,
        )

    def _sizes(
        self, given: parameters_pb2.Parameters, model: Model | None, size: dict[str, Any]
    ) -> SizeConditioning | None:
        if not given.HasField("size_conditioning"):
            return None
        path, spec = "parameters.size_conditioning", given.size_conditioning
        if model is not None and not model.info.takes_sizes:
            self.findings.unsupported(path, "the model is told nothing about sizes")

        def number(field: str, default: int, low: int = 1) -> int:
            return self.findings.number(path, spec, field, default, low, MAX_SIZE, "pixels")  # type: ignore[no-any-return]

        width, height = size["width"], size["height"]
        return SizeConditioning(
            original_size=(number("original_height", height), number("original_width", width)),
            crop=(number("crop_top", 0, 0), number("crop_left", 0, 0)),
            target_size=(number("target_height", height), number("target_width", width)),
        )
