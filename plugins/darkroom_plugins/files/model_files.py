"""The files of a model: configuration and weights.

Weights are read without process-wide state: `from_pretrained` sets torch's default dtype, which other models use in the
meantime.
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
from darkroom_plugins.uploads import uploading

# Serialises what depends on process-wide state: networks on the meta device (`init_empty_weights` patches nn.Module),
# schedulers and LoRA files. Evaluations do not.
LOADING = threading.RLock()
Report = Callable[[int], None]  # called with the bytes fetched, or values read, since the last call
# Tensors of text encoders' files that are not weights of the network.
LEFT_OUT = ("embeddings.position_ids", "logit_scale", "text_projection.weight", "text_projection")
LIBRARIES = ("diffusers", "transformers")  # that an index may name classes of


@dataclass(frozen=True)
class ModelFiles:
    """A model in diffusers' layout: a folder with a ``model_index.json``, and a folder for each part (component,
    tokenizer or scheduler).

    With a single-file `checkpoint` the weights are in that file; the folder has configurations and tokenizers of its
    architecture. `parts` replaces parts of the folder: name → another folder, or for a VAE a weights file with the
    configuration of the model's own. `scheduler_options` go before the scheduler's configuration.

    Methods raise OSError if a file is missing, ValueError if its content is invalid.
    """

    folder: Path
    variant: str | None = None  # of the weights files, for instance "fp16"
    checkpoint: Path | None = None
    parts: Mapping[str, Path] = field(default_factory=dict)
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """``model_index.json``: part → [library, class]."""
        return read_json(self.folder / "model_index.json")

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a component or of the scheduler."""
        place = self.parts.get(part)
        folder = place if place and place.is_dir() else self.folder / part
        found = read_json(folder / ("scheduler_config.json" if part == "scheduler" else "config.json"))
        wanted = self.index[part][1] if place and part in self.index else None
        if wanted and found.get("_class_name", wanted) != wanted:
            raise ValueError(f"{part}: {place} is a {found['_class_name']}, not an {wanted}")
        return found | dict(self.scheduler_options) if part == "scheduler" else found

    def tokenizer(self, part: str) -> Any:
        """A tokenizer."""
        return self._class(part).from_pretrained(self.folder / part, local_files_only=True)

    def scheduler(self) -> Any:
        """The model's own scheduler."""
        with LOADING:
            return self._class("scheduler").from_config(self.config("scheduler"))

    def meta_network(self, part: str) -> torch.nn.Module:
        """A network of the model on the meta device. Names and shapes of its weights are checked if their files are
        local."""
        network = meta_network(self._class(part), self.config(part))
        if self.fetched([part]):
            try:
                check_weights(network, self.weights(part, "meta"))
            except ValueError as error:
                kind = f"; {self.checkpoint.name} is {architecture(self.checkpoint)}" if self.checkpoint else ""
                raise ValueError(f"{part}: {error}{kind}") from error
        return network

    def fetched(self, parts: Iterable[str]) -> bool:
        """Whether all weights files of these parts are local."""
        return True

    def fetch(self, parts: Iterable[str], report: Report | None = None) -> None:
        """Fetch missing weights files of these parts."""

    def fetch_bytes(self, parts: Iterable[str]) -> int:
        """Bytes that `fetch` would download."""
        return 0

    def weights(self, part: str, device: str = "cpu") -> Tensors:
        """The weights of a part, memory-mapped: read on use. On the meta device: names and shapes only."""
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
    """A network of this diffusers or transformers class, on the meta device."""
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
    """Load weights into a network on the meta device, one tensor at a time, in `dtype` on `device` (None: as they are).
    On CUDA no running job waits for it.

    :raises ValueError: names or shapes do not match the network
    """
    filled = {}
    with uploading(device or torch.device("cpu")) as uploader:
        for name, each in _renamed_weights(network, weights).items():
            to = dtype if each.is_floating_point() else each.dtype
            # Faster convolutions: on a CPU 5 to 8 % of a UNet's evaluation.
            layout = torch.channels_last if each.dim() == 4 else torch.preserve_format
            if uploader is not None and each.device.type == "cpu":
                filled[name] = uploader.copy(each, to, layout)
            else:
                # Always a copy: a memory-mapped tensor is read at first use, and changes with its file.
                filled[name] = each.to(device or each.device, to, copy=True, memory_format=layout)
            if report:
                report(each.numel())
    network.load_state_dict(filled, assign=True)
    network.requires_grad_(False)


def check_weights(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Compare names and shapes of weights, also on the meta device, with a network's.

    :raises ValueError: they do not match
    """
    _renamed_weights(network, weights)


def _renamed_weights(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> Tensors:
    """The weights under the network's names.

    :raises ValueError: names or shapes do not match the network
    """
    shapes = {name: each.shape for name, each in network.state_dict().items()}
    found = {_renamed(name, shapes): each for name, each in weights.items()}
    if hasattr(network, "_fix_state_dict_keys_on_load"):  # old names of the VAE's attention
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
    """A weight's name in the network. CLIP's text and vision models have a prefix module before transformers 5: files
    and network may have it or not."""
    others = (
        name.removeprefix("text_model."),
        f"text_model.{name}",
        name.replace("vision_model.vision_model.", "vision_model."),
        name.replace("vision_model.", "vision_model.vision_model."),
    )
    return name if name in known else next((each for each in others if each in known), name)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file."""
    return json.loads(path.read_text())  # type: ignore[no-any-return]
