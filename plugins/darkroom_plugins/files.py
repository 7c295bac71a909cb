"""The files of a model: what it is, and its weights."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open

# Building a network without weights patches a method of all modules, and reading a scheduler's or a LoRA's file depends
# on other settings of the whole process: one thread at a time. Ticks do neither.
LOADING = threading.RLock()
LIBRARIES = ("diffusers", "transformers")  # nothing else is imported on a file's word


@dataclass(frozen=True)
class ModelFiles:
    """A model in diffusers' layout: a folder with a ``model_index.json``, and one folder a part. `parts` are folders of
    parts that are elsewhere, by their names.

    Everything raises OSError where a file is missing, and ValueError where it is not what it should be.
    """

    folder: Path
    parts: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """What ``model_index.json`` says: for each part its library and class."""
        return read_json(self.folder / "model_index.json")

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part, or of the scheduler."""
        return read_json(self._place(part) / ("scheduler_config.json" if part == "scheduler" else "config.json"))

    def tokenizer(self, part: str) -> Any:
        """A tokenizer, by its name in the index."""
        return self._class(part).from_pretrained(self.folder / part, local_files_only=True)

    def scheduler(self) -> Any:
        """The model's own scheduler."""
        with LOADING:
            return self._class("scheduler").from_config(self.config("scheduler"))

    def hollow(self, part: str) -> torch.nn.Module:
        """A network of the model without weights: its parameters are on the meta device."""
        return hollow(self._class(part), self.config(part))

    def weights(self, part: str) -> dict[str, torch.Tensor]:
        """The weights of a part, as its network names them."""
        return read_weights(self._place(part))

    def _place(self, part: str) -> Path:
        return self.parts.get(part, self.folder / part)

    def _class(self, part: str) -> Any:
        library, name = self.index[part]
        if library not in LIBRARIES:
            raise ValueError(f"its {part} is of {library}, not of {' or '.join(LIBRARIES)}")
        return getattr(importlib.import_module(library), name)


def hollow(kind: Any, config: Mapping[str, Any]) -> torch.nn.Module:
    """A network of this class of diffusers or transformers, without weights."""
    with LOADING, init_empty_weights(include_buffers=False):
        network = kind.from_config(config) if hasattr(kind, "from_config") else kind(kind.config_class(**config))
    return network.eval().requires_grad_(False)  # type: ignore[no-any-return]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise OSError(f"{folder} has no weights as safetensors")
    found: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  # it is no mapping
    return found


def fill(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Give a hollow network its weights, on the device where they are.

    :raises ValueError: they are not those of this network
    """
    if not any(name.startswith("text_model.") for name, _ in network.named_modules()):
        # Before version 5 of transformers CLIPTextModel had all it has in a module of this name.
        weights = {name.removeprefix("text_model."): each for name, each in weights.items()}
    if hasattr(network, "_fix_state_dict_keys_on_load"):  # the VAE's attention was named otherwise in old files
        weights = network._fix_state_dict_keys_on_load(dict(weights))  # type: ignore[operator]
    weights = {name: each.to(dtype) if each.is_floating_point() else each for name, each in weights.items()}
    weights.pop("embeddings.position_ids", None)  # which was saved once
    wrong = network.load_state_dict(weights, strict=False, assign=True)
    if wrong.missing_keys or wrong.unexpected_keys:
        names = ", ".join([*wrong.missing_keys, *wrong.unexpected_keys][:3])
        raise ValueError(f"its weights are not those of a {type(network).__name__}: {names}, …")
    network.requires_grad_(False)


def read_json(path: Path) -> dict[str, Any]:
    """What a configuration file says."""
    return json.loads(path.read_text())  # type: ignore[no-any-return]
