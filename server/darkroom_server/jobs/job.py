"""A job, the steps it takes, and the seats that its samples have in the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from darkroom_plugins.contract import BatchContract
from darkroom_plugins.sample import Sample
from darkroom_server.jobs.events import Timings
from darkroom_server.jobs.mailbox import Mailbox

if TYPE_CHECKING:
    import torch

    from darkroom_plugins.canvas import Canvas
    from darkroom_plugins.contract import Adapter, Conditioner, Finisher, PromptKey, Task
    from darkroom_plugins.request import Pixels, Request
    from darkroom_server.models.assets import ModelAssets
    from darkroom_server.models.model import Model
    from darkroom_server.models.residency import Key
    from darkroom_server.schedulers.tables import Table


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Steps:
    """The evaluations of one image, and which of them end a step that the user asked for."""

    timesteps: torch.Tensor  # (evaluations,), on the CPU
    first: int  # the evaluation to begin with
    ends: dict[int, int]  # evaluation to step, from 1
    begins: dict[int, int]  # step to its first evaluation

    @property
    def count(self) -> int:
        """How many steps the user sees."""
        return len(self.ends)


def count_steps(timesteps: torch.Tensor, first: int, order: int, num_inference_steps: int) -> Steps:
    """The steps of a scheduler that evaluates `order` times a step, counted as the progress bar of diffusers'
    pipelines counts them: evaluations that are too many come before the first step."""
    evaluations = len(timesteps) - first
    warmup = evaluations - (num_inference_steps - first // order) * order
    done = [i for i in range(evaluations) if i == evaluations - 1 or (i + 1 > warmup and (i + 1) % order == 0)]
    begins = [0, *(i + 1 for i in done[:-1])]
    return Steps(
        timesteps,
        first,
        ends={first + i: step for step, i in enumerate(done, 1)},
        begins={step: first + i for step, i in enumerate(begins, 1)},
    )


@dataclass(slots=True, eq=False)
class Plan:
    """Who makes a job's images, and how: everything that is known before its turn comes."""

    model: Model
    task: Task
    conditioners: tuple[Conditioner, ...]
    adapters: tuple[Adapter, ...]
    finishers: tuple[tuple[Finisher, Any], ...]  # each with its parameters
    scheduler: Any  # a diffusers scheduler with its timesteps set; each sample gets a copy
    steps: Steps
    prompts: tuple[PromptKey, ...]  # of each sample's rows
    canvas: Canvas
    controls: tuple[Pixels, ...]  # the map of each of the request's controls
    assets: ModelAssets
    needs: tuple[Key, ...]  # what must be resident
    table: Table = field(default_factory=dict)  # of the scheduler

    @property
    def held_bytes(self) -> int:
        """What its pictures take in memory, which they do while it waits."""
        frame, image = self.canvas.frame, self.canvas.image
        pixels = sum(each.nbytes for each in self.controls)
        return pixels + (image.nbytes if image is not None else 0) + (6 * frame.width * frame.height if frame else 0)

    def batch_key(self, request: Request) -> tuple[Hashable, ...]:
        """What must be equal to share an evaluation. Its last item says whether a sample is to be alone."""
        parts = (self.task, *self.conditioners, *self.adapters)
        solo = request.deterministic or any(p.contract is BatchContract.SOLO for p in parts)
        keys = tuple((p.name, p.key(request)) for p in parts if p.contract is BatchContract.KEYED)
        return (self.model.name, request.width, request.height, self.prompts[0].length, keys, solo)


@dataclass(slots=True, eq=False)
class Job:
    """The work of one RPC. The engine's thread owns what is below the line."""

    request_id: str
    token: str = field(repr=False)  # that it was started with; ids are looked up with it
    arrived: float  # time.monotonic
    held_bytes: int  # of its message, and once it is planned of its pictures
    mailbox: Mailbox = field(default_factory=Mailbox)
    request: Request = field(init=False)  # this and the plan are set before the job is submitted
    plan: Plan = field(init=False)
    load_seconds: float = 0.0
    acquired: tuple[Key, ...] = ()  # what is to be released when it has ended
    waiting: asyncio.Task[None] | None = None  # for what it needs
    # ---
    started: float | None = None
    seats_left: int = 0
    swaps: int = 0  # of its model's placement, when it started
    position: int | None = None  # in the queue, as the client was told last
    ended: bool = False
    warnings: list[str] = field(default_factory=list)
    encode_prompt_seconds: float = 0.0
    decode_seconds: float = 0.0

    def timings(self, now: float) -> Timings:
        """Where the time went, at the end."""
        started = self.started or now
        busy = self.encode_prompt_seconds + self.decode_seconds
        return Timings(
            queue=started - self.arrived - self.load_seconds,
            load=self.load_seconds,
            encode_prompt=self.encode_prompt_seconds,
            denoise=max(0.0, now - started - busy),
            decode=self.decode_seconds,
        )


@dataclass(slots=True, eq=False)
class Seat:
    """A sample's place in the engine."""

    job: Job
    index: int
    sample: Sample | None = None  # None until its turn comes
    began: float = 0.0  # time.monotonic at its first evaluation
    previewed: float = float("-inf")  # the same at its last preview
    evaluations: int = 0  # under offload: of its lane since other networks than the denoiser had their turn
    denoiser_stays: bool = False  # under offload: this tick brings no other network to the device

    @property
    def rows(self) -> int:
        """How many rows it takes in the next batch."""
        if self.sample is None or self.sample.done:
            return len(self.job.plan.prompts)
        return len(self.sample.conditions)
