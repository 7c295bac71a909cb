"""A listener that writes each picture as it develops, for --animate."""

from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from darkroom_client.animation import save_animation
from darkroom_client.cli._files import Namer
from darkroom_client.cli._jobs import Job
from darkroom_client.errors import DarkroomError
from darkroom_client.events import Event, Image, Preview


class AnimationWriter:
    """Writes animations while its context is entered, in a thread: the jobs' streams are read meanwhile."""

    def __init__(self, namer: Namer, images_per_job: int) -> None:
        self._namer = namer
        self._images_per_job = images_per_job
        self._previews: dict[tuple[int, int], list[Preview]] = defaultdict(list)  # by job and image index
        self._files: dict[tuple[int, int], Future[Path]] = {}  # by job and image index
        self._encoder = ThreadPoolExecutor(1)
        self.still: list[str] = []  # titles of the jobs whose pictures had no previews

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._encoder.shutdown(cancel_futures=error is not None)

    def on_event(self, job: Job, event: Event) -> None:
        if isinstance(event, Preview):
            self._previews[job.index, event.image_index].append(event)
        elif isinstance(event, Image):
            previews = self._previews.pop((job.index, event.image_index), [])
            if not previews:
                self.still.append(job.title)
                return
            index = job.index * self._images_per_job + event.image_index + 1
            path = self._namer.path(index=index, prompt=job.title, seed=event.seed, suffix=".webp")
            written = self._encoder.submit(save_animation, path, previews, event)
            self._files[job.index, event.image_index] = written

    def on_error(self, job: Job, error: DarkroomError) -> None:
        """Writes nothing."""

    def written(self) -> dict[tuple[int, int], Path]:
        """The paths of the animations by job and image index, in the order of the jobs. Waits until they are written.

        :raises OSError: if one could not be.
        """
        return {key: self._files[key].result() for key in sorted(self._files)}
