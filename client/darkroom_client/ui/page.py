"""The page: its layout, and which event does what."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from darkroom_client._aio import AsyncClient
from darkroom_client.ui import form as settings_form
from darkroom_client.ui import view
from darkroom_client.ui.actions import Actions, Stage
from darkroom_client.ui.choices import Choices
from darkroom_client.ui.form import Form
from darkroom_client.ui.history import Window
from darkroom_client.ui.settings import SLOTS

_REMEMBER = "stored => { sessionStorage.setItem('darkroom', stored); }"
_RECALL = "(...inputs) => [...inputs.slice(0, -1), sessionStorage.getItem('darkroom') ?? '']"
_MASK = "(...inputs) => [...inputs.slice(0, -1), darkroomBrush.mask()]"
_BRUSH = "picture => { darkroomBrush.load(picture?.url ?? ''); }"
_SHOW_TROUBLE = "() => document.querySelector('.invalid')?.scrollIntoView({ block: 'nearest', behavior: 'smooth' })"
_QUIET = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}


def build(address: str | None, options: Mapping[str, Any], folder: Path, wildcards: Path | None) -> Any:
    """The page of the server at an address.

    :param options: further keywords of `AsyncClient`.
    :param folder: for finished pictures.
    :param wildcards: the folder of texts for `__NAME__` in prompts.
    """
    with gr.Blocks(title="Darkroom", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as blocks:
        with gr.Row(elem_id="head"):
            gr.HTML('<h1><span class="lamp"></span>Darkroom</h1>', elem_id="title")
            server = gr.HTML("", elem_id="server")
        with gr.Row(elem_id="desk"):
            with gr.Column(elem_id="settings", min_width=0):
                form = settings_form.lay_out()
                with gr.Accordion("Compare schedulers", open=False):
                    compared = gr.Dropdown([], multiselect=True, label="Schedulers", elem_id="compared")
                    compare = gr.Button("Compare, from one seed", elem_id="compare")
            with gr.Column(elem_id="stage", min_width=0):
                picture = gr.HTML(view.EMPTY, elem_id="view", apply_default_css=False)
                status = gr.HTML("", elem_id="status", apply_default_css=False)
                details = gr.HTML("", elem_id="details", apply_default_css=False)
                with gr.Row(elem_id="reuse-row"):
                    reuse = gr.Button("Use these settings", size="sm", visible=False, elem_id="reuse")
                    change = gr.Button("Edit this", size="sm", visible=False, elem_id="change")
                    save = gr.DownloadButton("Save", size="sm", visible=False, elem_id="save")
                gallery = gr.Gallery(
                    show_label=False,
                    visible=False,
                    columns=8,
                    height="auto",
                    object_fit="cover",
                    allow_preview=False,
                    elem_id="gallery",
                    buttons=[],
                )
        stored = gr.Textbox("", visible="hidden", elem_id="stored")
        troubles = gr.State({})
        window = gr.State(Window(), delete_callback=Window.forget)
        generate, stop = form.buttons["generate"], form.buttons["stop"]
        stage = Stage(
            server,
            picture,
            status,
            details,
            gallery,
            generate,
            stop,
            compare,
            compared,
            reuse,
            change,
            save,
            stored,
            troubles,
        )
        client = AsyncClient(address, **options)
        choices = Choices(client, form)
        _connect(blocks, Actions(client, folder, wildcards, form, stage, choices), choices, form, stage, window)
    return blocks


def _connect(blocks: Any, actions: Actions, choices: Choices, form: Form, stage: Stage, window: Any) -> None:
    fields = form.fields
    # Progress is "shown" on a component that is no field, as Gradio reads the one that it is shown on at each update.
    quiet = {**_QUIET, "show_progress_on": stage.server}
    on_stage: dict[str, Any] = {"outputs": [*stage.all, fields["seed"]], **quiet}
    form_outputs = [*form.inputs, *form.groups.values(), *form.maps, stage.compared, stage.status, stage.server]
    on_form: dict[str, Any] = {"outputs": form_outputs, **quiet}
    # A second choice, made while the first one is answered, is answered as well.
    on_choice = {**on_form, "trigger_mode": "always_last"}
    opened = blocks.load(actions.open, **on_form)
    opened.then(actions.restore, [window, stage.stored], js=_RECALL, **on_stage)
    opened.then(actions.recall, stage.stored, js=_RECALL, **on_form)
    stage.generate.click(actions.generate, [window, *form.inputs], js=_MASK, **on_stage)
    stage.compare.click(actions.compare, [window, stage.compared, *form.inputs], js=_MASK, **on_stage)
    stage.stop.click(actions.stop, window, **on_stage)
    stage.stored.change(None, stage.stored, js=_REMEMBER)
    stage.troubles.change(choices.mark, stage.troubles, **on_form).then(None, js=_SHOW_TROUBLE)
    stage.gallery.select(actions.select, window, **on_stage)
    stage.reuse.click(actions.reuse, window, **on_form)
    stage.change.click(actions.change, [window, fields["mode"]], **on_form)
    fields["model"].input(choices.choose_model, fields["model"], **on_choice)
    fields["preset"].input(choices.choose_preset, [fields["model"], fields["preset"]], **on_choice)
    fields["scheduler"].input(choices.choose_scheduler, fields["scheduler"], **on_choice)
    fields["mode"].input(choices.choose_mode, fields["mode"], **on_choice)
    fields["template"].input(choices.choose_template, fields["template"], **on_choice)
    fields["closely"].input(choices.choose_closely, fields["closely"], **on_choice)
    fields["loras"].input(choices.choose_loras, fields["loras"], **on_choice)
    fields["picture"].change(None, fields["picture"], js=_BRUSH)
    for slot in range(SLOTS):
        model, image, preprocessor = (fields[f"control_{name}_{slot}"] for name in ("model", "image", "preprocessor"))
        model.input(partial(choices.choose_control, slot), model, **on_choice)
        gr.on([image.change, preprocessor.change], partial(choices.show_map, slot), [image, preprocessor], **on_choice)
