"""Counts the steps done of all steps of a run."""


class StepCount:
    """The steps of a run's jobs. All have the same options: a job not accepted yet counts as the longest known one."""

    def __init__(self, jobs: int, images_per_job: int) -> None:
        self.jobs = jobs
        self.done = 0
        self._images_per_job = images_per_job
        self._steps: dict[int, int] = {}  # of accepted jobs, all images together, by job
        self._done: dict[int, dict[int, int]] = {}  # by job and image index
        self._known = 0  # the sum of `_steps`
        self._longest = 0  # the greatest of `_steps`

    @property
    def total(self) -> int | None:
        """Steps of all jobs; None: no job is accepted yet."""
        unknown = self.jobs - len(self._steps)
        return self._known + unknown * self._longest if self._longest else None

    def of(self, job: int) -> tuple[int, int | None]:
        """A job's steps done, and of how many; None: it is not accepted yet."""
        return sum(self._done.get(job, {}).values()), self._steps.get(job)

    def accept(self, job: int, step_count: int) -> None:
        """Notes the steps of each image of a job."""
        self._set(job, step_count * self._images_per_job)
        self._longest = max(self._longest, self._steps[job])

    def step(self, job: int, image: int, step: int) -> None:
        """Notes the newest step of an image, which may be one of before, after a restart."""
        images = self._done.setdefault(job, {})
        self.done += step - images.get(image, 0)
        images[image] = step

    def give_up(self, job: int) -> None:
        """Expects no more steps of a job."""
        self._set(job, self.of(job)[0])

    def _set(self, job: int, steps: int) -> None:
        self._known += steps - self._steps.get(job, 0)
        self._steps[job] = steps
