"""The files of a model: what it is, and its weights.

Nothing that reads weights goes through a switch of the whole process, as `from_pretrained` does with torch's default
dtype: other models step meanwhile.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from darkroom_plugins.files.safetensors_files import Tensors, read_tensors, weight_files
from darkroom_plugins.files.single_file import architecture, read_checkpoint, read_vae

# Building a network without weights patches a method of all modules, and reading a scheduler's or a LoRA's file depends
# on other settings of the whole process: one thread at a time. Ticks do neither.
LOADING = threading.RLock()
Report = Callable[[int], None]  # is told how many bytes were fetched, or values read, since it was told last
# What text encoders' files may have beside their weights.
LEFT_OUT = ("embeddings.position_ids", "logit_scale", "text_projection.weight", "text_projection")
LIBRARIES = ("diffusers", "transformers")  # nothing else is imported on a file's word


@dataclass(frozen=True)
class ModelFiles:
    """A model in diffusers' layout: a folder with a ``model_index.json``, and one folder a part.

    With a `checkpoint` the weights are in that one file, and the folder has the configuration, tokenizers and scheduler
    of its architecture. `parts` are folders of parts that are elsewhere, by their names; that of a VAE may be a file,
    which has no configuration but has that of the model's.

    Everything raises OSError where a file is missing, and ValueError where it is not what it should be.
    """

    folder: Path
    variant: str | None = None  # of the weights' files
    checkpoint: Path | None = None
    parts: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """What ``model_index.json`` says: for each part its library and class."""
        return read_json(self.folder / "model_index.json")

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part, or of the scheduler."""
        place = self.parts.get(part)
        folder = place if place and place.is_dir() else self.folder / part
        found = read_json(folder / ("scheduler_config.json" if part == "scheduler" else "config.json"))
        wanted = self.index[part][1] if place and part in self.index else None
        if wanted and found.get("_class_name", wanted) != wanted:
            raise ValueError(f"{part}: {place} is a {found['_class_name']}, not an {wanted}")
        return found

    def tokenizer(self, part: str) -> Any:
        """A tokenizer, by its name in the index."""
        return self._class(part).from_pretrained(self.folder / part, local_files_only=True)

    def scheduler(self) -> Any:
        """The model's own scheduler."""
        with LOADING:
            return self._class("scheduler").from_config(self.config("scheduler"))

    def meta_network(self, part: str) -> torch.nn.Module:
        """A network of the model without weights: its parameters are on the meta device. Its weights fit it, where
        their files are here."""
        network = meta_network(self._class(part), self.config(part))
        if self.fetched([part]):
            try:
                _named(network, self.weights(part, "meta"))
            except ValueError as error:
                kind = f"; {self.checkpoint.name} is {architecture(self.checkpoint)}" if self.checkpoint else ""
                raise ValueError(f"{part}: {error}{kind}") from error
        return network

    def fetched(self, parts: Iterable[str]) -> bool:
        """Whether all files of these parts' weights are here."""
        return True

    def fetch(self, parts: Iterable[str], report: Report | None = None) -> None:
        """Get the files of these parts' weights that are not here, if they come from elsewhere."""

    def fetch_bytes(self, parts: Iterable[str]) -> int:
        """How much `fetch` has to get."""
        return 0

    def weights(self, part: str, device: str = "cpu") -> Tensors:
        """The weights of a part, mapped into memory: they are read when they are used. On the meta device they have
        their names and shapes alone."""
        place = self.parts.get(part)
        if place and place.is_file():
            return read_vae(place, self.config(part), device)
        if place:
            return read_tensors(weight_files(place), device)
        if self.checkpoint:
            return read_checkpoint(self.checkpoint, part, self.config(part), device)
        return read_tensors(weight_files(self.folder / part, self.variant), device)

    def _class(self, part: str) -> Any:
        library, name = self.index[part]
        if library not in LIBRARIES:
            raise ValueError(f"its {part} is of {library}, not of {' or '.join(LIBRARIES)}")
        return getattr(importlib.import_module(library), name)


def meta_network(kind: Any, config: Mapping[str, Any]) -> torch.nn.Module:
    """A network of this class of diffusers or transformers, without weights."""
    with LOADING, init_empty_weights(include_buffers=False):
        network = kind.from_config(config) if hasattr(kind, "from_config") else kind(kind.config_class(**config))
    return network.eval().requires_grad_(False)  # type: ignore[no-any-return]


def load_weights(
    network: torch.nn.Module,
    weights: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    device: torch.device | None = None,
    report: Report | None = None,
) -> None:
    """Give a meta network its weights, in this type and on this device (None: where they are), one at a time.

    :raises ValueError: they are not those of this network
    """
    filled = {}
    for name, each in _named(network, weights).items():
        # A copy always: a tensor of a mapped file would change with the file, and be read at its first use.
        filled[name] = each.to(
            device or each.device,
            dtype if each.is_floating_point() else each.dtype,
            copy=True,
            # Convolutions are faster so, on the CPU by 5 to 8 % of a UNet's evaluation.
            memory_format=torch.channels_last if each.dim() == 4 else torch.preserve_format,
        )
        if report:
            report(each.numel())
    network.load_state_dict(filled, assign=True)
    network.requires_grad_(False)


def _named(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> Tensors:
    """The weights as the network names them.

    :raises ValueError: they are not those of this network
    """
    shapes = {name: each.shape for name, each in network.state_dict().items()}
    found = {_renamed(name, shapes): each for name, each in weights.items()}
    if hasattr(network, "_fix_state_dict_keys_on_load"):  # the VAE's attention was named otherwise in old files
        found = network._fix_state_dict_keys_on_load(found)  # type: ignore[operator]
    found = {name: each for name, each in found.items() if name in shapes or not name.endswith(LEFT_OUT)}
    wrong = [f"no {name}" for name in shapes.keys() - found.keys()]
    wrong += [f"a {name}" for name in found.keys() - shapes.keys()]
    wrong += [
        f"{name} of {tuple(found[name].shape)} and not {tuple(shape)}"
        for name, shape in shapes.items()
        if name in found and found[name].shape != shape
    ]
    if wrong:
        listed = ", ".join(sorted(wrong)[:3]) + (", …" if len(wrong) > 3 else "")
        raise ValueError(f"its weights are not those of its {type(network).__name__}: {listed}")
    return found


def _renamed(name: str, known: Mapping[str, Any]) -> str:
    """Text and vision models of CLIP had all they have in a module of the same name before version 5 of transformers:
    files have it, or the network has, or both, or none."""
    others = (
        name.removeprefix("text_model."),
        f"text_model.{name}",
        name.replace("vision_model.vision_model.", "vision_model."),
        name.replace("vision_model.", "vision_model.vision_model."),
    )
    return name if name in known else next((each for each in others if each in known), name)


def read_json(path: Path) -> dict[str, Any]:
    """What a configuration file says."""
    return json.loads(path.read_text())  # type: ignore[no-any-return]
