"""The dialects of LoRA files: which tensors make an update, and how they are scaled.

LoRA under the names of kohya, diffusers and PEFT, with convolutions and Tucker cores (LoCon); LyCORIS' LoHa, LoKr and
whole matrices, also of normalisations; DoRA of each.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from darkroom_plugins.builtin.loras.headers import einsum, read_headers
from darkroom_plugins.builtin.loras.layer_names import PREFIXES, LayerNames
from darkroom_plugins.builtin.loras.updates import (
    Decomposed,
    Dense,
    Hadamard,
    Kronecker,
    LowRank,
    Shift,
    Update,
    product,
)
from darkroom_plugins.files import read_json, read_tensors
from darkroom_plugins.files.safetensors_files import opened
from darkroom_plugins.files.structures.network import Shape, Shapes

if TYPE_CHECKING:
    import torch

Parts: TypeAlias = "dict[str, torch.Tensor]"  # the tensors of one layer, by their role

ADAPTER = r"(?:\.default(?:_\d+)?)?"  # PEFT's name of an adapter
LORA = r"(?:[._]lora(?:_linear_layer)?)?[._]"
ROLES = {
    "down": rf"{LORA}(?:lora_A{ADAPTER}|lora_down|down)\.weight",
    "up": rf"{LORA}(?:lora_B{ADAPTER}|lora_up|up)\.weight",
    "mid": r"\.lora_mid\.weight",
    "alpha": r"\.alpha",
    "magnitude": rf"\.lora_magnitude_vector{ADAPTER}(?:\.weight)?",
    "dora_scale": r"\.dora_scale",
    "weight": r"\.(?:diff|w_norm)",
    "bias": r"\.(?:diff_b|b_norm)",
    **{role: rf"\.hada_{role}{ADAPTER}" for role in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"k{role}": rf"\.lokr_{role}{ADAPTER}" for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
NAME = re.compile("(.+?)(?:" + "|".join(f"(?P<{role}>{pattern})" for role, pattern in ROLES.items()) + ")")
# Marks of trainers and of checkpoints; empty tensors, and integers of no role, change nothing either.
WITHOUT_EFFECT = re.compile(r"(.*[._])?(position_ids|logit_scale|v_pred|ztsnr|global_step|step|epoch|iteration)")
FOREIGN = {  # dialects that are no sum with a layer's weight, or of more than layers
    "OFT": re.compile(r"\.(oft_|boft_)"),
    "IA3": re.compile(r"\.(on_input|ia3_l)\b|\.ia3_"),
    "GLoRA": re.compile(r"\.([ab][12]|glora_\w+)\.weight$"),
    "VeRA": re.compile(r"vera_(lambda|[AB])"),
    "LoRA of token embeddings": re.compile(r"\.lora_embedding_[AB]"),
    "LoRA with biases (lora_bias)": re.compile(r"\.lora_B(\.\w+)?\.bias$"),
    "set weights": re.compile(r"\.(set_weight|reshape_weight)$"),
    "a bundled embedding": re.compile(r"^bundle_emb\."),
}


class Scaled(NamedTuple):
    """An update, and its scale in training: alpha / rank."""

    update: Update
    scale: float


LoraUpdates: TypeAlias = Mapping[str, Mapping[str, Sequence[Scaled]]]  # component → layer → its updates


class LoraFile:
    """A LoRA's file, of any dialect.

    :raises OSError, ValueError: it cannot be read, or is no LoRA of a known dialect; the message names the dialect
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._headers: Any = read_headers(path)
        self.layers: dict[str, dict[str, str]] = {}  # the file's name of a layer → role → tensor's name
        for name, tensor in self._headers.items():
            of_use = tensor.is_floating_point() or NAME.fullmatch(name)  # some write alpha as an integer
            if of_use and tensor.numel() and not WITHOUT_EFFECT.fullmatch(name):
                layer, role = _read_name(name)
                self.layers.setdefault(layer, {})[role] = name
        self.layers = {layer: roles for layer, roles in self.layers.items() if roles.keys() != {"alpha"}}
        if not self.layers:
            raise ValueError("it has no LoRA's matrices")

    def check(self, networks: Mapping[str, Shapes]) -> None:
        """Compare names and shapes with those of a model's networks, without reading weights.

        :raises ValueError: it does not fit
        """
        for name, (_, _, shape) in self._places(networks).items():
            parts = self._parts(name, self._headers)
            try:
                for update, _ in updates_of(parts, shape):
                    update.delta()
            except (ValueError, RuntimeError, IndexError) as error:
                shapes = ", ".join(f"{_size(part.shape)} ({role})" for role, part in parts.items() if part.dim())
                raise ValueError(f"its {name} is of {shapes}, the model's of {_size(shape)}") from error

    def updates(self, networks: Mapping[str, Shapes]) -> LoraUpdates:
        """Its updates on the CPU, by component and layer.

        :raises OSError, ValueError: it cannot be read, or does not fit
        """
        tensors, config = read_tensors([self._path]), _peft_config(self._path)
        found: dict[str, dict[str, Sequence[Scaled]]] = {}
        for name, (part, layer, shape) in self._places(networks).items():
            parts = {role: each.clone() for role, each in self._parts(name, tensors).items()}
            scale = _scale(parts, config.get(part, {}), layer)
            found.setdefault(part, {}).setdefault(layer, updates_of(parts, shape, scale))
        return found

    def _parts(self, name: str, tensors: Mapping[str, torch.Tensor]) -> Parts:
        return {role: tensors[each] for role, each in self.layers[name].items()}

    def _places(self, networks: Mapping[str, Shapes]) -> dict[str, tuple[str, str, Shape]]:
        """For each of the file's layers the component, the layer there, and the shape of its weight.

        :raises ValueError: the model lacks some
        """
        names, found = LayerNames(networks), dict[str, tuple[str, str, Shape]]()
        for name in self.layers:
            if place := names.find(name):
                found[name] = *place, networks[place[0]][f"{place[1]}.weight"]
        if lacking := [name for name in self.layers if name not in found]:
            raise ValueError(f"the model lacks {len(lacking)} of its {len(self.layers)} layers, as {lacking[0]}")
        return found


def updates_of(parts: Parts, shape: Shape, scale: float = 1.0) -> Sequence[Scaled]:
    """The updates that the tensors of one layer make; `shape` is that of the layer's weight, `scale` not of its bias.

    :raises ValueError, RuntimeError, IndexError: some are missing or superfluous, or their shapes do not fit
    """
    of_weight = {role: each for role, each in parts.items() if role != "bias"}
    found = [Scaled(_update_of(of_weight, shape), scale)] if of_weight.keys() - {"alpha"} else []
    if "bias" in parts:
        found.append(Scaled(_shift(parts["bias"], shape), 1.0))
    return found


def _update_of(parts: Parts, shape: Shape) -> Update:
    given = {role: each for role, each in parts.items() if role not in ("alpha", *MAGNITUDES)}
    for factor, core in (("kw1", None), ("kw2", given.pop("kt2", None))):
        a, b = given.pop(f"{factor}_a", None), given.pop(f"{factor}_b", None)
        if a is not None and b is not None:
            given[factor] = product(a, b, core)  # small
    make = next((make for roles, make in FORMS if roles[0] <= given.keys() <= roles[0] | roles[1]), None)
    if make is None:
        raise ValueError(f"{', '.join(sorted(given))} make no update")
    update = make(given, shape)
    for role in MAGNITUDES & parts.keys():
        update = _decomposed(update, parts[role], role == "magnitude")
    return update


def _low_rank(parts: Parts, shape: Shape) -> Update:
    down, up = parts["down"], parts["up"]
    if "mid" in parts:
        down = einsum("qrhw,ri->qihw", parts["mid"], down.flatten(1))
    if up.shape[0] != shape[0]:
        raise ValueError("up has another number of rows")
    rank, ones = down.shape[0], [1] * (len(shape) - 2)
    return LowRank(shape, down.reshape(rank, *shape[1:]), up.reshape(shape[0], rank, *ones))


def _hadamard(parts: Parts, shape: Shape) -> Update:
    roles = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
    return Hadamard(shape, *(parts.get(role) for role in roles))  # type: ignore[arg-type]


def _kronecker(parts: Parts, shape: Shape) -> Update:
    return Kronecker(shape, parts["kw1"], parts["kw2"])


def _dense(parts: Parts, shape: Shape) -> Update:
    return Dense(shape, parts["weight"])


def _shift(bias: torch.Tensor, shape: Shape) -> Update:
    if bias.shape != shape[:1]:
        raise ValueError("the bias has another number of rows")
    return Shift(shape, bias)


def _decomposed(update: Update, magnitude: torch.Tensor, of_rows: bool) -> Update:
    """DoRA; LyCORIS also has it with magnitudes of the weight's columns."""
    shape = update.shape
    columns = not of_rows and magnitude.dim() > 1 and magnitude.shape[0] == 1 and shape[0] != 1
    axis = 1 if columns else 0
    if magnitude.numel() != shape[axis]:
        raise ValueError("the magnitudes have another number")
    ones = [1] * len(shape)
    ones[axis] = -1
    return Decomposed(shape, update, magnitude.reshape(ones), axis)


MAGNITUDES = {"magnitude", "dora_scale"}
FORMS: Sequence[tuple[tuple[set[str], set[str]], Callable[[Parts, Shape], Update]]] = (
    (({"down", "up"}, {"mid"}), _low_rank),
    (({"w1_a", "w1_b", "w2_a", "w2_b"}, {"t1", "t2"}), _hadamard),
    (({"kw1", "kw2"}, set()), _kronecker),
    (({"weight"}, set()), _dense),
)  # ((roles it needs, roles that it may have), what makes the update)


def _scale(parts: Parts, config: Mapping[str, Any], layer: str) -> float:
    """alpha / rank, by the file, or else by PEFT's configuration; 1 if neither says."""
    rank = next((parts[role].shape[0] for role in ("down", "w1_b", "kw2_b", "kw1_b") if role in parts), None)
    if "alpha" in parts:
        return float(parts["alpha"]) / rank if rank else 1.0  # LyCORIS scales no whole matrices
    if not config:
        return 1.0
    rank = _for_layer(config, "rank_pattern", config.get("r", rank), layer)
    alpha = _for_layer(config, "alpha_pattern", config.get("lora_alpha", config.get("alpha", rank)), layer)
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _for_layer(config: Mapping[str, Any], patterns: str, default: Any, layer: str) -> Any:
    known = (config.get(patterns) or {}).items()
    return next((value for pattern, value in known if re.match(rf"(.*\.)?({pattern})$", layer)), default)


def _peft_config(path: Path) -> dict[str, Mapping[str, Any]]:
    """PEFT's configurations by component: in the file, as diffusers writes them, or beside it, as PEFT does."""
    with opened(path) as file:
        written = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    beside = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and beside.exists():
        return dict.fromkeys(PREFIXES, read_json(beside))
    found: dict[str, dict[str, Any]] = {}
    for key, value in written.items():
        part, _, name = key.partition(".")
        found.setdefault(part, {})[name] = value
    return dict(found)


def _read_name(name: str) -> tuple[str, str]:
    """The layer in the file's spelling, and the role of a tensor.

    :raises ValueError: it is of no known dialect
    """
    if match := NAME.fullmatch(name):
        return match[1], str(match.lastgroup)
    foreign = next((dialect for dialect, pattern in FOREIGN.items() if pattern.search(name)), None)
    if foreign:
        raise ValueError(f"it has {name}, which is of {foreign}; that is not supported")
    raise ValueError(f"it has {name}, which is no LoRA's matrix of a UNet or a text encoder")


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape))
