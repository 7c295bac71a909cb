"""What the page's events do. Handlers return or yield updates as dictionaries by component."""

import contextlib
import json
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from darkroom_client._aio import AsyncClient
from darkroom_client._requests import new_request_id
from darkroom_client._stream import AsyncStream
from darkroom_client.errors import DarkroomError, RequestNotFound
from darkroom_client.events import Accepted
from darkroom_client.ui import runs, view
from darkroom_client.ui.form import Form
from darkroom_client.ui.history import Window
from darkroom_client.ui.offer import Offer
from darkroom_client.ui.problems import problems
from darkroom_client.ui.recipes import fields_of, recipe_of
from darkroom_client.ui.runs import Job, Run
from darkroom_client.ui.settings import (
    FIELDS,
    INPAINT,
    MAX_LORAS,
    OUTPAINT,
    SLOTS,
    STRENGTHS,
    TEXT,
    Request,
    request,
    seed,
)

Updates = dict[Any, Any]


@dataclass(slots=True)
class Stage:
    """The components beside the settings."""

    server: Any  # in the page's head
    view: Any
    status: Any
    details: Any
    gallery: Any
    generate: Any
    stop: Any
    compare: Any  # its button
    compared: Any  # the schedulers to compare
    reuse: Any
    change: Any
    stored: Any  # what the browser remembers, as JSON
    troubles: Any  # state: what is wrong with which field

    @property
    def all(self) -> list[Any]:
        """All of them."""
        return [getattr(self, name) for name in self.__slots__]


class Actions:
    """The handlers of one page, for any number of windows.

    :param options: the keywords of `AsyncClient`, but its address.
    :param folder: for finished pictures.
    """

    def __init__(self, address: str | None, options: Mapping[str, Any], folder: Path, form: Form, stage: Stage) -> None:
        self._client = AsyncClient(address, **options)
        self._folder, self._form, self._stage = folder, form, stage
        self._offer: Offer | None = None  # as last seen

    # ------------------------------------------------------------------------------------------------------- catalog

    async def open(self) -> Updates:
        """Fills the choices from what the server offers."""
        try:
            self._offer = offer = await Offer.of(self._client)
        except DarkroomError as error:
            return {self._stage.status: view.note(error.message, "alert")}
        model = offer.model(None)
        limits, fields = offer.info.limits, self._form.fields
        return {
            fields["preview"]: gr.update(choices=[("the model's own", ""), *((m, m) for m in model.preview_modes)]),
            fields["num_images"]: gr.update(maximum=limits.max_images),
            fields["num_inference_steps"]: gr.update(maximum=min(limits.max_inference_steps, 500)),
            self._stage.status: "",
            self._stage.server: view.server(offer.info, self._client.address),
            self._stage.compared: gr.update(choices=offer.scheduler_choices(), value=offer.featured_schedulers()),
            **{
                fields[f"control_preprocessor_{slot}"]: gr.update(choices=offer.preprocessor_choices())
                for slot in range(SLOTS)
            },
            **self._fit(model.name, {}),
        }

    async def choose_model(self, name: str) -> Updates:
        """Fits ranges, defaults and choices to a model."""
        return self._fit(name, {}) if self._offer is not None else gr.skip()

    def _fit(self, name: str | None, values: Mapping[str, Any]) -> Updates:
        """The updates of fields whose choices or ranges depend on the model. `values`: in place of its defaults."""
        assert self._offer is not None
        offer, model, fields = self._offer, self._offer.model(name), self._form.fields
        scheduler = values.get("scheduler") or model.default_scheduler
        defaults = {
            "num_inference_steps": model.default_num_inference_steps,
            "guidance_scale": model.default_guidance_scale,
            "width": model.default_width,
            "height": model.default_height,
            "sigma_schedule": "",
            "loras": [],
        }
        chosen = defaults | {name: value for name, value in values.items() if value is not None and name in defaults}
        edge = {"minimum": model.min_size, "maximum": model.max_size, "step": model.size_factor}
        loras, controls = offer.lora_choices(model.name), offer.control_choices(model.name)
        return {
            fields["model"]: gr.update(choices=offer.model_choices(), value=model.name),
            fields["scheduler"]: gr.update(choices=offer.scheduler_choices(), value=scheduler),
            fields["num_inference_steps"]: gr.update(value=chosen["num_inference_steps"]),
            fields["guidance_scale"]: gr.update(value=chosen["guidance_scale"]),
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
        choices = self._offer.sigma_choices(name) if self._offer else [("as configured", "")]
        return {self._form.fields["sigma_schedule"]: gr.update(choices=choices, value="")}

    def choose_mode(self, mode: str) -> Updates:
        """Shows the fields of a kind of work."""
        groups = self._form.groups
        return {
            groups["edit"]: gr.update(visible=mode != TEXT),
            groups["inpaint"]: gr.update(visible=mode == INPAINT),
            groups["outpaint"]: gr.update(visible=mode == OUTPAINT),
            groups["size"]: gr.update(visible=mode == TEXT),
            self._form.fields["strength"]: gr.update(visible=mode in STRENGTHS, value=STRENGTHS.get(mode, 0.8)),
        }

    def choose_loras(self, names: list[str]) -> Updates:
        """Shows a slider for each LoRA."""
        labels = [*names, *["Weight"] * MAX_LORAS]
        return {
            self._form.fields[f"weight_{index}"]: gr.update(visible=index < len(names), label=labels[index])
            for index in range(MAX_LORAS)
        }

    def choose_control(self, slot: int, name: str) -> Updates:
        """Shows the fields of a ControlNet, with its own preprocessor, and the next slot."""
        own = self._offer.default_preprocessor(name) if self._offer else ""
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

    # ---------------------------------------------------------------------------------------------------------- runs

    async def generate(self, window: Window, *values: Any) -> AsyncIterator[Updates]:
        """Makes the pictures that the fields ask for."""
        async for updates in self._make(window, values, None):
            yield updates

    async def compare(self, window: Window, schedulers: list[str], *values: Any) -> AsyncIterator[Updates]:
        """Makes a picture by each of these schedulers, all from one seed."""
        async for updates in self._make(window, values, schedulers):
            yield updates

    async def _make(
        self, window: Window, values: tuple[Any, ...], schedulers: list[str] | None
    ) -> AsyncIterator[Updates]:
        fields = dict(zip(FIELDS, values, strict=True))
        asked: Request | None = None
        try:
            asked = request(fields)
            run, streams = self._start(asked, schedulers, fields)
        except DarkroomError as error:
            yield self._problems(error, asked)
            return
        window.begin(run)
        yield {self._stage.troubles: {}, self._stage.stored: json.dumps(window.to_json())}
        async for updates in self._show(window, run, streams, asked):
            yield updates

    def _start(
        self, asked: Request, schedulers: list[str] | None, fields: Mapping[str, Any]
    ) -> tuple[Run, list[AsyncStream]]:
        if schedulers is None:
            job = Job(new_request_id())
            return Run([job]), [asked.start(self._client, request_id=job.request_id)]
        assert self._offer is not None
        one_seed = seed(fields["seed"]) if not fields["random_seed"] else None
        more = {"seed": random.randrange(2**32) if one_seed is None else one_seed, "num_images": 1}
        jobs = [Job(new_request_id(), name) for name in schedulers]
        steps = {job.label: self._offer.steps_for(job.label, int(fields["num_inference_steps"])) for job in jobs}
        streams = [
            asked.start(
                self._client,
                request_id=job.request_id,
                scheduler=job.label,
                num_inference_steps=steps[job.label],
                **more,
            )
            for job in jobs
        ]
        return Run(jobs), streams

    async def _show(
        self, window: Window, run: Run, streams: list[AsyncStream], asked: Request | None
    ) -> AsyncIterator[Updates]:
        stage = self._stage
        yield {
            stage.generate: gr.update(interactive=False),
            stage.compare: gr.update(interactive=False),
            stage.stop: gr.update(interactive=True),
            **self._picture(window, run),
        }
        told = False  # the seed
        async for _ in runs.follow(run, streams):
            updates = self._picture(window, run)
            if not told and run.jobs[0].accepted is not None:
                told, seeds = True, run.jobs[0].accepted.seeds
                updates[self._form.fields["seed"]] = str(seeds[0])
            if window.keep(self._folder, run):
                updates |= self._picture(window, run) | self._history(window)
            yield updates
        errors = [job.error for job in run.jobs if job.error is not None]
        failed = self._problems(errors[0], asked) if errors and not runs.was_stopped(run) else {}
        yield {**self._picture(window, run), **failed, **self._idle()}

    def _idle(self) -> Updates:
        stage = self._stage
        return {
            stage.generate: gr.update(interactive=True),
            stage.compare: gr.update(interactive=True),
            stage.stop: gr.update(interactive=False),
        }

    def _picture(self, window: Window, run: Run) -> Updates:
        return {self._stage.view: view.of_run(run, window.paths), self._stage.status: view.status(run)}

    def _history(self, window: Window) -> Updates:
        shown = window.shown
        return {
            self._stage.gallery: gr.update(value=[(made.path, made.caption) for made in window.made], visible=True),
            self._stage.details: view.details(shown) if shown else "",
            self._stage.reuse: gr.update(visible=True),
            self._stage.change: gr.update(visible=True),
        }

    async def stop(self, window: Window) -> Updates:
        """Stops the run on the server; its own handler then shows its end."""
        if window.run is not None:
            try:
                await runs.cancel(self._client, window.run)
            except DarkroomError as error:
                return {self._stage.status: view.note(error.message, "alert")}
        return {self._stage.stop: gr.update(interactive=False)}

    async def restore(self, window: Window, stored: str) -> AsyncIterator[Updates]:
        """After a reload: finds the jobs again that the browser remembers, and goes on showing the newest."""
        remembered = [Run.from_json(each) for each in json.loads(stored or "[]")]
        yield gr.skip()  # a handler that yields nothing clears its outputs
        if not remembered:
            return
        for run in remembered[:-1]:
            await self._collect(window, run)
        run = remembered[-1]
        window.begin(run)
        if window.made:
            yield self._history(window)
        streams = [self._client.watch(job.request_id) for job in run.jobs]
        async for updates in self._show(window, run, streams, None):
            yield updates
        if all(isinstance(job.error, RequestNotFound) for job in run.jobs):
            window.runs.remove(run)
            stored = json.dumps(window.to_json())
            yield {self._stage.view: view.EMPTY, self._stage.status: "", self._stage.stored: stored}

    async def recall(self, stored: str) -> Updates:
        """After a reload: sets the fields as they were for the newest run."""
        remembered = json.loads(stored or "[]")
        if not remembered:
            return gr.skip()
        async with self._client.watch(remembered[-1][0]["id"], timeout=20) as stream:
            with contextlib.suppress(DarkroomError):
                event = await anext(stream, None)
                return self.fill(recipe_of(event)) if isinstance(event, Accepted) else gr.skip()
        return gr.skip()

    async def _collect(self, window: Window, run: Run) -> None:
        """Takes the pictures of an older run, if the server still has them."""
        window.begin(run)
        with contextlib.suppress(DarkroomError):
            streams = [self._client.watch(job.request_id, timeout=20) for job in run.jobs]
            async for _ in runs.follow(run, streams):
                pass
        window.keep(self._folder, run)

    # ------------------------------------------------------------------------------------------------------ pictures

    def select(self, window: Window, event: gr.SelectData) -> Updates:
        """Shows a picture of the gallery."""
        window.shown = window.made[int(event.index)]
        shown = {self._stage.details: view.details(window.shown)}
        if window.run is None or window.run.ended:
            shown |= {self._stage.view: view.of_picture(window.shown), self._stage.status: ""}
        return shown

    def reuse(self, window: Window) -> Updates:
        """Sets the fields to the shown picture's recipe."""
        return self.fill(window.shown.recipe) if window.shown is not None else gr.skip()

    def fill(self, recipe: Mapping[str, Any]) -> Updates:
        """Sets the fields to a recipe."""
        if self._offer is None:
            return gr.skip()
        values, fields = fields_of(recipe), self._form.fields
        updates = {
            **{fields[name]: gr.update(value=value) for name, value in values.items()},
            **self._fit(values.get("model"), values),
        }
        shown = self.choose_loras(values["loras"]), self.choose_mode(values["mode"]), self._show_controls(values)
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

    def change(self, window: Window, mode: str) -> Updates:
        """Takes the shown picture to be edited."""
        if window.shown is None:
            return gr.skip()
        mode = mode if mode != TEXT else INPAINT
        return {
            self._form.fields["mode"]: mode,
            self._form.fields["editor"]: {"background": window.shown.path, "layers": [], "composite": None},
            **self.choose_mode(mode),
        }

    # ------------------------------------------------------------------------------------------------------ problems

    def _problems(self, error: DarkroomError, asked: Request | None) -> Updates:
        """The updates that say what is wrong, each beside its field."""
        found = problems(error, asked.slots if asked is not None else ())
        rest = found.pop("", "")
        text = rest or f"Not made: {len(found)} {'field needs' if len(found) == 1 else 'fields need'} another value"
        return {self._stage.troubles: found, self._stage.status: view.note(text, "alert"), **self._idle()}

    def mark(self, troubles: Mapping[str, str]) -> Updates:
        """Says what is wrong beside each field; nothing beside the others."""
        return {key: update for name in FIELDS for key, update in self._beside(name, troubles.get(name, "")).items()}

    def _beside(self, name: str, text: str) -> Updates:
        extra = self._form.groups.get(f"{name}_problem")
        if extra is not None:
            return {extra: gr.update(visible=bool(text), value=view.problem(text))}
        classes = ["invalid"] if text else []
        return {self._form.fields[name]: gr.update(info=text or self._form.infos[name], elem_classes=classes)}
