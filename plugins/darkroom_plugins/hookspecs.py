"""The hooks. Each is called once, at server start, and returns a list of contributions; the lists of all plugins are
joined, and a name that two plugins claim is an error at start.

The life of a sample:

1. Planning. `extensions` are validated by the Parameters of the plugins named, scheduler options by those of the
   scheduler's entry. `Task.canvas` fits the pictures to the working size, preprocessors make the control maps,
   conditioners parse the prompts (`read_prompt`), the family tokenises them, `Task.first_evaluation` says where to
   start. The batch key: the model, the latent shape, the prompt length, and the `key` of each KEYED task, conditioner
   and adapter.
2. Begin, before its first evaluation. The family encodes the prompts, within `Adapter.encoding` of each active adapter;
   then `begin` of each active conditioner, in order of name, then of the task, which makes the first latents.
3. Each evaluation. The rows of all samples of the batch are gathered; `Conditioner.condition` of each active
   conditioner adds prompts or residuals; `Family.predict` runs within `Adapter.applied` of each active adapter. This
   changes no sample. After a failure it runs again on fewer rows, a new evaluation each time, until the failing job is
   found; that job alone fails. When out of memory, the rows are split; when one row does not fit, `release` of each
   contribution is called, idle models are evicted, and the row is tried once more.
4. For each sample: classifier-free guidance, the scheduler's step, `Task.after_evaluation`. Generator, scheduler and
   latents are committed together, after all three succeeded.
5. If a preview is due, the preview decoder decodes the clean-image estimate as `Task.estimate` returns it.
6. With a second stage (hires fix) another sample goes on after the last evaluation, as in 2 to 5: that of
   `Request.second_stage`, an `ImageToImage` of another size without an input picture. It was planned as in 1, too; its
   task begins it with `Sample.first_stage`.
7. After the last evaluation `Family.decode` makes the picture, within `Family.tiling` where it would cost too much
   whole; each active inspector inspects it, the canvas restores it to its frame, and each active finisher finishes it:
   those with parameters before those without, each in order of name. `finish` gets the request of the first stage,
   `inspect` samples of the last.

A contribution is active if its `wants` says so. A sample that is cancelled or fails is dropped between two of these
calls; nothing is called for it then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from darkroom_plugins.contract import (
        Adapter,
        Conditioner,
        Family,
        Finisher,
        Preprocessor,
        PreviewDecoder,
        SchedulerEntry,
        Task,
    )

hookspec = pluggy.HookspecMarker("darkroom")


@hookspec
def darkroom_families() -> Sequence[type[Family]]:  # type: ignore[empty-body]
    """Model architectures. `detect` of each is called for a model that is opened; more than one match is an error."""


@hookspec
def darkroom_schedulers() -> Sequence[SchedulerEntry]:  # type: ignore[empty-body]
    """Noise schedulers. Aliases share one namespace with names."""


@hookspec
def darkroom_preprocessors() -> Sequence[Preprocessor]:  # type: ignore[empty-body]
    """Functions from a picture to a control map."""


@hookspec
def darkroom_preview_decoders() -> Sequence[PreviewDecoder]:  # type: ignore[empty-body]
    """Decoders of clean-image estimates for previews, one for each preview mode. Built at a model's first preview."""


@hookspec
def darkroom_tasks() -> Sequence[Task]:  # type: ignore[empty-body]
    """Tasks: initial latents, and changes after each step. A request has exactly one, by name."""


@hookspec
def darkroom_conditioners() -> Sequence[Conditioner]:  # type: ignore[empty-body]
    """Conditioners: prompt embeddings, residuals and arguments of rows. Any number in a request."""


@hookspec
def darkroom_adapters() -> Sequence[Adapter]:  # type: ignore[empty-body]
    """Adapters: changes of a model's components for one evaluation. Any number in a request."""


@hookspec
def darkroom_finishers() -> Sequence[Finisher]:  # type: ignore[empty-body]
    """Finishers: changes of the decoded picture. Any number in a request."""
