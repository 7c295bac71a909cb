"""Validation of the second stage of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from darkroom.v1 import parameters_pb2
from darkroom_plugins.request import HiresFix

if TYPE_CHECKING:
    from collections.abc import Collection

    from darkroom_plugins.request import SchedulerChoice
    from darkroom_server.api.validation.violations import Findings
    from darkroom_server.models.catalog import Catalog
    from darkroom_server.models.model import Model

PATH = "parameters.hires_fix"
FACTOR, MAX_FACTOR, STRENGTH = 2.0, 8, 0.35


class HiresFixCheck:
    """Validates one HiresFix message; violations go to the findings."""

    def __init__(self, catalog: Catalog, findings: Findings) -> None:
        self.catalog = catalog
        self.findings = findings

    def checked(
        self,
        given: parameters_pb2.Parameters,
        rpc: str,
        model: Model | None,
        scheduler: SchedulerChoice | None,
        first: dict[str, Any],
    ) -> HiresFix | None:
        """None without one. `first` has the first stage's width, height and num_inference_steps."""
        if not given.HasField("hires_fix"):
            return None
        if rpc != "Generate":
            self.findings.invalid(PATH, f"is for Generate, not for {rpc}")
            return None
        task = self.catalog.plugins.tasks.get("img2img")
        if task is None:
            self.findings.unsupported(PATH, "the server's operator has blocked the plugin img2img")
        elif model is not None and (incompatibility := task.incompatibility(model.info)):
            self.findings.unsupported(PATH, f"with the model {model.name} it cannot be used: {incompatibility}")
        spec, limits = given.hires_fix, self.catalog.limits
        steps = self.catalog.step_range(scheduler.name) if scheduler else (1, limits.max_inference_steps)
        upscaler = self.findings.enum(f"{PATH}.upscaler", parameters_pb2.Upscaler, spec.upscaler)
        strength = self.findings.number(PATH, spec, "strength", STRENGTH, 0, 1)
        count = self.findings.number(PATH, spec, "num_inference_steps", first["num_inference_steps"], *steps)
        factor = self.findings.number(PATH, spec, "factor", FACTOR, 1, MAX_FACTOR)
        if model is None or not 1 <= factor <= MAX_FACTOR or min(first["width"], first["height"]) < 1:
            return None
        width, height = self._size(spec, model, (first["width"], first["height"]), factor)
        return HiresFix(
            width=width,
            height=height,
            upscaler=upscaler or "pixel-lanczos",
            strength=strength,
            num_inference_steps=count,
        )

    def _size(
        self, spec: parameters_pb2.HiresFix, model: Model, first: tuple[int, int], factor: float
    ) -> tuple[int, int]:
        """The picture's size, of which what is unset follows from the rest."""
        given = {field: getattr(spec, field) for field in ("width", "height") if spec.HasField(field)}
        if given and spec.HasField("factor"):
            self.findings.invalid(f"{PATH}.factor", "must be unset beside width or height")
        if "width" in given:
            factor = given["width"] / first[0]
        elif given:
            factor = given["height"] / first[1]
        multiple = model.info.size_factor
        width, height = (
            given.get(field, round(edge * factor / multiple) * multiple)
            for field, edge in zip(("width", "height"), first, strict=True)
        )
        self._check(width, height, given, model, first)
        off = min(abs(width - height * first[0] / first[1]), abs(height - width * first[1] / first[0]))
        if len(given) == 2 and off > multiple:
            problem = f"must have the proportions of the first stage, {first[0]} x {first[1]}, up to {multiple} pixels"
            self.findings.invalid(f"{PATH}.width", problem)
        return width, height

    def _check(self, width: int, height: int, given: Collection[str], model: Model, first: tuple[int, int]) -> None:
        """Violations are of the fields that are given, from which the others follow."""
        high, multiple, most = self.catalog.size_range(model)[1], model.info.size_factor, self.catalog.max_pixels(model)
        source = next(iter(given), "factor")
        for field, edge, low in (("width", width, first[0]), ("height", height, first[1])):
            path = f"{PATH}.{field if field in given else source}"
            if not low <= edge <= high:
                problem = f"makes a {field} of {edge} pixels; it must be from {low}, the first stage's, to {high}"
                self.findings.invalid(path, problem)
            elif edge % multiple:
                self.findings.invalid(path, f"must be a multiple of {multiple} pixels, not {edge}")
        if max(width, height) <= high and width * height > most:
            problem = f"width x height must be up to {most} pixels, not {width * height}"
            self.findings.invalid(f"{PATH}.{source}", problem)
