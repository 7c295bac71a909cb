"""Model files: configurations, and weights in safetensors files.

The names below are imported on first use, so that `files.hub_paths` can be imported without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from darkroom_plugins.files.model_files import (
        LOADING,
        MetaNetwork,
        MetaNetworks,
        ModelFiles,
        check_weights,
        load_weights,
        meta_network,
        read_json,
        shapes_of,
    )
    from darkroom_plugins.files.safetensors_files import read_shapes, read_tensors, weight_files

_MODULES = {
    "LOADING": "model_files",
    "MetaNetwork": "model_files",
    "MetaNetworks": "model_files",
    "ModelFiles": "model_files",
    "check_weights": "model_files",
    "load_weights": "model_files",
    "meta_network": "model_files",
    "read_json": "model_files",
    "read_shapes": "safetensors_files",
    "read_tensors": "safetensors_files",
    "shapes_of": "model_files",
    "weight_files": "safetensors_files",
}

__all__ = [
    "LOADING",
    "MetaNetwork",
    "MetaNetworks",
    "ModelFiles",
    "check_weights",
    "load_weights",
    "meta_network",
    "read_json",
    "read_shapes",
    "read_tensors",
    "shapes_of",
    "weight_files",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
