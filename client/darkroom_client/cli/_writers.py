"""Listeners that write files: pictures, previews with contact sheets, control maps."""

from collections import defaultdict
from pathlib import Path

from darkroom_client.cli._files import Output, Paths, slug
from darkroom_client.cli._jobs import Job
from darkroom_client.errors import DarkroomError
from darkroom_client.events import ControlImage, Event, Image, Preview


class PictureWriter:
    """Writes finished pictures."""

    def __init__(self, output: Output, images_per_job: int) -> None:
        self._output = output
        self._images_per_job = images_per_job
        self._paths: dict[tuple[int, int], Path] = {}  # by job and image index

    def on_event(self, job: Job, event: Event) -> None:
        if isinstance(event, Image):
            index = job.index * self._images_per_job + event.image_index + 1
            path = self._output.write(
                event.image_bytes, suffix=event.suffix, index=index, prompt=job.title, seed=event.seed
            )
            if path is not None:
                self._paths[job.index, event.image_index] = path

    def on_error(self, job: Job, error: DarkroomError) -> None:
        """Writes nothing."""

    def written(self) -> list[Path]:
        """The paths of the pictures, in the order of the jobs."""
        return [self._paths[key] for key in sorted(self._paths)]

    def path_of(self, job: Job, event: Event) -> Path | None:
        """The path of an event's picture; None for other events."""
        return self._paths.get((job.index, event.image_index)) if isinstance(event, Image) else None


class PreviewWriter:
    """Writes all previews into a folder, and a contact sheet for each picture."""

    def __init__(self, folder: Path, free: Paths, jobs: int, images_per_job: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._free = folder, free
        self._numbers = (jobs > 1, images_per_job > 1)  # whether names have the job's and the image's number
        self._previews: dict[tuple[int, int], list[Preview]] = defaultdict(list)  # by job and image index
        self._paths: dict[tuple[int, int, int], Path] = {}  # by job, image index and step
        self._sheets: dict[tuple[int, int], Path] = {}  # by job and image index

    def on_event(self, job: Job, event: Event) -> None:
        if isinstance(event, Preview):
            self._previews[job.index, event.image_index].append(event)
            path = self._path(job, event.image_index, f"step-{event.step:03}{event.suffix}")
            self._paths[job.index, event.image_index, event.step] = event.save(path)
        elif isinstance(event, Image) and self._previews[job.index, event.image_index]:
            self._sheets[job.index, event.image_index] = self._save_sheet(job, event)

    def on_error(self, job: Job, error: DarkroomError) -> None:
        """Keeps the files written so far."""

    def written(self) -> list[Path]:
        """The paths of the contact sheets, in the order of the jobs."""
        return [self._sheets[key] for key in sorted(self._sheets)]

    def path_of(self, job: Job, event: Event) -> Path | None:
        """The path of an event's preview; None for other events."""
        return self._paths.get((job.index, event.image_index, event.step)) if isinstance(event, Preview) else None

    def _path(self, job: Job, image: int, end: str) -> Path:
        parts = [f"job-{job.index + 1:02}", f"image-{image + 1:02}"]
        start = "".join(f"{part}-" for part, numbered in zip(parts, self._numbers, strict=True) if numbered)
        return self._free.take(self._folder / f"{start}{end}")

    def _save_sheet(self, job: Job, final: Image) -> Path:
        from darkroom_client.contact_sheet import Tile, contact_sheet

        previews = self._previews.pop((job.index, final.image_index))
        tiles = [Tile(preview.pil, f"step {preview.step}") for preview in previews]
        path = self._path(job, final.image_index, "contact-sheet.png")
        contact_sheet([*tiles, Tile(final.pil, "final")]).save(path)
        return path


class ControlMapWriter:
    """Writes all control maps into a folder."""

    def __init__(self, folder: Path, free: Paths, jobs: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._free = folder, free
        self._numbers_jobs = jobs > 1
        self._paths: dict[tuple[int, int], Path] = {}  # by job and control index

    def on_event(self, job: Job, event: Event) -> None:
        if isinstance(event, ControlImage):
            model = (job.options.get("controls") or [])[event.control_index].model
            start = f"job-{job.index + 1:02}-" if self._numbers_jobs else ""
            path = self._folder / f"{start}control-{event.control_index + 1}-{slug(model)}{event.suffix}"
            self._paths[job.index, event.control_index] = event.save(self._free.take(path))

    def on_error(self, job: Job, error: DarkroomError) -> None:
        """Keeps the files written so far."""

    def written(self) -> list[Path]:
        """The paths of the control maps, in the order of the jobs."""
        return [self._paths[key] for key in sorted(self._paths)]

    def path_of(self, job: Job, event: Event) -> Path | None:
        """The path of an event's control map; None for other events."""
        return self._paths.get((job.index, event.control_index)) if isinstance(event, ControlImage) else None
