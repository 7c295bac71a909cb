"""The settings: a column of components, one for each of `settings.FIELDS`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from darkroom_client.ui.settings import (
    COMBINATIONS,
    FIELDS,
    INPAINT,
    MAX_LORAS,
    MAX_PROMPTS,
    OUTPAINT,
    PICTURE,
    SAMPLES,
    SIDES,
    SLOTS,
    TEXT,
)

_HERE = Path(__file__).parent
_TEMPLATES = [("As it is", ""), ("All of them", COMBINATIONS), ("Some by chance", SAMPLES)]
_MODES = [("New", TEXT), ("Remake", PICTURE), ("Inpaint", INPAINT), ("Outpaint", OUTPAINT)]


@dataclass(slots=True)
class Form:
    """The components by their fields, and the groups that modes show and hide."""

    fields: dict[str, Any] = field(default_factory=dict)
    infos: dict[str, str] = field(default_factory=dict)  # what stands beside a field while nothing is wrong
    groups: dict[str, Any] = field(default_factory=dict)
    maps: list[Any] = field(default_factory=list)  # of each ControlNet slot: its live map
    buttons: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Any]:
        """The components in the order of `settings.FIELDS`."""
        return [self.fields[name] for name in FIELDS]

    def add(self, name: str, component: Any) -> Any:
        """Names a component."""
        self.fields[name] = component
        self.infos[name] = getattr(component, "info", None) or ""
        return component


def lay_out() -> Form:
    """Lays out all settings in the current context."""
    form = Form()
    with gr.Column(elem_id="ask", min_width=0):
        _prompt(form)
        with gr.Row(elem_id="buttons"):
            form.buttons["generate"] = gr.Button("Generate", variant="primary", elem_id="generate", min_width=0)
            form.buttons["stop"] = gr.Button("Stop", interactive=False, elem_id="stop", min_width=0)
    _edit(form)
    _sampling(form)
    _loras(form)
    _controls(form)
    _templates(form)
    _further(form)
    missing = set(FIELDS) - form.fields.keys()
    assert not missing, missing
    return form


def _prompt(form: Form) -> None:
    modes = gr.Radio(_MODES, value=TEXT, label="Kind of work", show_label=False, container=False, elem_id="mode")
    form.add("mode", modes)
    form.add(
        "prompt",
        gr.Textbox(label="Prompt", lines=2, max_lines=8, placeholder="What the picture shows", elem_id="prompt"),
    )
    negative = gr.Textbox(label="Negative prompt", lines=1, max_lines=4, elem_id="negative_prompt")
    form.add("negative_prompt", negative)


def _edit(form: Form) -> None:
    with gr.Group(visible=False) as form.groups["edit"]:
        form.add("picture", _upload("picture", height=160))
        form.groups["brush"] = gr.HTML(
            (_HERE / "brush.html").read_text(),
            visible=False,
            elem_id="brush",
            apply_default_css=False,
            js_on_load="darkroomBrush.attach(element)",
        )
        form.groups["picture_problem"] = gr.HTML(visible=False, elem_classes="problem", elem_id="picture_problem")
        # Never seen: a data URL, which the brush writes when a job is started.
        form.add("mask", gr.Textbox(elem_id="mask"))
        strength = gr.Slider(0, 1, 0.8, step=0.01, label="Strength", info="0 leaves the picture, 1 nothing of it")
        form.add("strength", strength)
    with gr.Group(visible=False) as form.groups["inpaint"]:
        form.add("keep_unmasked", gr.Checkbox(True, label="Keep every pixel outside the mask"))
        form.add("mask_blur", gr.Slider(0, 64, 4, step=1, label="Soft edge", info="Pixels"))
        form.add("closely", gr.Checkbox(False, label="Work on the masked region alone, at full resolution"))
        margin = gr.Slider(0, 256, 32, step=1, label="Margin around the region", info="Pixels", visible=False)
        form.add("padding_crop", margin)
    with gr.Group(visible=False, elem_classes="four") as form.groups["outpaint"], gr.Row():
        for side in SIDES:
            number = gr.Number(0, label=f"{side.capitalize()}, px", precision=0, min_width=70, step=8, elem_id=side)
            form.add(side, number)


def _sampling(form: Form) -> None:
    with gr.Group():
        form.add("model", gr.Dropdown([], label="Model", elem_id="model"))
        form.add("preset", gr.Dropdown([("none", "")], value="", label="Preset", visible=False, elem_id="preset"))
        form.add("scheduler", gr.Dropdown([], label="Scheduler", elem_id="scheduler"))
        form.add("num_inference_steps", gr.Slider(1, 150, 25, step=1, label="Steps", elem_id="steps"))
        form.add("guidance_scale", gr.Slider(0, 20, 7.5, step=0.1, label="Guidance", elem_id="guidance"))
    with gr.Group() as form.groups["size"], gr.Row():
        form.add("width", gr.Slider(8, 1024, 512, step=8, label="Width", min_width=120, elem_id="width"))
        form.add("height", gr.Slider(8, 1024, 512, step=8, label="Height", min_width=120, elem_id="height"))
    with gr.Group(), gr.Row():
        form.add("seed", gr.Textbox("", label="Seed", max_lines=1, min_width=140, elem_id="seed"))
        form.add("random_seed", gr.Checkbox(True, label="Random each time", min_width=120, elem_id="random_seed"))


def _loras(form: Form) -> None:
    with gr.Accordion("LoRAs", open=False, visible=False) as form.groups["loras"]:
        loras = gr.Dropdown([], multiselect=True, max_choices=MAX_LORAS, label="LoRAs", elem_id="loras")
        form.add("loras", loras)
        for index in range(MAX_LORAS):
            slider = gr.Slider(-2, 2, 1.0, step=0.05, visible=False, label="Weight", elem_id=f"weight_{index}")
            form.add(f"weight_{index}", slider)


def _controls(form: Form) -> None:
    with gr.Accordion("ControlNets", open=False, visible=False) as form.groups["controls"]:
        for slot in range(SLOTS):
            with gr.Group(visible=slot == 0) as form.groups[f"control_{slot}"]:
                _control(form, slot)


def _upload(elem_id: str, height: int, min_width: int = 160) -> Any:
    """A field for a picture."""
    return gr.Image(
        label="Picture",
        type="pil",
        format="png",
        sources=["upload", "clipboard"],
        buttons=[],
        elem_id=elem_id,
        height=height,
        min_width=min_width,
    )


def _control(form: Form, slot: int) -> None:
    def add(name: str, component: Any) -> None:
        form.add(f"control_{name}_{slot}", component)

    add("model", gr.Dropdown([("none", "")], value="", label="ControlNet", elem_id=f"control_model_{slot}"))
    with gr.Column(visible=False) as form.groups[f"control_more_{slot}"]:
        add("preprocessor", gr.Dropdown([("none", "")], value="", label="Map of the picture by"))
        with gr.Row():
            add("image", _upload(f"control_image_{slot}", height=180, min_width=120))
            form.maps.append(
                gr.Image(
                    label="Map",
                    interactive=False,
                    format="png",
                    min_width=120,
                    height=180,
                    buttons=[],
                    elem_id=f"map_{slot}",
                )
            )
        problem = gr.HTML(visible=False, elem_classes="problem", elem_id=f"control_image_{slot}_problem")
        form.groups[f"control_image_{slot}_problem"] = problem
        add("scale", gr.Slider(0, 2, 1.0, step=0.05, label="Scale"))
        with gr.Row():
            add("start", gr.Slider(0, 1, 0.0, step=0.05, label="From", info="Share of the steps", min_width=120))
            add("end", gr.Slider(0, 1, 1.0, step=0.05, label="To", info="Share of the steps", min_width=120))


def _further(form: Form) -> None:
    with gr.Accordion("More", open=False):
        form.add("num_images", gr.Slider(1, 4, 1, step=1, label="Pictures", elem_id="num_images"))
        hires = gr.Slider(
            1, 4, 1, step=0.25, label="Hires fix", info="Upscaled so many times, and denoised again; 1: off"
        )
        form.add("hires_fix", hires)
        form.add("sigma_schedule", gr.Dropdown([("as configured", "")], value="", label="Noise levels"))
        form.add("preview", gr.Dropdown([("the model's own", "")], value="", label="Previews"))
        weights = gr.Checkbox(False, label="Weights in the prompt: (word:1.3)", elem_id="weighted")
        form.add("weighted", weights)


def _templates(form: Form) -> None:
    with gr.Accordion("Many prompts from one", open=False, elem_id="templates"):
        kinds = gr.Radio(
            _TEMPLATES,
            value="",
            label="A prompt with choices",
            info="{red|blue} star: a red star and a blue star, side by side from one seed",
            elem_id="template",
        )
        form.add("template", kinds)
        form.add("samples", gr.Slider(1, MAX_PROMPTS, 4, step=1, label="Samples", visible=False, elem_id="samples"))
