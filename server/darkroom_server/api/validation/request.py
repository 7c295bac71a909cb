"""Validation of GenerateRequest and EditRequest: a checked Request, or all violations at once."""

from __future__ import annotations

import secrets
import uuid
from typing import TYPE_CHECKING, Any

from darkroom.v1 import image_service_pb2, parameters_pb2
from darkroom_plugins.quoting import cut, quoted
from darkroom_plugins.request import OutputOptions, PreviewOptions, Request, SchedulerChoice
from darkroom_server.api.request_id import is_request_id
from darkroom_server.api.validation.conditions import ConditionsCheck
from darkroom_server.api.validation.edit import CheckedEdit, EditCheck, derived_task
from darkroom_server.api.validation.hires_fix import HiresFixCheck
from darkroom_server.api.validation.presets import filled, parameters_of
from darkroom_server.api.validation.violations import Findings
from darkroom_server.models.model import Model

if TYPE_CHECKING:
    from pydantic import BaseModel

    from darkroom_server.models.catalog import Catalog

MAX_EXTENSIONS = 100
MAX_SEED = 2**63 - 1
PARAMETERS = "parameters"


def check_generate(message: image_service_pb2.GenerateRequest, catalog: Catalog) -> Request:
    """The request with every default filled in.

    :raises RequestRefused: with all violations
    """
    return _checked(message, catalog, "Generate", "txt2img", None)


def check_edit(message: image_service_pb2.EditRequest, catalog: Catalog) -> Request:
    """The same for an edit; decodes its images, which is slow.

    :raises RequestRefused: with all violations
    """
    return _checked(message, catalog, "Edit", derived_task(message), EditCheck)


def _checked(message: Any, catalog: Catalog, rpc: str, task: str, edit: type[EditCheck] | None) -> Request:
    findings = Findings()
    request = _Check(catalog, findings).request(message, rpc, task, edit(catalog, findings) if edit else None)
    findings.refuse()
    assert request is not None
    return request


def check_request_id(request_id: str, findings: Findings) -> None:
    """Validates a client's request_id."""
    if request_id and not is_request_id(request_id):
        findings.invalid("request_id", "must be 1 to 128 letters, digits or any of -_.:")


class _Check:
    """Validates one message. Violations go to the findings, and placeholders replace invalid values."""

    def __init__(self, catalog: Catalog, findings: Findings) -> None:
        self.catalog = catalog
        self.findings = findings

    def request(self, message: Any, rpc: str, derived: str, edit_check: EditCheck | None) -> Request | None:
        check_request_id(message.request_id, self.findings)
        self.findings.enum("disconnect_policy", parameters_pb2.DisconnectPolicy, message.disconnect_policy)
        self.findings.enum("priority", parameters_pb2.Priority, message.priority)
        model = self._model(message.parameters.model)
        given = self._with_preset(message.parameters, model, sized=edit_check is None)
        edit = edit_check.checked(message, model) if edit_check else CheckedEdit()
        task = self._task(given.task, rpc, derived, model, edit)
        texts = self._texts(given, model)
        scheduler = self._scheduler(given, model)
        numbers = self._numbers(given, model, scheduler) | self._size(given, model, edit)
        own_loras = len(message.parameters.loras)
        conditions = ConditionsCheck(self.catalog, self.findings).checked(given, own_loras, model, numbers)
        hires_fix = HiresFixCheck(self.catalog, self.findings).checked(given, rpc, model, scheduler, numbers)
        extensions = self._extensions(given)
        preview = self._preview(message.preview, model)
        output = self._output(message.output)
        if model is None or scheduler is None:
            return None
        return Request(
            request_id=message.request_id or uuid.uuid4().hex,
            task=task,
            model=model.name,
            scheduler=scheduler,
            hires_fix=hires_fix,
            extensions=extensions,
            preview=preview,
            output=output,
            deterministic=message.deterministic,
            safety=model.settings.safety,
            **texts,
            **numbers,
            **conditions,
            **edit.fields,
        )

    def _model(self, name: str) -> Model | None:
        model = self.catalog.models.get(name or self.catalog.default_model)
        if model is None:
            self.findings.unknown("model", "parameters.model", name, self.catalog.models)
        return model

    def _with_preset(
        self, given: parameters_pb2.Parameters, model: Model | None, *, sized: bool
    ) -> parameters_pb2.Parameters:
        """The parameters, with those of the preset where they are unset."""
        if not given.preset or model is None:
            return given
        settings = model.settings.presets.get(given.preset)
        if settings is None:
            self.findings.unknown("preset", f"{PARAMETERS}.preset", given.preset, model.settings.presets)
            return given
        preset, names = parameters_of(settings), self.catalog.plugins.scheduler_names
        own, its = (each.scheduler.name or model.default_scheduler for each in (given, preset))
        same = not given.scheduler.name or names.get(own) == names.get(its)
        return filled(given, preset, sized=sized, same_scheduler=same)

    def _task(self, name: str, rpc: str, derived: str, model: Model | None, edit: CheckedEdit) -> str:
        task, path = self.catalog.plugins.tasks.get(name or derived), f"{PARAMETERS}.task"
        if task is None:
            self.findings.unknown("task", path, name or derived, self.catalog.plugins.tasks)
        elif rpc not in task.rpcs:
            self.findings.invalid(path, f"{quoted(name)} is for {' and '.join(task.rpcs)}")
        elif edit.choice is not None and not isinstance(edit.choice, task.edits):
            self.findings.invalid(path, f"{quoted(name)} does not do the edit that is set")
        elif model is not None and (incompatibility := task.incompatibility(model.info)):
            self.findings.unsupported(path, f"with the model {model.name} it cannot be used: {incompatibility}")
        return name or derived

    def _texts(self, given: parameters_pb2.Parameters, model: Model | None) -> dict[str, Any]:
        limit, fields = self.catalog.limits.max_prompt_characters, ("prompt", "negative_prompt")
        for field in (*fields, *(f"{each}_2" for each in fields)):
            text, path = getattr(given, field), f"{PARAMETERS}.{field}"
            if len(text) > limit:
                self.findings.invalid(path, f"must have up to {limit} characters, not {len(text)}")
            if text and field.endswith("_2") and model is not None and model.info.text_encoders < 2:
                self.findings.unsupported(path, "the model has one text encoder")
            self._embeddings(path, text, model)
        negative = given.negative_prompt if given.HasField("negative_prompt") else None
        if given.negative_prompt_2 and negative is None:
            self.findings.invalid(f"{PARAMETERS}.negative_prompt_2", "needs negative_prompt to be set")
        path = f"{PARAMETERS}.prompt_syntax"
        syntax = self.findings.enum(path, parameters_pb2.PromptSyntax, given.prompt_syntax)
        if syntax == "weighted" and "prompt-weighting" not in self.catalog.plugins.conditioners:
            self.findings.unsupported(path, "the server's operator has blocked the plugin prompt-weighting")
        return {
            "prompt": given.prompt,
            "negative_prompt": negative,
            "prompt_2": given.prompt_2,
            "negative_prompt_2": given.negative_prompt_2,
            "prompt_syntax": syntax or "plain",
        }

    def _embeddings(self, path: str, text: str, model: Model | None) -> None:
        for name, asset in self.catalog.assets.entries["embedding"].items():
            if model is not None and f"<{name}>" in text and (problem := asset.refusal(model.name)):
                self.findings.unsupported(path, f"has the embedding <{name}>: {problem}")

    def _scheduler(self, given: parameters_pb2.Parameters, model: Model | None) -> SchedulerChoice | None:
        spec, plugins, path = given.scheduler, self.catalog.plugins, "parameters.scheduler"
        sigmas = self.findings.enum(f"{path}.sigma_schedule", parameters_pb2.SigmaSchedule, spec.sigma_schedule)
        spacing = self.findings.enum(f"{path}.timestep_spacing", parameters_pb2.TimestepSpacing, spec.timestep_spacing)
        wanted = spec.name or (model.default_scheduler if model else "")
        name = plugins.scheduler_names.get(wanted)
        if name is None:
            if spec.name:
                self.findings.unknown("scheduler", f"{path}.name", spec.name, plugins.schedulers)
            self.findings.parsed(f"{path}.options", spec.options, None)
            return None
        entry = plugins.schedulers[name]
        self._offered(f"{path}.sigma_schedule", sigmas, entry.sigma_schedules, name)
        self._offered(f"{path}.timestep_spacing", spacing, entry.timestep_spacings, name)
        if not entry.takes_eta and given.eta != 0:
            self.findings.invalid("parameters.eta", f"must be 0 for the scheduler {name}, which takes none")
        options: BaseModel | None = None
        if spec.options.fields and entry.Parameters:
            options = self.findings.parsed(f"{path}.options", spec.options, entry.Parameters)
        elif spec.options.fields:
            self.findings.invalid(f"{path}.options", f"the scheduler {name} takes none")
        chosen: Any = {"sigma_schedule": sigmas, "timestep_spacing": spacing}
        return SchedulerChoice(name=name, options=options, **chosen)

    def _offered(self, path: str, value: str | None, offered: tuple[str, ...], scheduler: str) -> None:
        if value is not None and value not in offered:
            kinds = ", ".join(offered) or "none"
            self.findings.invalid(path, f"{value!r} is not offered by the scheduler {scheduler}; it has: {kinds}")

    def _numbers(
        self, given: parameters_pb2.Parameters, model: Model | None, scheduler: SchedulerChoice | None
    ) -> dict[str, Any]:
        limits, settings = self.catalog.limits, model and model.settings
        steps = self.catalog.step_range(scheduler.name) if scheduler else (1, limits.max_inference_steps)
        default_steps = settings.default_num_inference_steps if settings else 1
        default_guidance = settings.default_guidance_scale if settings else 1.0
        numbers = {
            "num_images": self.findings.number(PARAMETERS, given, "num_images", 1, 1, limits.max_images),
            "num_inference_steps": self.findings.number(
                PARAMETERS, given, "num_inference_steps", min(default_steps, steps[1]), *steps
            ),
            "guidance_scale": self.findings.number(PARAMETERS, given, "guidance_scale", default_guidance, 0, 100),
            "guidance_rescale": self.findings.number(PARAMETERS, given, "guidance_rescale", 0.0, 0, 1),
            "guidance_start": self.findings.number(PARAMETERS, given, "guidance_start", 0.0, 0, 1),
            "guidance_end": self.findings.number(PARAMETERS, given, "guidance_end", 1.0, 0, 1),
            "cache_interval": self.findings.number(
                PARAMETERS, given, "cache_interval", 1, 1, model.max_cache_interval if model else 100, "evaluations"
            ),
            "eta": self.findings.number(PARAMETERS, given, "eta", 0.0, 0, 1),
            "clip_skip": self.findings.number(
                PARAMETERS, given, "clip_skip", 0, 0, model.info.max_clip_skip if model else 100
            ),
        }
        if 1 >= numbers["guidance_start"] >= numbers["guidance_end"] >= 0:
            problem = f"must be below guidance_end, {numbers['guidance_end']:g}; not {numbers['guidance_start']:g}"
            self.findings.invalid(f"{PARAMETERS}.guidance_start", problem)
        numbers["seed"] = self._seed(given, numbers["num_images"])
        return numbers

    def _seed(self, given: parameters_pb2.Parameters, num_images: int) -> int:
        if not given.HasField("seed"):
            return secrets.randbelow(2**32)
        last = MAX_SEED - max(1, num_images) + 1
        if not 0 <= given.seed <= last:
            each = "" if num_images <= 1 else f" for {num_images} images, of which each has the next seed"
            self.findings.invalid("parameters.seed", f"must be from 0 to {last}{each}, not {given.seed}")
        return given.seed

    def _size(self, given: parameters_pb2.Parameters, model: Model | None, edit: CheckedEdit) -> dict[str, int]:
        limits = self.catalog.limits
        low, high = self.catalog.size_range(model) if model else (1, limits.max_edge)
        default = edit.size or ((model.info.default_width, model.info.default_height) if model else (1, 1))
        width = self.findings.number(PARAMETERS, given, "width", default[0], low, high, "pixels")
        height = self.findings.number(PARAMETERS, given, "height", default[1], low, high, "pixels")
        for field, size in (("width", width), ("height", height)):
            if edit.size is None and not given.HasField(field):  # the model's own may be too large here
                self.findings.check_range(f"{PARAMETERS}.{field}", size, low, high, "pixels")
            if model and size % model.info.size_factor:
                problem = f"must be a multiple of {model.info.size_factor} pixels, not {size}"
                self.findings.invalid(f"{PARAMETERS}.{field}", problem)
        most = self.catalog.max_pixels(model) if model else limits.max_pixels
        sized = edit.size is None or given.HasField("width") or given.HasField("height")
        if sized and max(width, height) <= high and width * height > most:
            problem = f"width x height must be up to {most} pixels, not {width * height}"
            self.findings.invalid(f"{PARAMETERS}.width", problem)
        return {"width": width, "height": height}

    def _extensions(self, given: parameters_pb2.Parameters) -> dict[str, BaseModel]:
        checked: dict[str, BaseModel] = {}
        classes = self.catalog.plugins.extensions
        if len(given.extensions) > MAX_EXTENSIONS:
            self.findings.invalid("parameters.extensions", f"must be up to {MAX_EXTENSIONS}")
            return checked
        for name, struct in sorted(given.extensions.items()):
            path = f"parameters.extensions[{cut(name, 64)}]"
            if name not in classes:
                known = ", ".join(sorted(classes)) or "none"
                self.findings.invalid(path, f"no plugin of this name takes parameters; those that do: {known}")
            elif (parameters := self.findings.parsed(path, struct, classes[name])) is not None:
                checked[name] = parameters
        return checked

    def _preview(self, given: parameters_pb2.PreviewOptions, model: Model | None) -> PreviewOptions:
        mode = self.findings.enum("preview.mode", parameters_pb2.PreviewMode, given.mode)
        if model is not None and mode is not None and mode not in model.preview_modes:
            modes = ", ".join(model.preview_modes)
            self.findings.unsupported("preview.mode", f"the model {model.name} has no previews {mode}; it has: {modes}")
        every = given.every_n_steps if given.HasField("every_n_steps") else 1
        self.findings.check_range("preview.every_n_steps", every, 1, 2**31 - 1, "steps")
        self.findings.check_range("preview.min_interval_seconds", given.min_interval_seconds, 0, 86400, "seconds")
        max_edge = given.max_edge if given.HasField("max_edge") else min(512, self.catalog.limits.max_edge)
        self.findings.check_range("preview.max_edge", max_edge, 64, self.catalog.limits.max_edge, "pixels")
        chosen: Any = {
            "mode": mode or (model.default_preview_mode if model else "off"),
            "format": self.findings.enum("preview.format", parameters_pb2.ImageFormat, given.format) or "jpeg",
        }
        interval = given.min_interval_seconds
        return PreviewOptions(every_n_steps=every, min_interval_seconds=interval, max_edge=max_edge, **chosen)

    def _output(self, given: parameters_pb2.OutputOptions) -> OutputOptions:
        chosen: Any = self.findings.enum("output.format", parameters_pb2.ImageFormat, given.format) or "png"
        quality = given.quality if given.HasField("quality") else None
        if quality is not None and given.format in (0, parameters_pb2.IMAGE_FORMAT_PNG):
            self.findings.invalid("output.quality", "must be unset for PNG, which is lossless")
        elif quality is not None:
            self.findings.check_range("output.quality", quality, 1, 100)
        elif chosen != "png":
            quality = 95
        embed = given.embed_metadata if given.HasField("embed_metadata") else True
        return OutputOptions(format=chosen, quality=quality, embed_metadata=embed)
