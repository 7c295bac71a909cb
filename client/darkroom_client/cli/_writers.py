"""Listeners that write what comes: the pictures, the previews with their contact sheets, the control maps."""

from collections import defaultdict
from pathlib import Path

from darkroom_client.cli._files import Namer, slug
from darkroom_client.cli._jobs import Job
from darkroom_client.errors import DarkroomError
from darkroom_client.events import ControlImage, Event, Image, Preview


class PictureKeeper:
    """Writes each finished picture to its file."""

    def __init__(self, namer: Namer, images_per_job: int) -> None:
        self._namer = namer
        self._images_per_job = images_per_job
        self.paths: dict[tuple[int, int], Path] = {}  # by job and image

    def on_event(self, job: Job, event: Event) -> None:
        if isinstance(event, Image):
            index = job.index * self._images_per_job + event.image_index + 1
            path = self._namer.path(index=index, prompt=job.title, seed=event.seed, suffix=event.suffix)
            self.paths[job.index, event.image_index] = event.save(path)

    def on_error(self, job: Job, error: DarkroomError) -> None:
        """Nothing to write."""

    def written(self) -> list[Path]:
        """The pictures' paths, in the order of the jobs."""
        return [self.paths[key] for key in sorted(self.paths)]

    def path_of(self, job: Job, event: Event) -> Path | None:
        """Where an event's picture was written."""
        return self.paths.get((job.index, event.image_index)) if isinstance(event, Image) else None


class PreviewKeeper:
    """Writes every preview into a folder, and for each picture a contact sheet of its previews."""

    def __init__(self, folder: Path, jobs: int, images_per_job: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._several = (jobs > 1, images_per_job > 1)
        self._previews: dict[tuple[int, int], list[Preview]] = defaultdict(list)  # by job and image
        self.sheets: dict[tuple[int, int], Path] = {}

    def on_event(self, job: Job, event: Event) -> None:
        if isinstance(event, Preview):
            self._previews[job.index, event.image_index].append(event)
            event.save(self._path(job, event))
        elif isinstance(event, Image) and self._previews[job.index, event.image_index]:
            self.sheets[job.index, event.image_index] = self._save_sheet(job, event)

    def on_error(self, job: Job, error: DarkroomError) -> None:
        """What came is kept."""

    def written(self) -> list[Path]:
        """The contact sheets' paths, in the order of the jobs."""
        return [self.sheets[key] for key in sorted(self.sheets)]

    def path_of(self, job: Job, event: Event) -> Path | None:
        """Where an event's preview was written."""
        return self._path(job, event) if isinstance(event, Preview) else None

    def _path(self, job: Job, event: Preview) -> Path:
        return self._folder / f"{self._prefix(job, event.image_index)}step-{event.step:03}{event.suffix}"

    def _prefix(self, job: Job, image: int) -> str:
        parts = [f"job-{job.index + 1:02}", f"image-{image + 1:02}"]
        return "".join(f"{part}-" for part, several in zip(parts, self._several, strict=True) if several)

    def _save_sheet(self, job: Job, final: Image) -> Path:
        from darkroom_client.contact_sheet import Tile, contact_sheet

        previews = self._previews.pop((job.index, final.image_index))
        tiles = [Tile(preview.image, f"step {preview.step}") for preview in previews]
        path = self._folder / f"{self._prefix(job, final.image_index)}contact-sheet.png"
        contact_sheet([*tiles, Tile(final.image, "final")]).save(path)
        return path


class MapKeeper:
    """Writes every control map into a folder."""

    def __init__(self, folder: Path, jobs: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._several = jobs > 1
        self._paths: dict[tuple[int, int], Path] = {}  # by job and control

    def on_event(self, job: Job, event: Event) -> None:
        if isinstance(event, ControlImage):
            model = (job.options.get("controls") or [])[event.control_index].model
            start = f"job-{job.index + 1:02}-" if self._several else ""
            path = self._folder / f"{start}control-{event.control_index + 1}-{slug(model)}{event.suffix}"
            self._paths[job.index, event.control_index] = event.save(path)

    def on_error(self, job: Job, error: DarkroomError) -> None:
        """What came is kept."""

    def written(self) -> list[Path]:
        """The maps' paths, in the order of the jobs."""
        return [self._paths[key] for key in sorted(self._paths)]

    def path_of(self, job: Job, event: Event) -> Path | None:
        """Where an event's map was written."""
        return self._paths.get((job.index, event.control_index)) if isinstance(event, ControlImage) else None
