"""`darkroom jobs`, `watch`, `result` and `cancel`: jobs that are kept, or run."""

from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom_client.cli import _options
from darkroom_client.cli._groups import with_option_groups
from darkroom_client.cli._options import NoClobber, Server
from darkroom_client.cli._run_options import Results

if TYPE_CHECKING:
    from datetime import datetime

    from darkroom_client.catalog import Job

RequestId = Annotated[str, typer.Argument(metavar="ID", help="Job from `darkroom jobs`.")]
Out = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="File, folder, pattern with {prompt}, {seed}, {index} and {suffix}, or - for stdout. "
        "Default: PROMPT-SEED.png.",
    ),
]


@with_option_groups
def jobs(server: Server, as_json: _options.AsJson = False) -> None:
    """List the jobs that wait, run or are kept; with an operator's token, those of all clients.

    Examples:
    darkroom jobs
    darkroom jobs --json | jq '.[].request_id'
    """
    from darkroom_client._sync import Client

    with Client(**server.keywords()) as client:
        found = client.jobs()
    if as_json:
        from darkroom_client.cli._json import print_json

        print_json(found)
        return
    from darkroom_client.cli._tables import Cell, print_list

    if not found:
        typer.echo("There are no jobs.", err=True)
        return
    columns: dict[str, Cell] = {
        "job": attrgetter("request_id"),
        "state": _state,
        "kept until": lambda job: _clock(job.expire_time) or ("its end" if job.kept else ""),
        "pictures": lambda job: f"{job.images_done}/{job.num_images}",
        "owner": attrgetter("owner"),
        "model": attrgetter("model"),
        "task": attrgetter("task"),
        "since": lambda job: _clock(job.create_time),
        "prompt": attrgetter("prompt"),
    }
    print_list(columns, found)


@with_option_groups
def watch(request_id: RequestId, server: Server, out: Out = None, no_clobber: NoClobber = False) -> None:
    """Attach to a kept job: show its progress, and write its pictures when they are done. Ctrl-C leaves it running.

    Examples:
    darkroom generate "a green star" --keep
    darkroom jobs
    darkroom watch 0e6f2b9c
    """
    _follow(request_id, server, Results(out=out, no_clobber=no_clobber))


@with_option_groups
def result(request_id: RequestId, server: Server, out: Out = None, no_clobber: NoClobber = False) -> None:
    """Write the pictures of a kept job that has ended, and print their paths.

    Examples:
    darkroom result 0e6f2b9c --out star.png
    """
    from darkroom_client._sync import Client
    from darkroom_client.cli._report import fail

    with Client(**server.keywords()) as client:
        state = client.job(request_id).state
    if state in ("queued", "running"):
        fail(f"the job {request_id} is {state} still: `darkroom watch {request_id}` waits for it")
    _follow(request_id, server, Results(out=out, no_clobber=no_clobber))


@with_option_groups
def cancel(request_id: RequestId, server: Server) -> None:
    """Cancel a job.

    Examples:
    darkroom cancel 0e6f2b9c
    """
    from darkroom_client._sync import Client

    with Client(**server.keywords()) as client:
        cancelled = client.cancel(request_id)
    typer.echo("cancelled" if cancelled else f"the job {request_id} had ended already")


def _follow(request_id: str, server: Server, results: Results) -> None:
    """Runs a watched job with the output of `darkroom generate`.

    :raises typer.Exit: if the job failed.
    """
    from darkroom_client._aio import AsyncClient
    from darkroom_client._sync import Client
    from darkroom_client.cli._jobs import Job as Watched
    from darkroom_client.cli._view import View

    with Client(**server.keywords()) as client:
        job = client.job(request_id)
    watched = Watched(0, None, {}, job.prompt or request_id, watched=request_id)
    if not View(results).run(AsyncClient(**server.keywords()), [watched], max(1, job.num_images)):
        raise typer.Exit(1)


def _state(job: "Job") -> str:
    if job.state == "running":
        return f"running {job.step}/{job.step_count}" + _until(job.estimated_end_time)
    if job.state == "queued" and job.position is not None:
        return f"queued behind {job.position}" + _until(job.estimated_end_time)
    return f"failed: {job.error}" if job.error else str(job.state or "unknown")


def _until(end: "datetime | None") -> str:
    """How long a job still takes; empty if it is not known, or longer than was expected."""
    from datetime import UTC, datetime

    left = (end - datetime.now(UTC)).total_seconds() if end is not None else 0.0
    return f", {left:.0f} s left" if left >= 1 else ""


def _clock(time: "datetime | None") -> str:
    """A time on this machine's clock."""
    local: Any = time.astimezone() if time is not None else None
    return f"{local:%d %b %H:%M}" if local is not None else ""
