"""The files of a model: configuration and weights.

Weights are read without process-wide state: `from_pretrained` sets torch's default dtype, which other models use in the
meantime.
"""

from __future__ import annotations

import importlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from darkroom_plugins.deferred import torch
from darkroom_plugins.files.safetensors_files import Tensors, read_shapes, read_tensors, weight_files
from darkroom_plugins.files.single_file import Source, architecture, checkpoint_sources, vae_sources
from darkroom_plugins.files.structures import structure, with_defaults
from darkroom_plugins.files.structures.network import Shapes
from darkroom_plugins.uploads import uploading

# Serialises what depends on process-wide state: networks on the meta device (`init_empty_weights` patches nn.Module),
# schedulers and LoRA files. Evaluations do not.
LOADING = threading.RLock()
Report = Callable[[int], None]  # called with the bytes fetched, or values read, since the last call
# Tensors of text encoders' files that are not weights of the network.
LEFT_OUT = ("embeddings.position_ids", "logit_scale", "text_projection.weight", "text_projection")
# diffusers' old names of the VAE's attention.
ATTENTION = {"query.": "to_q.", "key.": "to_k.", "value.": "to_v.", "proj_attn.": "to_out.0."}
OLD_ATTENTION = re.compile("|".join(map(re.escape, ATTENTION)))
LIBRARIES = ("diffusers", "transformers")  # that an index may name classes of
T = TypeVar("T")


class MetaNetwork:
    """A network without weights: what its configuration says of it, and itself, on the meta device."""

    def __init__(self, name: str, config: Mapping[str, Any], make: Callable[[], torch.nn.Module]) -> None:
        """`name` of its class; `make` makes it, which imports the class's library."""
        self.name, self.config, self._make = name, with_defaults(name, config), make

    @cached_property
    def network(self) -> torch.nn.Module:
        """The network."""
        return self._make()

    @cached_property
    def shapes(self) -> Shapes:
        """The shapes of its weights, by name."""
        known = structure(self.name, self.config)
        return shapes_of(self.network) if known is None else known

    def check(self, found: Shapes) -> None:
        """Compare names and shapes of weights with its own.

        :raises ValueError: they do not match
        """
        if differences(self.shapes, found):  # the class has the last word
            check_weights(self.network, found)
            self.shapes = shapes_of(self.network)


class MetaNetworks(Mapping[str, "torch.nn.Module"]):
    """Networks on the meta device by name, each made when it is first read."""

    def __init__(self, *parts: Mapping[str, Any]) -> None:
        """`parts`: name → MetaNetwork, or a network."""
        self._parts: dict[str, Any] = {}
        for part in parts:
            self._parts |= part._parts if isinstance(part, MetaNetworks) else part

    def __getitem__(self, name: str) -> torch.nn.Module:
        part = self._parts[name]
        return part.network if isinstance(part, MetaNetwork) else part

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def config(self, name: str) -> Mapping[str, Any]:
        """A network's configuration."""
        return self._parts[name].config  # type: ignore[no-any-return]

    def shapes(self, name: str) -> Shapes:
        """The shapes of a network's weights, by name."""
        part = self._parts[name]
        return part.shapes if isinstance(part, MetaNetwork) else shapes_of(part)


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
        kind, config = self._class("scheduler"), self.config("scheduler")
        try:
            with LOADING:
                return kind.from_config(config)
        except Exception as error:  # of any class, as NotImplementedError
            raise ValueError(f"scheduler: {error}") from error

    def meta_network(self, part: str) -> torch.nn.Module:
        """A network of the model on the meta device. Names and shapes of its weights are checked if their files are
        local."""
        return self.component(part).network

    def component(self, part: str) -> MetaNetwork:
        """The same network, made when it is first needed."""
        network = self._network(part)
        if self.fetched([part]):
            try:
                network.check(self._shapes(part))
            except ValueError as error:
                kind = f"; {self.checkpoint.name} is {architecture(self.checkpoint)}" if self.checkpoint else ""
                raise ValueError(f"{part}: {error}{kind}") from error
        return network

    def check_tokenizer(self, part: str) -> None:
        """Read a tokenizer's files, without its class.

        :raises OSError, ValueError: they cannot be read
        """
        self.class_of(part)
        check_tokenizer(self.folder / part)

    def fetched(self, parts: Iterable[str]) -> bool:
        """Whether all weights files of these parts are local."""
        return True

    def fetch(self, parts: Iterable[str], report: Report | None = None) -> None:
        """Fetch missing weights files of these parts."""

    def fetch_bytes(self, parts: Iterable[str]) -> int:
        """Bytes that `fetch` would download."""
        return 0

    def weights(self, part: str) -> Tensors:
        """The weights of a part, memory-mapped: read on use."""
        files, sources = self._sources(part)
        if sources is None:
            return read_tensors(files)
        tensors = read_tensors(files, {each.name for each in sources.values()})
        return {name: each.tensor(tensors[each.name]) for name, each in sources.items()}

    def _shapes(self, part: str) -> Shapes:
        """The shapes of the same weights."""
        files, sources = self._sources(part)
        shapes = read_shapes(files)
        return shapes if sources is None else {name: each.shape(shapes[each.name]) for name, each in sources.items()}

    def _sources(self, part: str) -> tuple[list[Path], dict[str, Source] | None]:
        """The files of a part, and where its weights are in them unless they are there under their names."""
        place = self.parts.get(part)
        if place and place.is_file():
            return [place], vae_sources(place, self._network(part).shapes)
        if place:
            return weight_files(place), None
        if self.checkpoint:
            return [self.checkpoint], checkpoint_sources(self.checkpoint, part, self._network(part).shapes)
        return weight_files(self.folder / part, self.variant), None

    def _network(self, part: str) -> MetaNetwork:
        config = self.config(part)
        return MetaNetwork(self.class_of(part)[1], config, lambda: meta_network(self._class(part), config))

    def class_of(self, part: str) -> tuple[str, str]:
        """The library and name of a part's class."""
        library, name = self.index[part]
        if library not in LIBRARIES:
            raise ValueError(f"its {part} is of {library}, not of {' or '.join(LIBRARIES)}")
        return library, name

    def _class(self, part: str) -> Any:
        library, name = self.class_of(part)
        if (found := getattr(importlib.import_module(library), name, None)) is None:
            raise ValueError(f"its {part} is a {name}, which {library} does not have")
        return found


def meta_network(kind: Any, config: Mapping[str, Any]) -> torch.nn.Module:
    """A network of this diffusers or transformers class, on the meta device."""
    from accelerate import init_empty_weights

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
        check_weights(network, {name: tuple(each.shape) for name, each in weights.items()})
        for name, each in _renamed_weights(shapes_of(network), weights).items():
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


def shapes_of(network: torch.nn.Module) -> Shapes:
    """The shapes of a network's weights, by name."""
    return {name: tuple(each.shape) for name, each in network.state_dict().items()}


def check_weights(network: torch.nn.Module, weights: Shapes) -> None:
    """Compare names and shapes of weights with a network's.

    :raises ValueError: they do not match
    """
    if wrong := differences(shapes_of(network), weights):
        listed = ", ".join(sorted(wrong)[:3]) + (", …" if len(wrong) > 3 else "")
        raise ValueError(f"its weights are not those of its {type(network).__name__}: {listed}")


def differences(shapes: Shapes, weights: Shapes) -> list[str]:
    """Where names and shapes of weights are not these."""
    found = _renamed_weights(shapes, weights)
    wrong = [f"no {name}" for name in shapes.keys() - found.keys()]
    wrong += [f"a {name}" for name in found.keys() - shapes.keys()]
    return wrong + [
        f"{name} of {found[name]} and not {shape}" for name, shape in shapes.items() if found.get(name, shape) != shape
    ]


def _renamed_weights(shapes: Shapes, weights: Mapping[str, T]) -> dict[str, T]:
    """Weights, or their shapes, under the names in a network; others that are known to be no weights are left out."""
    found = {_renamed(name, shapes): each for name, each in weights.items()}
    return {name: each for name, each in found.items() if name in shapes or not name.endswith(LEFT_OUT)}


def _renamed(name: str, known: Mapping[str, Any]) -> str:
    """A weight's name in the network. CLIP's text and vision models have a prefix module before transformers 5: files
    and network may have it or not."""
    others = (
        name.removeprefix("text_model."),
        f"text_model.{name}",
        name.replace("vision_model.vision_model.", "vision_model."),
        name.replace("vision_model.", "vision_model.vision_model."),
        OLD_ATTENTION.sub(lambda match: ATTENTION[match[0]], name),
    )
    return name if name in known else next((each for each in others if each in known), name)


def check_tokenizer(folder: Path) -> None:
    """Read the files of a CLIP tokenizer.

    :raises OSError, ValueError: some are missing, or cannot be read
    """
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            read_json(folder / name)
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if whole.exists():
            Tokenizer.from_file(str(whole))
        else:
            BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:  # the library has no class for its errors
        raise OSError(f"{folder.name}: no tokenizer can be read from {folder}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file."""
    return json.loads(path.read_text())  # type: ignore[no-any-return]
