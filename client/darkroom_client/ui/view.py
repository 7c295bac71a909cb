"""Runs and pictures as HTML."""

import base64
import html
import math
from collections.abc import Mapping
from typing import Any

from darkroom_client import events
from darkroom_client.catalog import ServerInfo
from darkroom_client.ui.history import Made, file_url
from darkroom_client.ui.runs import Cell, Job, Run, was_stopped

EMPTY = (
    '<div class="stage empty"><p>Describe a picture, and watch it develop.</p>'
    "<p><kbd>Ctrl</kbd> <kbd>Enter</kbd> generates, <kbd>Esc</kbd> stops.</p></div>"
)


def of_run(run: Run, paths: Mapping[tuple[str, int], str]) -> str:
    """The pictures of a run side by side.

    :param paths: the files of finished pictures, by job and image index.
    """
    cells = [_cell(job, cell, paths) for job, cell in run.cells]
    return _stage(cells)


def of_picture(made: Made) -> str:
    """A finished picture alone."""
    return _stage([_figure(_img(made.url, "picture", made.prompt), "")])


def _stage(figures: list[str]) -> str:
    count = len(figures)
    columns = count if count <= 3 else math.ceil(math.sqrt(count))
    return f'<div class="stage" data-count="{count}" style="--columns:{columns}">{"".join(figures)}</div>'


def _cell(job: Job, cell: Cell, paths: Mapping[tuple[str, int], str]) -> str:
    prompt = job.accepted.parameters.prompt if job.accepted else ""
    path = paths.get((job.request_id, cell.image.image_index)) if cell.image else None
    if path is not None:
        picture = _img(file_url(path), "picture", prompt)
    elif cell.preview is not None:
        picture = _img(_data_url(cell.preview), "preview", prompt)
    else:
        picture = '<div class="blank"></div>'
    return _figure(picture, _caption(job, cell))


def _figure(picture: str, caption: str) -> str:
    text = html.escape(caption)
    text = f'<figcaption title="{text}">{text}</figcaption>' if text else ""
    return f"<figure>{picture}{text}</figure>"


def _img(source: str, kind: str, prompt: str) -> str:
    return f'<img src="{html.escape(source)}" data-kind="{kind}" alt="{html.escape(prompt)}">'


def _caption(job: Job, cell: Cell) -> str:
    if not job.label:
        return ""
    if job.error is not None:
        return f"{job.label}: {job.error.message}"
    done = (
        f"{job.completed.timings.denoise_seconds:.1f} s" if job.completed else f"{cell.step}/{cell.step_count or '…'}"
    )
    return f"{job.label} · {done}"


def _data_url(picture: events.Picture) -> str:
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.image_bytes).decode()}"


def status(run: Run) -> str:
    """What the run is at: a bar and a line of text."""
    text = html.escape(describe(run))
    kind = "ended" if run.ended else "running"
    return (
        f'<div class="status {kind}"><div class="bar"><i style="width:{run.progress:.1%}"></i></div>'
        f'<p role="status">{text}</p></div>'
    )


def note(text: str, role: str = "status") -> str:
    """A line of text in the place of a run's status. `role`: "status" or "alert"."""
    return f'<div class="status"><p role="{role}">{html.escape(text)}</p></div>'


def describe(run: Run) -> str:
    """What the run is at, in words."""
    if run.ended:
        return _ending(run)
    open_jobs = [job for job in run.jobs if not job.ended]
    if len(run.cells) > 1 and run.progress > 0:
        return f"{len(run.images)} of {len(run.cells)} pictures, {run.progress:.0%} of all steps{_left(run)}"
    job = open_jobs[0]
    match job.waiting:
        case events.Queued(position=position, estimated_wait_seconds=wait) if position > 0 or wait:
            ahead = f"{position} {'job' if position == 1 else 'jobs'} ahead" if position else "Next"
            return f"{ahead} in the queue" + (f", about {_duration(wait)}" if wait else "")
        case events.Loading(model=model, component=component, bytes_done=done, bytes_total=total):
            share = f", {done / total:.0%}" if total else ""
            return f"Loading {model}{share}" + (f" ({component})" if component else "")
    cell = job.cells[0]
    if cell.step:
        return f"Step {cell.step} of {cell.step_count}{_left(run)}"
    return "Waiting for its turn" if job.accepted else "Asking the server"


def _ending(run: Run) -> str:
    if was_stopped(run):
        cell = run.cells[0][1]
        return f"Stopped after step {cell.step} of {cell.step_count}" if len(run.cells) == 1 else "Stopped"
    failed = [job for job in run.jobs if job.error is not None]
    if failed:
        message = failed[0].error.message if failed[0].error else ""
        return message if len(run.jobs) == 1 else f"{len(failed)} of {len(run.jobs)} failed: {message}"
    longest = max(job.completed.timings.total_seconds for job in run.jobs if job.completed)
    warnings = dict.fromkeys(text for job in run.jobs if job.completed for text in job.completed.warnings)
    return ". ".join([f"Done in {_duration(longest)}", *warnings])


def _left(run: Run) -> str:
    left = [cell.eta_seconds for _, cell in run.cells if cell.eta_seconds and cell.image is None]
    return f", about {_duration(max(left))} left" if left else ""


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def details(made: Made, hint: str = "") -> str:
    """A picture's recipe as a list. `hint`: which picture it is, of several that are shown."""
    parameters: Mapping[str, Any] = made.recipe.get("parameters", {})
    scheduler = parameters.get("scheduler", {})
    loras = ", ".join(f"{each['name']} {each.get('weight', 1):g}" for each in parameters.get("loras", ()))
    rows = {
        "Model": parameters.get("model"),
        "Scheduler": " ".join(filter(None, (scheduler.get("name"), _spelled(scheduler.get("sigma_schedule"))))),
        "Steps": parameters.get("num_inference_steps"),
        "Guidance": parameters.get("guidance_scale"),
        "Seed": made.seed,
        "Size": _size({"width": made.width, "height": made.height}),
        "Hires fix": f"from {_size(parameters)}" if "hires_fix" in parameters else None,
        "LoRAs": loras,
        "ControlNets": ", ".join(each["model"] for each in parameters.get("controls", ())),
        "Negative": parameters.get("negative_prompt"),
    }
    task = parameters.get("task", "")
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{html.escape(str(value))}</dd></div>"
        for name, value in rows.items()
        if value not in (None, "")
    )
    notes = " · ".join(filter(None, ("" if task == "txt2img" else task, hint)))
    notes = f" <em>{html.escape(notes)}</em>" if notes else ""
    return f'<div class="recipe"><p>{html.escape(made.prompt)}{notes}</p><dl>{shown}</dl></div>'


def _size(fields: Mapping[str, Any]) -> str:
    return f"{fields['width']} × {fields['height']}"  # noqa: RUF001


def _spelled(sigma_schedule: str | None) -> str:
    return (sigma_schedule or "").removeprefix("SIGMA_SCHEDULE_").lower()


def problem(text: str) -> str:
    """What is wrong with a field that has no room for it."""
    return f'<p role="alert">{html.escape(text)}</p>'


def server(info: ServerInfo, address: str) -> str:
    """Which server the page is of."""
    devices = ", ".join(device.name or device.id for device in info.devices)
    return f"<p>{html.escape(' · '.join(filter(None, (address, devices, info.version))))}</p>"
