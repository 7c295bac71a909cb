"""The hooks. Each is asked once, when the server starts, and returns a list of contributions; all lists count, and a
name that two plugins claim is an error at start.

The life of a sample, and who takes part in it:

1. The request is checked: `extensions` against the Parameters of the plugins named, scheduler options against those of
   the scheduler's entry. `Task.canvas` fits its pictures to the working size, preprocessors make its control maps,
   conditioners read its prompts, which the family cuts into tokens; `Task.first_evaluation` says which steps run. The
   batch key is put together from the model, the latents' shape, the prompts' length and the `key` of each KEYED task,
   conditioner and adapter.
2. Its turn comes. The family encodes its prompts, within `Adapter.encoding` of every adapter wanted; then each
   conditioner that wants the request begins, in the order of their names, then the task: it makes the first latents.
3. Each evaluation: the rows of all samples in the batch are put together; `Conditioner.condition` of every conditioner
   wanted adds to it; within `Adapter.applied` of every adapter wanted, `Family.predict` runs. Nothing is changed by
   this: where it fails it is run again on fewer rows, a new evaluation each time, until the one that fails is found,
   and that job alone fails. Where memory is short the rows go on in parts; where it is too short for one row alone,
   `release` of every contribution is called, what is idle is let go of, and that row is tried once more.
4. Each sample by itself: guidance, the scheduler's step, then `Task.after_evaluation`. Generator, scheduler and latents
   are kept only when all three succeeded.
5. Where a preview is wanted, the preview decoder shows the estimate of the clean picture, as `Task.estimate` has it.
6. After the last evaluation `Family.decode` makes the picture (`decode_tiled` where memory is short), the canvas puts
   it back where it belongs, and each finisher finishes it, those with parameters before those without, each in the
   order of their names.

A sample that is cancelled, or fails, is dropped between two of these; nothing is called for it then.
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
    """Classes that know one architecture. When a model is opened, each is asked whether it detects it; two that do are
    an error."""


@hookspec
def darkroom_schedulers() -> Sequence[SchedulerEntry]:  # type: ignore[empty-body]
    """Noise schedulers by name. An alias counts as a name."""


@hookspec
def darkroom_preprocessors() -> Sequence[Preprocessor]:  # type: ignore[empty-body]
    """Functions that make control maps from pictures."""


@hookspec
def darkroom_preview_decoders() -> Sequence[PreviewDecoder]:  # type: ignore[empty-body]
    """Ways to show latents, by preview mode. Built for a model when first needed there."""


@hookspec
def darkroom_tasks() -> Sequence[Task]:  # type: ignore[empty-body]
    """Ways to begin an image and to go on after each step. A request has exactly one, by name."""


@hookspec
def darkroom_conditioners() -> Sequence[Conditioner]:  # type: ignore[empty-body]
    """What adds to the conditioning of rows. Any number takes part in a request."""


@hookspec
def darkroom_adapters() -> Sequence[Adapter]:  # type: ignore[empty-body]
    """What changes a model's components during an evaluation. Any number takes part in a request."""


@hookspec
def darkroom_finishers() -> Sequence[Finisher]:  # type: ignore[empty-body]
    """What changes the decoded picture. Any number takes part in a request."""
