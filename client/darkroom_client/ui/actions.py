"""What the page's events do. Handlers return or yield updates as dictionaries by component."""

import contextlib
import json
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from darkroom_client._aio import AsyncClient
from darkroom_client._requests import new_request_id
from darkroom_client._stream import AsyncStream
from darkroom_client.errors import DarkroomError, InvalidRequest, RequestNotFound
from darkroom_client.events import Accepted
from darkroom_client.ui import runs, view
from darkroom_client.ui.choices import NOTHING, Choices, Updates
from darkroom_client.ui.form import Form
from darkroom_client.ui.history import Window
from darkroom_client.ui.problems import in_words, problems
from darkroom_client.ui.recipes import recipe_of
from darkroom_client.ui.runs import Job, Run
from darkroom_client.ui.settings import FIELDS, INPAINT, TEXT, Request, prompts, request, seed

_PATIENCE = 60.0  # seconds, for a server that starts


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
    save: Any
    stored: Any  # what the browser remembers, as JSON
    troubles: Any  # state: what is wrong with which field

    @property
    def all(self) -> list[Any]:
        """All of them."""
        return [getattr(self, name) for name in self.__slots__]


class Actions:
    """The handlers that start, show and stop jobs, of one page for any number of windows.

    :param folder: for finished pictures.
    :param wildcards: the folder of texts for `__NAME__` in prompts.
    """

    def __init__(
        self, client: AsyncClient, folder: Path, wildcards: Path | None, form: Form, stage: Stage, choices: Choices
    ) -> None:
        self._client, self._folder, self._wildcards = client, folder, wildcards
        self._form, self._stage, self._choices = form, stage, choices

    async def open(self) -> AsyncIterator[Updates]:
        """Fills the choices from what the server offers, once it is there."""
        try:
            if not await self._client.is_ready():
                yield {self._stage.status: view.note(f"Waiting for the server at {self._client.address}")}
                await self._client.wait_for_server(_PATIENCE)
            updates = await self._choices.load()
        except DarkroomError as error:
            yield {self._stage.status: view.note(in_words(error), "alert")}
            return
        offer = self._choices.offer
        assert offer is not None
        yield {
            **updates,
            self._stage.status: "",
            self._stage.server: view.server(offer.info, self._client.address),
            self._stage.compared: gr.update(choices=offer.scheduler_names(), value=offer.featured_schedulers()),
        }

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
        yield {self._stage.troubles: {}, self._stage.stored: json.dumps(window.runs)}
        async for updates in self._show(window, run, streams, asked):
            yield updates

    def _start(
        self, asked: Request, schedulers: list[str] | None, fields: Mapping[str, Any]
    ) -> tuple[Run, list[AsyncStream]]:
        variants = self._variants(asked, schedulers, fields)
        jobs = [Job(new_request_id(), label) for label, _, _ in variants]
        streams = [
            variant.start(self._client, request_id=job.request_id, **more)
            for job, (_, variant, more) in zip(jobs, variants, strict=True)
        ]
        return Run(jobs), streams

    def _variants(
        self, asked: Request, schedulers: list[str] | None, fields: Mapping[str, Any]
    ) -> list[tuple[str, Request, dict[str, Any]]]:
        """Of each job its label, its request, and what it has beside that; what is compared has one seed."""
        if schedulers is None and not fields["template"]:
            return [("", asked, {})]
        given = seed(fields["seed"]) if not fields["random_seed"] else None
        one_seed = random.randrange(2**32) if given is None else given
        if schedulers is None:
            made = prompts(fields, one_seed, self._wildcards)
            return [(prompt, replace(asked, prompt=prompt), {"seed": one_seed}) for prompt in made]
        offer = self._choices.offer
        if not schedulers or offer is None:
            raise InvalidRequest("Choose the schedulers to compare")
        if fields["template"]:
            raise InvalidRequest("Schedulers are compared on one prompt, not on many")
        steps = {name: offer.steps_for(name, int(fields["num_inference_steps"])) for name in schedulers}
        more = {"seed": one_seed, "num_images": 1}
        return [(name, asked, {"scheduler": name, "num_inference_steps": steps[name], **more}) for name in schedulers]

    async def _show(
        self, window: Window, run: Run, streams: list[AsyncStream], asked: Request | None
    ) -> AsyncIterator[Updates]:
        stage = self._stage
        yield {
            stage.generate: gr.update(interactive=False),
            stage.compare: gr.update(interactive=False),
            stage.stop: gr.update(interactive=True),
            **self._picture(window, run),
            **self._recipe(window, "the picture before"),
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
        yield {**self._picture(window, run), **self._before(window, run), **failed, **self._idle()}

    def _before(self, window: Window, run: Run) -> Updates:
        """Where nothing came of a run, not even a preview: what was shown before it."""
        if any(cell.preview or cell.image for _, cell in run.cells):
            return {}
        return {self._stage.view: view.of_picture(window.shown) if window.shown else view.EMPTY, **self._recipe(window)}

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
        gallery = gr.update(value=[(made.path, made.caption) for made in window.made], visible=True)
        many = window.run is not None and len(window.run.cells) > 1
        hint = "the newest picture; choose another below" if many else ""
        return {self._stage.gallery: gallery, **self._recipe(window, hint)}

    def _recipe(self, window: Window, hint: str = "") -> Updates:
        stage, shown = self._stage, window.shown
        if shown is None:
            return {}
        visible = gr.update(visible=True)
        save = gr.update(visible=True, value=shown.path)
        return {stage.details: view.details(shown, hint), stage.reuse: visible, stage.change: visible, stage.save: save}

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
        yield NOTHING  # a handler that yields nothing clears its outputs
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
            window.runs.pop()
            stored = json.dumps(window.runs)
            yield {self._stage.status: "", self._stage.stored: stored}

    async def recall(self, stored: str) -> Updates:
        """After a reload: sets the fields as they were for the newest run; the next seed is random again."""
        remembered = json.loads(stored or "[]")
        if not remembered:
            return NOTHING
        async with self._client.watch(remembered[-1][0]["id"], timeout=20) as stream:
            with contextlib.suppress(DarkroomError):
                event = await anext(stream, None)
                if isinstance(event, Accepted):
                    random_seed = self._form.fields["random_seed"]
                    return {**self._choices.fill(recipe_of(event)), random_seed: gr.update(value=True)}
        return NOTHING

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
        shown = self._recipe(window)
        if window.run is None or window.run.ended:
            shown |= {self._stage.view: view.of_picture(window.shown), self._stage.status: ""}
        return shown

    def reuse(self, window: Window) -> Updates:
        """Sets the fields to the shown picture's recipe."""
        return self._choices.fill(window.shown.recipe) if window.shown is not None else NOTHING

    def change(self, window: Window, mode: str) -> Updates:
        """Takes the shown picture to be edited."""
        if window.shown is None:
            return NOTHING
        mode = mode if mode != TEXT else INPAINT
        return {
            self._form.fields["mode"]: mode,
            self._form.fields["picture"]: window.shown.path,
            **self._choices.choose_mode(mode),
        }

    # ------------------------------------------------------------------------------------------------------ problems

    def _problems(self, error: DarkroomError, asked: Request | None) -> Updates:
        """The updates that say what is wrong, each beside its field."""
        found = problems(error, asked.slots if asked is not None else ())
        rest = found.pop("", "")
        labels = list(dict.fromkeys(self._form.fields[name].label for name in found))
        text = rest or f"Not made: {', '.join(labels)} {'needs' if len(labels) == 1 else 'need'} another value"
        return {self._stage.troubles: found, self._stage.status: view.note(text, "alert"), **self._idle()}
