"""Prompts encoded by a family without a server, and by diffusers' pipelines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from darkroom_plugins.contract import Conditioner, Family
from darkroom_plugins.request import OutputOptions, PreviewOptions, Request, SchedulerChoice
from darkroom_plugins.sample import PromptEmbedding, PromptPiece

Reader = Callable[[str], tuple[PromptPiece, ...]]


def a_request(**changes: Any) -> Request:
    """A request with guidance, for pictures of 32x32 pixels."""
    values: dict[str, Any] = {
        "request_id": "r",
        "task": "txt2img",
        "model": "tiny",
        "prompt": "a red circle",
        "negative_prompt": None,
        "width": 32,
        "height": 32,
        "num_images": 1,
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "guidance_rescale": 0.0,
        "clip_skip": 0,
        "eta": 0.0,
        "seed": 0,
        "scheduler": SchedulerChoice(name="euler"),
        "preview": PreviewOptions(mode="off"),
        "output": OutputOptions(),
    }
    return Request(**{**values, **changes})


@dataclass
class ListedEmbeddings:
    """Assets that are embeddings, already loaded."""

    embeddings: Mapping[str, Any] = field(default_factory=dict)

    def names(self, kind: str) -> list[str]:
        return sorted(self.embeddings) if kind == "embedding" else []

    def get(self, kind: str, name: str) -> Any:
        assert kind == "embedding"
        return self.embeddings[name]


def literal(text: str) -> tuple[PromptPiece, ...]:
    return (PromptPiece(text),)


def reader(request: Request, *conditioners: Conditioner, **embeddings: Any) -> Reader:
    """Texts as these conditioners read them, one after the other."""

    def read(text: str) -> tuple[PromptPiece, ...]:
        pieces = literal(text)
        for conditioner in conditioners:
            pieces = conditioner.read_prompt(pieces, request, ListedEmbeddings(embeddings), None)
        return pieces

    return read


def embedded(model: Family, request: Request, read: Reader = literal) -> list[PromptEmbedding]:
    """The embeddings of a request's rows."""
    with torch.no_grad():
        return model.encode_prompts(model.prompt_keys(request, read))


def largest(ours: torch.Tensor | None, theirs: torch.Tensor) -> float:
    """The largest difference, of tensors of one shape."""
    assert ours is not None
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs.float()).abs().max())
