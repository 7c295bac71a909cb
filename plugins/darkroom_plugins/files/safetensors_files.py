"""Safetensors files: the weights files of a folder, and their tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch

    from darkroom_plugins.files.structures.network import Shape

# One weights file, or an index of shards; the variant's position has varied.
WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(?:\.(?P<a>\w+))?\.safetensors(?:(?:\.(?P<b>\w+))?\.index(?:\.(?P<c>\w+))?\.json)?"
)
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
REFUSED = "pickle files are refused because they can run code"
Tensors: TypeAlias = "dict[str, torch.Tensor]"


def choose(names: Iterable[str], variant: str | None) -> str:
    """Choose from a folder's file names the weights file of a variant, or the index of its shards. Without `variant`:
    the plain file, or that of the only variant.

    :raises OSError: there is none; the message names the variants found
    """
    names = sorted(names)
    found = {match["a"] or match["b"] or match["c"] or "": match[0] for match in map(WEIGHTS.fullmatch, names) if match}
    if not found:
        pickles = any(name.endswith(PICKLES) for name in names)
        raise OSError("no weights as safetensors" + (f"; {REFUSED}" if pickles else ""))
    wanted = next(iter(found)) if variant is None and len(found) == 1 else variant or ""
    if wanted not in found:
        there = ", ".join(repr(each) if each else "the plain weights" for each in sorted(found))
        raise OSError(f"no {f'variant {wanted!r}' if wanted else 'plain weights'} but {there}")
    return found[wanted]


def shards(index: Path) -> list[str]:
    """The file names of the shards in an index."""
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} lists {name!r}, which is not the name of a safetensors file")
    return names


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The weights files of a network's folder, in this variant.

    :raises OSError: there are none, or one is missing
    """
    if not folder.is_dir():
        raise OSError(f"there is no folder {folder}")
    try:
        file = folder / choose((each.name for each in folder.iterdir()), variant)
    except OSError as error:
        raise OSError(f"{folder} has {error}") from None
    files = [folder / name for name in shards(file)] if file.suffix == ".json" else [file]
    if missing := [each.name for each in files if not each.exists()]:
        raise OSError(f"{folder} lacks {', '.join(missing)}")
    return files


def read_tensors(files: Iterable[Path], names: Collection[str] | None = None) -> Tensors:
    """The tensors of these files, all or those of these names, memory-mapped: read on use.

    :raises OSError, ValueError: a file cannot be read, or is no safetensors file
    """
    found: Tensors = {}
    for file in files:
        with opened(file, "pt") as tensors:
            wanted = [name for name in tensors.keys() if names is None or name in names]  # noqa: SIM118  # no mapping
            found |= {name: tensors.get_tensor(name) for name in wanted}
    return found


def read_shapes(files: Iterable[Path], prefixes: tuple[str, ...] = ("",)) -> dict[str, Shape]:
    """The shapes of the tensors of these files whose names have one of the prefixes, without torch.

    :raises OSError, ValueError: as `read_tensors`
    """
    found: dict[str, Shape] = {}
    for file in files:
        with opened(file) as tensors:
            wanted = [name for name in tensors.keys() if name.startswith(prefixes)]  # noqa: SIM118  # no mapping
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in wanted}
    return found


@contextmanager
def opened(file: Path, framework: Literal["np", "pt"] = "np") -> Iterator[Any]:
    """Context manager: the file as `safetensors.safe_open` opens it, by default for its header: "pt" imports torch.

    :raises OSError, ValueError: it cannot be read, or is no safetensors file
    """
    try:
        with safe_open(file, framework=framework) as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file: {error}") from error
