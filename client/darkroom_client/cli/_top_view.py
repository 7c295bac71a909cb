"""How `darkroom top` looks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rich.console import Group, JustifyMethod, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from darkroom_client.catalog import BatchLoad, Job, Model, ServerLoad

_COLUMNS = {  # heading: characters at 80 columns
    "job": 8,
    "state": 9,
    "model": 9,
    "size": 9,
    "step": 7,
    "done": 5,
    "rows": 4,
    "s/step": 6,
    "owner": 8,
    "age": 4,
}
_NUMBERS = ("size", "step", "done", "rows", "s/step", "age")
_MORE = {"job": 24, "model": 20, "owner": 16}  # characters that names have more where there is room, in this order
_OWN_JOBS = "your own: others are shown to operators"


@dataclass(frozen=True, slots=True)
class Frame:
    """What a server said at a moment."""

    address: str
    load: ServerLoad | None  # None: the token is no operator's
    models: list[Model]
    jobs: list[Job]  # that have not ended
    time: datetime = field(default_factory=lambda: datetime.now(UTC))


def drawn(
    frame: Frame, before: Frame | None = None, height: int | None = None, width: int | None = None
) -> RenderableType:
    """A look at a server, in up to so many lines and characters; None: as many as it takes. Rates are those since
    `before`, else since the server's start."""
    title = Text(f"Darkroom at {frame.address}", "bold", no_wrap=True, overflow="ellipsis")
    title.append(f"  {frame.time.astimezone():%H:%M:%S}", "not bold")
    lines = [title, *(_line(name, words) for name, words in _about(frame, before)), Text()]
    most = max(1, height - len(lines) - 2) if height is not None else len(frame.jobs)
    left = len(frame.jobs) - most
    more = [Text(f"and {left} more", "dim")] if left > 0 else []
    return Group(*lines, _table(frame, most, width), *more)


def trouble(words: str, shown: Sequence[RenderableType]) -> RenderableType:
    """What is shown, below what is wrong, if something is."""
    wrong = [Text(f"{words}; trying again", "bold red", overflow="ellipsis"), Text()] if words else []
    return Group(*wrong, *shown)


def _line(name: str, words: str) -> Text:
    line = Text(f"{name:9}", "bold", no_wrap=True, overflow="ellipsis")
    return line.append(words, "not bold")


def _about(frame: Frame, before: Frame | None) -> Iterator[tuple[str, str]]:
    load = frame.load
    if load is None:
        yield "jobs", _OWN_JOBS
        loaded = [f"{each.name} {each.residency}" for each in frame.models if each.residency != "absent"]
        yield "models", "; ".join(loaded) or "none in memory"
        return
    yield "jobs", f"{load.queued_jobs} queued, {load.running_jobs} running; {_streams(load.open_streams)}"
    yield "images", f"{load.waiting_images} waiting, {load.active_images} in the engine"
    names = ("batches", *[""] * len(load.batches))
    yield from zip(names, _batches(frame, before), strict=False)
    budget = f" of {decimal(load.memory_budget_bytes)}" if load.memory_budget_bytes is not None else ""
    yield "memory", f"{decimal(load.device_bytes)}{budget} on devices, {decimal(load.parked_bytes)} parked"
    for each in load.weights:
        users = f", {each.users} in use" if each.users else ""
        kind = "" if each.kind == "model" else f"{each.kind} "
        yield "", f"{kind}{each.name}: {each.residency}, {decimal(each.bytes)}{users}"


def _streams(count: int) -> str:
    return f"{count} {'stream' if count == 1 else 'streams'} open"


def _batches(frame: Frame, before: Frame | None) -> list[str]:
    """A line for each model and size of which batches were evaluated."""
    assert frame.load is not None
    old: dict[tuple[str, str], BatchLoad] = {}
    seconds = None
    if before is not None and before.load is not None:
        old = {(each.model, each.size): each for each in before.load.batches}
        seconds = (frame.time - before.time).total_seconds()
    lines = []
    for each in frame.load.batches:
        past = old.get((each.model, each.size))
        if past is None or past.steps > each.steps:  # new, or of a server that was started again
            past = BatchLoad(each.model, each.size, 0, 0, 0.0)
        steps = each.steps - past.steps
        if steps:
            rows, took = (each.rows - past.rows) / steps, (each.step_seconds - past.step_seconds) / steps
            rate = f"{steps / seconds:.1f} a second" if seconds else f"{steps} since the start"
            lines.append(f"{each.model} {each.size}: {rows:.1f} rows, {took:.3f} s a step, {rate}")
    return lines or ["none"]


def _table(frame: Frame, most: int, width: int | None) -> RenderableType:
    if not frame.jobs:
        return Text("no jobs", "dim")
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold reverse")
    spare = (width or 0) - sum(_COLUMNS.values()) - len(_COLUMNS)
    for name, characters in _COLUMNS.items():
        more = max(0, min(spare, _MORE.get(name, 0)))
        spare -= more
        side: JustifyMethod = "right" if name in _NUMBERS else "left"
        fixed = characters + more if width is not None else None
        table.add_column(name, justify=side, no_wrap=True, overflow="ellipsis", width=fixed)
    for job in sorted(frame.jobs, key=_place)[:most]:
        table.add_row(*map(Text, _cells(job, frame.time)), style="" if job.state == "running" else "dim")
    return table


def _place(job: Job) -> tuple[bool, int, datetime]:
    """Those that run, oldest first, then those that wait, by their position."""
    return job.state != "running", 1 << 31 if job.position is None else job.position, job.create_time


def _cells(job: Job, now: datetime) -> Iterator[str]:
    yield job.request_id
    yield f"queued {job.position}" if job.state == "queued" and job.position is not None else job.state or ""
    yield job.model
    yield f"{job.width}x{job.height}" if job.width else ""
    yield f"{job.step}/{job.step_count}" if job.step_count else ""
    yield f"{job.images_done}/{job.num_images}" if job.num_images else ""
    yield str(job.batch_rows or "")
    yield f"{job.step_seconds:.3f}" if job.step_seconds else ""
    yield job.owner
    yield _age((now - job.create_time).total_seconds())


def _age(seconds: float) -> str:
    """For instance ``42s``, ``3m``, ``2h``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
