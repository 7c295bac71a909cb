"""Unit tests of contributions: without a server, on a tiny model of random weights, in a fraction of a second.

    from darkroom_plugins.testing import make

    def test_tint() -> None:
        tinted = make(Tint(), parameters=Tint.Parameters(amount=0.5))
        assert (tinted.pixels != make().pixels).any()

Contributions are called and validated as in the server (see `calls.py`): one that raises or returns an invalid result
fails with `PluginFailed`. The sample shares its batch with a plain one, whose picture must not change.
Preprocessors have `preprocess`.

The model has latents (1, 4, 16, 16), pictures of 32 x 32 pixels, prompts (1, 8, 16), and a denoiser `unet` with one
cross-attention and three residuals: (rows, 8, 16, 16), (rows, 16, 8, 8), (rows, 16, 8, 8).
"""

from __future__ import annotations

import copy
import functools
import inspect
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from darkroom_plugins import calls
from darkroom_plugins.calls import preprocess
from darkroom_plugins.contract import (
    Adapter,
    AssetKind,
    Conditioner,
    Family,
    Finisher,
    Inspector,
    ModelInfo,
    PromptReader,
    SchedulerEntry,
    Task,
)
from darkroom_plugins.request import EditChoice, OutputOptions, Pixels, PreviewOptions, Request, SchedulerChoice
from darkroom_plugins.sample import (
    BatchCache,
    Evaluation,
    Picture,
    PromptEmbedding,
    Row,
    Sample,
    own_prompts,
)

__all__ = ["Made", "TinyModel", "make", "preprocess"]

SIZE, FACTOR, CHANNELS, TOKENS, WIDTH = 32, 2, 4, 8, 16
SCHEDULER = "tiny"


@dataclass(frozen=True, slots=True)
class Made:
    """The result of `make`."""

    latents: torch.Tensor  # (1, 4, 16, 16), clean
    pixels: np.ndarray[Any, Any]  # (height, width, 3) uint8, finished
    picture: Picture  # with its metadata and findings
    evaluations: int  # of the denoiser
    sample: Sample


def make(
    *contributions: Any,
    parameters: Any = None,
    prompt: str = "a fox",
    seed: int = 1,
    num_inference_steps: int = 4,
    guidance_scale: float = 3.0,
    image: Pixels | None = None,
    edit: EditChoice | None = None,
    assets: Mapping[tuple[AssetKind, str], Any] | None = None,
    **request: Any,
) -> Made:
    """Make a picture with these contributions of one plugin: at most one task and one scheduler entry, any number of
    others. `parameters`: an instance of their `Parameters`; `assets`: results of `load_asset` by kind and name;
    `request`: any other field of `Request`.

    :raises PluginFailed: a contribution raised, or returned an invalid result
    :raises AssertionError: it changed the picture of another sample of the batch, or is not active in the request
    """
    task = next((each for each in contributions if isinstance(each, Task)), _FromNoise())
    entry = next((each for each in contributions if isinstance(each, SchedulerEntry)), ENTRY)
    extensions = {}
    for each in contributions:
        if getattr(each, "Parameters", None) and not isinstance(each, SchedulerEntry):
            each.plugin = "tested"
            extensions = {"tested": parameters} if parameters is not None else {}
    tested_request = Request(
        request_id="tested",
        task=task.name,
        model="tiny",
        prompt=prompt,
        negative_prompt=None,
        width=request.pop("width", SIZE),
        height=request.pop("height", SIZE),
        num_images=1,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=0.0,
        clip_skip=0,
        eta=0.0,
        seed=seed,
        scheduler=request.pop("scheduler", SchedulerChoice(name=entry.name)),
        preview=PreviewOptions(mode="off"),
        output=OutputOptions(),
        extensions=extensions,
        image=image,
        edit=edit,
        **request,
    )
    wanted = [each for each in contributions if isinstance(each, Conditioner | Adapter | Finisher)]
    for each in wanted:
        assert calls.wants(each, tested_request), f"{each.name} does not want this request"
    kept = _Assets(assets or {})
    sample = _sample(tested_request, task, entry, wanted, kept)
    made, beside = _denoise([sample, _neighbour(tested_request)])
    _, alone = _denoise([_neighbour(tested_request), _neighbour(tested_request)])
    assert torch.allclose(beside, alone, atol=1e-5), "another sample of the batch got another picture"
    return _finished(sample, made, wanted)


def _finished(sample: Sample, latents: torch.Tensor, wanted: Sequence[Any]) -> Made:
    shown = (sample.model.decode(latents)[0] * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0)
    pixels = (shown * 255).round().to(torch.uint8).numpy()
    findings = {each.name: calls.inspect(each, [sample], [pixels])[0] for each in wanted if isinstance(each, Inspector)}
    picture = Picture(sample.canvas.restore(pixels), sample.seed, findings=findings)
    for each in wanted:
        if isinstance(each, Finisher):
            picture = calls.finish(each, picture, sample.request)
    return Made(latents, picture.pixels, picture, sample.evaluation - sample.first, sample)


def _neighbour(request: Request) -> Sample:
    """A plain sample, for the same batch."""
    plain = replace(request, prompt="a stranger", extensions={}, seed=2, image=None, edit=None)
    return _sample(plain, _FromNoise(), ENTRY, (), _Assets({}))


def _sample(request: Request, task: Task, entry: SchedulerEntry, wanted: Iterable[Any], assets: _Assets) -> Sample:
    model, wanted = tiny_model(), list(wanted)
    conditioners = tuple(each for each in wanted if isinstance(each, Conditioner))
    with calls.calling(entry, "build"):
        scheduler = entry.build(model.scheduler_config, request.scheduler)
        scheduler.set_timesteps(request.num_inference_steps)
    first = calls.first_evaluation(task, request, scheduler)
    read = functools.partial(calls.read_prompt, conditioners, request, assets)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    sample = Sample(
        request=request,
        index=0,
        model=model,
        task=task,
        conditioners=conditioners,
        adapters=tuple(each for each in wanted if isinstance(each, Adapter)),
        scheduler=scheduler,
        timesteps=scheduler.timesteps,
        canvas=calls.canvas(task, request),
        assets=assets,
        generator=torch.Generator().manual_seed(request.seed),
        controls=tuple(control.image for control in request.controls if control.image is not None),
        first=first,
        evaluation=first,
        rows=tuple(model.encode_prompts(model.prompt_keys(request, read))),
    )
    with torch.inference_mode():
        calls.begin(sample)
    return sample


@torch.inference_mode()
def _denoise(samples: Sequence[Sample]) -> list[torch.Tensor]:
    """The clean latents of each; samples that are not done share their batches."""
    while running := [sample for sample in samples if not sample.done]:
        outputs = iter(_evaluate(running).split(1))
        for sample in running:
            rows = [next(outputs) for _ in sample.conditions]
            guided = rows[0] if len(rows) == 1 else rows[0] + sample.request.guidance_scale * (rows[1] - rows[0])
            scheduler = copy.deepcopy(sample.scheduler)
            taken = inspect.signature(scheduler.step).parameters
            generator = {"generator": sample.generator} if "generator" in taken else {}
            stepped = scheduler.step(guided, sample.timestep, sample.latents, **generator).prev_sample
            sample.scheduler = scheduler
            sample.latents = calls.after_evaluation(sample, stepped)
            sample.evaluation += 1
    return [sample.latents for sample in samples]


def _evaluate(samples: Sequence[Sample]) -> torch.Tensor:
    rows = [
        Row(sample, prompt, unconditional=len(sample.conditions) == 2 and n == 0)
        for sample in samples
        for n, prompt in enumerate(sample.conditions)
    ]
    cache = BatchCache()
    scaled = [row.sample.scheduler.scale_model_input(row.sample.latents, row.sample.timestep) for row in rows]
    evaluation = Evaluation(
        rows,
        torch.cat(scaled),
        torch.tensor([float(row.sample.timestep) for row in rows]),
        prompts=own_prompts(rows, cache),
        batch_cache=cache,
    )
    for conditioner in {each.name: each for sample in samples for each in sample.conditioners}.values():
        calls.condition(conditioner, evaluation)
    adapters = list({each.name: each for sample in samples for each in sample.adapters}.values())
    with calls.adapted(adapters, samples[0].model, evaluation):
        return calls.predict(samples[0].model, evaluation)


@dataclass(frozen=True, slots=True)
class _Assets:
    values: Mapping[tuple[AssetKind, str], Any] = field(default_factory=dict)

    def names(self, kind: AssetKind) -> Sequence[str]:
        return sorted(name for each, name in self.values if each == kind)

    def get(self, kind: AssetKind, name: str) -> Any:
        return self.values[kind, name]


class _FromNoise(Task):
    name = "tiny"
    rpcs = ("Generate",)

    def begin(self, sample: Sample, parameters: None) -> None:
        noise = torch.randn(1, CHANNELS, SIZE // FACTOR, SIZE // FACTOR, generator=sample.generator)
        sample.latents = noise * sample.scheduler.init_noise_sigma


class _Scheduler:
    """DDIM at eta 0 (Song et al. 2020) with a linear signal rate, in diffusers' interface."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.timesteps = torch.empty(0)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **options: Any) -> _Scheduler:
        return cls()

    def set_timesteps(self, count: int) -> None:
        self.timesteps = torch.linspace(1000, 0, count + 1)[:-1]

    def scale_model_input(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return latents

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        signal = (1 - timesteps.view(-1, 1, 1, 1) / 1001) ** 0.5
        return signal * latents + (1 - signal**2) ** 0.5 * noise

    def step(self, output: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> Any:
        now, following = float(timestep), float(timestep) - 1000 / len(self.timesteps)
        signal, after = (max(0.0, 1 - each / 1001) ** 0.5 for each in (now, max(following, 0.0)))
        clean = (latents - (1 - signal**2) ** 0.5 * output) / signal
        return SimpleNamespace(prev_sample=after * clean + (1 - after**2) ** 0.5 * output, pred_original_sample=clean)


ENTRY = SchedulerEntry(name=SCHEDULER, scheduler=_Scheduler)


class _Attention(nn.Module):
    """Cross-attention with the names of diffusers' `Attention`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_out = nn.Linear(width, width), nn.Linear(width, width)
        self.to_k, self.to_v = nn.Linear(WIDTH, width), nn.Linear(WIDTH, width)

    def forward(self, hidden: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        positions = hidden.flatten(2).transpose(1, 2)  # (rows, positions, width)
        attended = nn.functional.scaled_dot_product_attention(
            self.to_q(positions), self.to_k(prompts), self.to_v(prompts)
        )
        made: torch.Tensor = self.to_out(attended)
        return hidden + made.transpose(1, 2).view_as(hidden)


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(CHANNELS, 8, 3, padding=1)
        self.time = nn.Linear(2, 8)
        self.down = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.attn2 = _Attention(16)
        self.mid = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.Conv2d(16, 8, 3, padding=1)
        self.conv_out = nn.Conv2d(8, CHANNELS, 3, padding=1)

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompts: torch.Tensor,
        residuals: Sequence[torch.Tensor | int] = (0, 0, 0),
    ) -> torch.Tensor:
        angles = timesteps / 300
        time = self.time(torch.stack([angles.sin(), angles.cos()], dim=1))[:, :, None, None]
        outer = torch.tanh(self.conv_in(latents) + time)
        inner = self.attn2(torch.tanh(self.down(outer)), prompts)
        middle = torch.tanh(self.mid(inner)) + residuals[2]
        raised = nn.functional.interpolate(self.up(middle + inner + residuals[1]), scale_factor=2)
        made: torch.Tensor = self.conv_out(torch.tanh(raised + outer + residuals[0]))
        return made


class _Prompt(NamedTuple):
    text: str
    length: int = TOKENS


class TinyModel(Family):
    """The model of `make`."""

    name = "tiny"
    info = ModelInfo(
        family="tiny",
        prediction_type="epsilon",
        size_factor=FACTOR,
        default_width=SIZE,
        default_height=SIZE,
        max_clip_skip=0,
    )
    scheduler_config: Mapping[str, Any] = {}
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = _UNet().eval().requires_grad_(False)
            self._colours = torch.randn(3, CHANNELS) / CHANNELS**0.5
        self.meta_components = self.components = {"unet": network}

    @classmethod
    def detect(cls, model_index: Mapping[str, Any]) -> bool:
        return False

    @classmethod
    def describe(cls, files: Any) -> ModelInfo:
        return cls.info

    @classmethod
    def open(cls, files: Any, device: torch.device, dtype: torch.dtype) -> TinyModel:
        return cls()

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return CHANNELS, height // FACTOR, width // FACTOR

    def prompt_keys(self, request: Request, read: PromptReader) -> tuple[Any, ...]:
        texts = [request.negative_prompt or "", request.prompt] if request.guided else [request.prompt]
        return tuple(_Prompt("".join(piece.text for piece in read(text))) for text in texts)

    def encode_prompts(self, keys: Sequence[Any]) -> list[PromptEmbedding]:
        return [PromptEmbedding(_words(key.text)) for key in keys]

    def residual_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        return [(8, height, width), *[(16, height // 2, width // 2)] * 2]

    def predict(self, evaluation: Evaluation) -> torch.Tensor:
        more = {"residuals": evaluation.residuals} if evaluation.residuals is not None else {}
        made: torch.Tensor = self.components["unet"](
            evaluation.latents, evaluation.timesteps, evaluation.prompts, **more, **evaluation.arguments
        )
        return made

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        raised = nn.functional.interpolate(latents, scale_factor=FACTOR)
        return torch.tanh(torch.einsum("nchw,dc->ndhw", raised, self._colours))

    def encode(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        small = nn.functional.avg_pool2d(images.clamp(-0.99, 0.99), FACTOR)
        return torch.einsum("ndhw,cd->nchw", small.atanh(), torch.linalg.pinv(self._colours))


def _words(text: str) -> torch.Tensor:
    """A random embedding, (1, 8, 16), seeded by the text."""
    return torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))


@functools.cache
def tiny_model() -> TinyModel:
    """The one model of the process."""
    return TinyModel()
