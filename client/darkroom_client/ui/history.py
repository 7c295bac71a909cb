"""The pictures that a window has made, as files with their recipes."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from darkroom_client import events
from darkroom_client.ui.runs import Job, Run

_REMEMBERED = 40  # runs, by a browser


@dataclass(frozen=True, slots=True)
class Made:
    """A finished picture."""

    path: str
    label: str
    seed: int
    width: int
    height: int
    recipe: dict[str, Any]

    @property
    def prompt(self) -> str:
        """Its prompt."""
        return str(self.recipe.get("parameters", {}).get("prompt", ""))

    @property
    def url(self) -> str:
        """Where the page's server has it."""
        return file_url(self.path)

    @property
    def caption(self) -> str:
        """Below it in the gallery."""
        return f"{self.label} · {self.seed}" if self.label else str(self.seed)


@dataclass(slots=True)
class Window:
    """What a browser's window has asked for and got. Lives until it is reloaded."""

    made: list[Made] = field(default_factory=list)  # newest first
    runs: list[list[dict[str, str]]] = field(default_factory=list)  # for the browser to remember, oldest first
    run: Run | None = None  # the newest
    shown: Made | None = None
    paths: dict[tuple[str, int], str] = field(default_factory=dict)  # of files, by job and image index

    def begin(self, run: Run) -> None:
        """Adds a run."""
        self.run = run
        self.runs = [*self.runs, run.to_json()][-_REMEMBERED:]

    def keep(self, folder: Path, run: Run) -> bool:
        """Writes the finished pictures of a run that have no file yet. Returns whether there were any."""
        new = [(job, image) for job, image in run.images if (job.request_id, image.image_index) not in self.paths]
        for job, image in new:
            made = _write(folder, job, image)
            self.paths[job.request_id, image.image_index] = made.path
            self.made.insert(0, made)
            self.shown = made
        return bool(new)

    def forget(self) -> None:
        """Deletes the pictures' files."""
        for made in self.made:
            Path(made.path).unlink(missing_ok=True)


def file_url(path: str) -> str:
    """Where the page's server has a file."""
    return f"/gradio_api/file={quote(path)}"


def _write(folder: Path, job: Job, image: events.Image) -> Made:
    path = image.save(folder / f"darkroom-{image.seed}-{secrets.token_hex(4)}{image.suffix}")
    recipe = dict(image.metadata)
    return Made(str(path), job.label, image.seed, image.width, image.height, recipe)
