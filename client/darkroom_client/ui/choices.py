"""What depends on the server's catalog and on other fields: choices, ranges, and which fields are shown."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from darkroom_client._aio import AsyncClient
from darkroom_client.errors import DarkroomError
from darkroom_client.ui import view
from darkroom_client.ui.form import Form
from darkroom_client.ui.offer import Offer
from darkroom_client.ui.recipes import fields_of, preset_fields
from darkroom_client.ui.settings import FIELDS, INPAINT, MAX_LORAS, OUTPAINT, SAMPLES, SLOTS, STRENGTHS, TEXT

Updates = dict[Any, Any]  # by component
NOTHING: Updates = gr.skip()
_STEPS, _GUIDANCE, _WEIGHT, _SCALE = 150, 20, 2, 2  # where sliders end; recipes may go on


class Choices:
    """The handlers that change the form."""

    def __init__(self, client: AsyncClient, form: Form) -> None:
        self._client, self._form = client, form
        self.offer: Offer | None = None  # as last seen

    async def load(self) -> Updates:
        """Fills the choices from what the server offers.

        :raises DarkroomError: if it cannot be asked.
        """
        self.offer = offer = await Offer.of(self._client)
        model, fields = offer.model(None), self._form.fields
        modes = [("the model's own", ""), *((mode, mode) for mode in model.preview_modes)]
        preprocessors = gr.update(choices=offer.preprocessor_choices())
        return {
            fields["preview"]: gr.update(choices=modes),
            fields["num_images"]: gr.update(maximum=offer.info.limits.max_images),
            **{fields[f"control_preprocessor_{slot}"]: preprocessors for slot in range(SLOTS)},
            **self._fit(model.name, {}),
        }

    def choose_model(self, name: str) -> Updates:
        """Fits ranges, defaults and choices to a model."""
        return self._fit(name, {}) if self.offer is not None else NOTHING

    def choose_preset(self, model: str, name: str) -> Updates:
        """Shows what a preset sets; the model's defaults for the rest."""
        preset = self.offer.preset(model, name) if self.offer is not None else None
        values = preset_fields(preset.parameters) if preset is not None else {}
        negative = self._form.fields["negative_prompt"]
        shown = {negative: gr.update(value=values["negative_prompt"])} if "negative_prompt" in values else {}
        return {**self._fit(model, {**values, "preset": name}), **shown} if self.offer is not None else NOTHING

    def _fit(self, name: str | None, values: Mapping[str, Any]) -> Updates:
        """The updates of fields whose choices or ranges depend on the model. `values`: in place of its defaults."""
        assert self.offer is not None
        offer, model, fields = self.offer, self.offer.model(name), self._form.fields
        scheduler = values.get("scheduler") or model.default_scheduler
        defaults: dict[str, Any] = {
            "num_inference_steps": model.default_num_inference_steps,
            "guidance_scale": model.default_guidance_scale,
            "width": model.default_width,
            "height": model.default_height,
            "sigma_schedule": "",
            "preset": "",
            "loras": [],
        }
        chosen = defaults | {name: value for name, value in values.items() if value is not None and name in defaults}
        edge: dict[str, Any] = {"minimum": model.min_size, "maximum": model.max_size, "step": model.size_factor}
        most, steps = offer.info.limits.max_inference_steps, chosen["num_inference_steps"]
        presets = offer.preset_choices(model.name)
        loras, controls = offer.lora_choices(model.name), offer.control_choices(model.name)
        return {
            fields["model"]: gr.update(choices=offer.model_choices(), value=model.name),
            fields["preset"]: gr.update(choices=presets, value=chosen["preset"], visible=len(presets) > 1),
            fields["scheduler"]: gr.update(choices=offer.scheduler_choices(), value=scheduler),
            fields["num_inference_steps"]: gr.update(value=steps, maximum=min(most, max(steps, _STEPS))),
            fields["guidance_scale"]: _slider(chosen["guidance_scale"], _GUIDANCE),
            fields["width"]: gr.update(value=chosen["width"], **edge),
            fields["height"]: gr.update(value=chosen["height"], **edge),
            fields["sigma_schedule"]: gr.update(choices=offer.sigma_choices(scheduler), value=chosen["sigma_schedule"]),
            fields["loras"]: gr.update(choices=loras, value=chosen["loras"]),
            self._form.groups["loras"]: gr.update(visible=bool(loras)),
            self._form.groups["controls"]: gr.update(visible=len(controls) > 1),
            **{fields[f"control_model_{slot}"]: gr.update(choices=controls) for slot in range(SLOTS)},
        }

    def choose_scheduler(self, name: str) -> Updates:
        """Offers the noise levels that a scheduler knows."""
        choices = self.offer.sigma_choices(name) if self.offer else [("as configured", "")]
        return {self._form.fields["sigma_schedule"]: gr.update(choices=choices, value="")}

    def choose_mode(self, mode: str) -> Updates:
        """Shows the fields of a kind of work."""
        groups = self._form.groups
        return {
            groups["edit"]: gr.update(visible=mode != TEXT),
            groups["brush"]: gr.update(visible=mode == INPAINT),
            groups["inpaint"]: gr.update(visible=mode == INPAINT),
            groups["outpaint"]: gr.update(visible=mode == OUTPAINT),
            groups["size"]: gr.update(visible=mode == TEXT),
            self._form.fields["hires_fix"]: gr.update(visible=mode == TEXT),
            self._form.fields["strength"]: gr.update(visible=mode in STRENGTHS, value=STRENGTHS.get(mode, 0.8)),
        }

    def choose_template(self, template: str) -> Updates:
        """Asks how many samples, where some are wanted."""
        return {self._form.fields["samples"]: gr.update(visible=template == SAMPLES)}

    def choose_closely(self, closely: bool) -> Updates:
        """Asks for the margin around the region that is worked on."""
        return {self._form.fields["padding_crop"]: gr.update(visible=closely)}

    def choose_loras(self, names: list[str]) -> Updates:
        """Shows a slider for each LoRA."""
        labels = [*names, *["Weight"] * MAX_LORAS]
        return {
            self._form.fields[f"weight_{index}"]: gr.update(visible=index < len(names), label=labels[index])
            for index in range(MAX_LORAS)
        }

    def choose_control(self, slot: int, name: str) -> Updates:
        """Shows the fields of a ControlNet, with its own preprocessor, and the next slot."""
        own = self.offer.default_preprocessor(name) if self.offer else ""
        updates = {
            self._form.groups[f"control_more_{slot}"]: gr.update(visible=bool(name)),
            self._form.fields[f"control_preprocessor_{slot}"]: gr.update(value=own),
        }
        if slot + 1 < SLOTS and name:
            updates[self._form.groups[f"control_{slot + 1}"]] = gr.update(visible=True)
        return updates

    async def show_map(self, slot: int, picture: Any, preprocessor: str) -> Updates:
        """Makes the map of a ControlNet's picture."""
        shown, problem = self._form.maps[slot], self._form.groups[f"control_image_{slot}_problem"]
        quiet = {problem: gr.update(visible=False)}
        if picture is None or not preprocessor:
            return {shown: picture, **quiet}
        try:
            maps = await self._client.preprocess(picture, preprocessor, timeout=60).control_images()
        except DarkroomError as error:
            return {shown: None, problem: gr.update(visible=True, value=view.problem(error.message))}
        return {shown: maps[0].pil, **quiet}

    def fill(self, recipe: Mapping[str, Any]) -> Updates:
        """Sets the fields to a recipe."""
        if self.offer is None:
            return NOTHING
        values, fields = fields_of(recipe), self._form.fields
        updates = {
            **{fields[name]: gr.update(value=value) for name, value in values.items()},
            **self._fit(values.get("model"), values),
        }
        for index in range(len(values["loras"])):
            updates[fields[f"weight_{index}"]] = _slider(values[f"weight_{index}"], _WEIGHT, -_WEIGHT)
        for slot in range(SLOTS):
            updates[fields[f"control_scale_{slot}"]] = _slider(values[f"control_scale_{slot}"], _SCALE)
        shown = (
            self.choose_loras(values["loras"]),
            self.choose_mode(values["mode"]),
            self.choose_template(values["template"]),
            self.choose_closely(values.get("closely", False)),
            self._show_controls(values),
        )
        for more in shown:
            for component, update in more.items():
                updates[component] = {**update, **updates.get(component, {})}
        return updates

    def _show_controls(self, values: Mapping[str, Any]) -> Updates:
        groups, used = self._form.groups, [bool(values[f"control_model_{slot}"]) for slot in range(SLOTS)]
        return {
            **{groups[f"control_more_{slot}"]: gr.update(visible=used[slot]) for slot in range(SLOTS)},
            **{groups[f"control_{slot}"]: gr.update(visible=used[slot - 1]) for slot in range(1, SLOTS)},
        }

    def mark(self, troubles: Mapping[str, str]) -> Updates:
        """Says what is wrong beside each field; nothing beside the others."""
        return {key: update for name in FIELDS for key, update in self._beside(name, troubles.get(name, "")).items()}

    def _beside(self, name: str, text: str) -> Updates:
        extra = self._form.groups.get(f"{name}_problem")
        if extra is not None:
            return {extra: gr.update(visible=bool(text), value=view.problem(text))}
        classes = ["invalid"] if text else []
        return {self._form.fields[name]: gr.update(info=text or self._form.infos[name], elem_classes=classes)}


def _slider(value: float, end: float, start: float = 0) -> Any:
    """The update to a value, which may lie beyond the slider's ends."""
    return gr.update(value=value, minimum=min(start, value), maximum=max(end, value))
