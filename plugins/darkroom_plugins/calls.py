"""Calls methods of contributions and validates their results.

A method that raises or returns an invalid result fails with `PluginFailed`, which names plugin, hook and exception. A
conditioner gets the rows of its own samples only. Writes into tensors that evaluations share are detected by torch's
version counters, before the tensors are used.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from darkroom_plugins.contract import BatchContract, Conditioner
from darkroom_plugins.errors import DarkroomError, PluginFailed, is_device_lost, is_out_of_memory
from darkroom_plugins.sample import Evaluation, Picture, PromptEmbedding, PromptPiece, Sample
from darkroom_plugins.tensors import constant

if TYPE_CHECKING:
    from darkroom_plugins.canvas import Canvas
    from darkroom_plugins.contract import (
        Adapter,
        Assets,
        Contribution,
        Family,
        Finisher,
        Inspector,
        Participant,
        Preprocessor,
        Task,
    )
    from darkroom_plugins.request import Pixels, Request

log = logging.getLogger(__name__)

SLOW_SECONDS = 1.0  # a slower hook is logged, once
MAX_LINE = 200  # characters of an exception's first line
ADDRESS, PATH = re.compile(r"0x[0-9a-fA-F]{4,}"), re.compile(r"(?:/[\w.+~-]+)+/([\w.+~-]+)")

_slow: set[tuple[str, str]] = set()
_running: dict[object, Call] = {}


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a plugin's hook."""

    plugin: str
    hook: str
    began: float  # time.monotonic
    thread: int  # threading.get_ident


def running() -> list[Call]:
    """The calls that have not returned yet, of all threads."""
    return list(_running.values())


@contextlib.contextmanager
def calling(contribution: Any, hook: str, timed: bool = True) -> Iterator[None]:
    """Context manager around a call of this hook of a contribution or family. One that takes over a second is logged,
    once; `timed` is false for hooks that usually do.

    :raises PluginFailed: for any exception but a DarkroomError, out of memory and a lost device
    """
    token, began = object(), time.monotonic()
    _running[token] = Call(_owner(contribution), hook, began, threading.get_ident())
    try:
        yield
    except DarkroomError:
        raise
    except BaseException as error:  # SystemExit, too: it fails one job, not the server
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        raise failure(contribution, hook, f"{type(error).__name__}: {_first_line(error)}") from error
    finally:
        del _running[token]
        key, seconds = (_owner(contribution), hook), time.monotonic() - began
        if timed and seconds > SLOW_SECONDS and key not in _slow:
            _slow.add(key)
            log.warning("the plugin %r took long in %s, %.1f s, in which others waited", *key, seconds)


def failure(contribution: Any, hook: str, exception: str) -> PluginFailed:
    """The error of a hook; `exception` is for instance ``"ValueError: too few rows"``."""
    plugin = _owner(contribution)
    message = f"the plugin {plugin!r} failed in {hook}: {exception}"
    return PluginFailed(message, contribution, plugin=plugin, hook=hook, exception=exception)


def parameters_of(contribution: Any, request: Request) -> Any:
    """The instance of a contribution's `Parameters` that the client sent, or None."""
    return request.extensions.get(contribution.plugin) if contribution.Parameters else None


def tiling(model: Family, request: Request) -> contextlib.AbstractContextManager[None] | None:
    """The context manager in which the model encodes and decodes pictures of the request's size in tiles; None where it
    cannot, or needs not."""
    with calling(model, "tiling"):
        return model.tiling(request.width, request.height)


def wants(participant: Participant, request: Request) -> bool:
    """Whether it takes part in a request."""
    with calling(participant, "wants"):
        return bool(participant.wants(request, parameters_of(participant, request)))


def canvas(task: Task, request: Request) -> Canvas:
    """The task's pictures to work from."""
    with calling(task, "canvas"):
        return task.canvas(request, parameters_of(task, request))


def first_evaluation(task: Task, request: Request, scheduler: Any) -> int:
    """The index among the scheduler's timesteps at which the task begins."""
    with calling(task, "first_evaluation"):
        first = task.first_evaluation(request, scheduler.timesteps, scheduler.order, parameters_of(task, request))
        if not 0 <= first <= len(scheduler.timesteps):
            raise ValueError(f"it begins with evaluation {first} of {len(scheduler.timesteps)}")
    return first


def read_prompt(
    conditioners: Sequence[Conditioner], request: Request, assets: Assets, text: str
) -> tuple[PromptPiece, ...]:
    """A prompt's text as the conditioners read it, one after the other."""
    pieces: tuple[PromptPiece, ...] = (PromptPiece(text),)
    for conditioner in conditioners:
        with calling(conditioner, "read_prompt"):
            pieces = conditioner.read_prompt(pieces, request, assets, parameters_of(conditioner, request))
    return pieces


@contextlib.contextmanager
def encoding(sample: Sample) -> Iterator[None]:
    """Context manager: the sample's adapters are applied to the text encoders."""
    with contextlib.ExitStack() as stack:
        for adapter in sample.adapters:
            parameters = parameters_of(adapter, sample.request)
            _enter(stack, adapter, "encoding", partial(adapter.encoding, sample, parameters))
        yield


def begin(sample: Sample) -> None:
    """Call `begin` of conditioners and task on a sample that has its prompt embeddings."""
    if any(map(_changes_rows, sample.conditioners)):  # copies: cached embeddings are shared
        sample.rows = tuple(map(_copied, sample.rows))
    for conditioner in sample.conditioners:
        before = sample.rows
        with calling(conditioner, "begin"):
            conditioner.begin(sample, parameters_of(conditioner, sample.request))
            _check_rows(sample.rows, before)
    task, shape = sample.task, (1, *sample.model.latent_shape(sample.request.width, sample.request.height))
    with calling(task, "begin"):
        task.begin(sample, parameters_of(task, sample.request))
        _check("latents", sample.latents, shape, sample.model.dtype)
        if sample.extra_channels is not None:
            extra = sample.extra_channels
            _check("extra channels", extra, (1, extra.shape[1], *shape[2:]), sample.model.dtype)


def condition(conditioner: Conditioner, evaluation: Evaluation) -> None:
    """Call `condition` on the conditioner's rows of an evaluation, and merge the result into it."""
    indices = [index for index, row in enumerate(evaluation.rows) if conditioner in row.sample.conditioners]
    if not indices or type(conditioner).condition is Conditioner.condition:
        return
    part = evaluation.select(indices)
    shared = replace(part)
    watch = _Watch([part.latents, part.timesteps, part.prompts, part.extra_channels, *_hidden(part)])
    with calling(conditioner, "condition"):
        conditioner.condition(part, [parameters_of(conditioner, row.sample.request) for row in part.rows])
        watch.refuse_writes(evaluation)
        _check_part(conditioner, part, shared)
        _merge(evaluation, part, shared, indices)


@contextlib.contextmanager
def adapted(adapters: Sequence[Adapter], model: Family, evaluation: Evaluation) -> Iterator[None]:
    """Context manager: these adapters are applied to a model, for an evaluation."""
    watch = _Watch([evaluation.latents, evaluation.prompts, evaluation.timesteps, *_hidden(evaluation)])
    with contextlib.ExitStack() as applied:
        for adapter in adapters:
            parameters = [
                parameters_of(adapter, row.sample.request) if adapter in row.sample.adapters else None
                for row in evaluation.rows
            ]
            _enter(applied, adapter, "applied", partial(adapter.applied, model, evaluation, parameters))
            with calling(adapter, "applied"):
                watch.refuse_writes(evaluation)
        yield
    for adapter in adapters:
        with calling(adapter, "applied"):
            watch.refuse_writes(evaluation)


def predict(model: Family, evaluation: Evaluation) -> torch.Tensor:
    """The denoiser's output for each row: (rows, channels, h, w)."""
    with calling(model, "predict", timed=False):
        output = model.predict(evaluation)
        if output.shape != evaluation.latents.shape:
            raise ValueError(f"its output is of shape {tuple(output.shape)}, not {tuple(evaluation.latents.shape)}")
    return output


def after_evaluation(sample: Sample, latents: torch.Tensor) -> torch.Tensor:
    """The latents after the scheduler's step, as the sample's task returns them."""
    with calling(sample.task, "after_evaluation"):
        made = sample.task.after_evaluation(sample, latents, parameters_of(sample.task, sample.request))
        if made is not latents:
            _check("latents", made, tuple(latents.shape), latents.dtype)
    return made


def inspect(inspector: Inspector, samples: Sequence[Sample], pictures: Sequence[Pixels]) -> Sequence[Any]:
    """A finding for each picture."""
    with calling(inspector, "inspect", timed=False):
        found = inspector.inspect(samples, pictures)
        if len(found) != len(pictures):
            raise ValueError(f"{len(found)} findings in {len(pictures)} pictures")
    return found


def finish(finisher: Finisher, picture: Picture, request: Request) -> Picture:
    """The finished picture."""
    with calling(finisher, "finish"):
        made = finisher.finish(picture, request, parameters_of(finisher, request))
        if not isinstance(made, Picture):
            raise TypeError(f"it gave {type(made).__name__}, not a Picture")
        pixels = made.pixels
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
            raise ValueError("its picture is not (height, width, 3) uint8")
    return made


def preprocess(preprocessor: Preprocessor, pixels: Pixels, options: Any) -> Pixels:
    """The preprocessor's control map of a picture, both (height, width, 3) uint8."""
    with calling(preprocessor, "run"):
        made = preprocessor.run(pixels, options)
        if made.shape != pixels.shape or made.dtype != pixels.dtype:
            raise ValueError(f"it made {made.shape} {made.dtype} of {pixels.shape}")
    return made


class _Watch:
    """Detects writes into tensors by their version counters."""

    def __init__(self, tensors: Sequence[torch.Tensor | None]) -> None:
        counting = [each for each in tensors if each is not None and not each.is_inference()]
        self._versions = [(each, each._version) for each in counting]

    def refuse_writes(self, evaluation: Evaluation) -> None:
        """:raises ValueError: one was written into; what the evaluation's batch shares is made again then"""
        if any(tensor._version != version for tensor, version in self._versions):
            evaluation.batch_cache.clear()
            raise ValueError("it wrote into a tensor that other evaluations share")


def _enter(
    stack: contextlib.ExitStack,
    adapter: Adapter,
    hook: str,
    open_: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Enter an adapter's context until the stack is closed; both ends are calls of the hook."""
    with calling(adapter, hook):
        context = open_()
        context.__enter__()

    def leave(*exception: Any) -> None:
        with calling(adapter, hook):
            context.__exit__(*exception)

    stack.push(leave)


def _hidden(evaluation: Evaluation) -> list[torch.Tensor]:
    return [row.prompt.hidden for row in evaluation.rows]


def _changes_rows(conditioner: Conditioner) -> bool:
    own = type(conditioner)
    return own.begin is not Conditioner.begin or own.condition is not Conditioner.condition


def _copied(prompt: PromptEmbedding) -> PromptEmbedding:
    with torch.inference_mode(False), torch.no_grad():  # tensors with version counters
        pooled = prompt.pooled.clone() if prompt.pooled is not None else None
        return replace(prompt, hidden=prompt.hidden.clone(), pooled=pooled)


def _check_rows(rows: Sequence[PromptEmbedding], before: Sequence[PromptEmbedding]) -> None:
    if len(rows) != len(before):
        raise ValueError(f"it left {len(rows)} rows of {len(before)}")
    for row, own in zip(rows, before, strict=True):
        if row is not own:
            _check("prompts", row.hidden, tuple(own.hidden.shape), own.hidden.dtype)


def _check_part(conditioner: Conditioner, part: Evaluation, shared: Evaluation) -> None:
    for name in ("rows", "latents", "timesteps", "extra_channels"):
        if getattr(part, name) is not getattr(shared, name):
            raise ValueError(f"it put others in the place of {name}")
    if part.prompts is not shared.prompts:
        _check("prompts", part.prompts, tuple(shared.prompts.shape), shared.prompts.dtype)
    if part.residuals is not None:
        shapes: Sequence[Sequence[int]] = part.residual_shapes or [each.shape for each in part.residuals]
        if len(part.residuals) != len(shapes):
            raise ValueError(f"it added {len(part.residuals)} residuals; the denoiser takes {len(shapes)}")
        for each, shape in zip(part.residuals, shapes, strict=True):
            _check("residuals", each, shape, each.dtype)
    if part.arguments and conditioner.contract is BatchContract.ROW_WISE:
        raise ValueError("arguments are for all rows of a batch: its contract must be KEYED or SOLO")


def _check(name: str, tensor: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """:raises ValueError: it is not of this shape and dtype or, on a CPU, has values that are not finite"""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"its {name} are of shape {tuple(tensor.shape)}, not {tuple(shape)}")
    if tensor.dtype != dtype or not dtype.is_floating_point:
        raise ValueError(f"its {name} are {tensor.dtype}, not {dtype}")
    if tensor.device.type == "cpu" and not tensor.isfinite().all():  # on a device it would synchronise
        raise ValueError(f"its {name} have values that are not finite")


def _merge(whole: Evaluation, part: Evaluation, shared: Evaluation, indices: Sequence[int]) -> None:
    """Merge the evaluation of some rows, as a conditioner changed it, into that of all."""
    whole.arguments.update(part.arguments)
    if len(indices) == len(whole.rows):
        if part.prompts is not shared.prompts:
            whole.prompts = part.prompts
        if part.residuals is not None:
            whole.add_residuals(part.residuals)
        return
    where = constant(indices, whole.latents.device)
    if part.prompts is not shared.prompts:
        with torch.inference_mode(False), torch.no_grad():  # as tensors that count writes
            whole.prompts = whole.prompts.index_copy(0, where, part.prompts)
    if part.residuals is not None:
        spread = (each.new_zeros(len(whole.rows), *each.shape[1:]) for each in part.residuals)
        whole.add_residuals(
            [zeros.index_copy_(0, where, each) for zeros, each in zip(spread, part.residuals, strict=True)]
        )


def _owner(contribution: Contribution | Any) -> str:
    return str(contribution.plugin or contribution.name)


def _first_line(error: BaseException) -> str:
    """The first line of an exception's message; clients see no addresses and no folders."""
    try:
        line = str(error).strip().partition("\n")[0]
    except Exception:
        return ""
    return PATH.sub(r"…/\1", ADDRESS.sub("0x…", line))[:MAX_LINE]
