"""Puts a model's networks where its memory options say, and has them evaluate as those say."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.hooks.group_offloading import apply_group_offloading
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from darkroom_server.networks.compiled import compiled
from darkroom_server.networks.tensors import tensors
from darkroom_server.networks.traced import traced

if TYPE_CHECKING:
    from darkroom_plugins.contract import Family
    from darkroom_server.config.settings import MemoryOptions

CPU = torch.device("cpu")
# diffusers' names of torch's kernels. Its other backends, and its way to choose these, reach transformers only: the
# attention of UNets always calls torch's function.
ATTENTION_KERNELS = {
    "native": None,  # torch chooses
    "_native_cudnn": SDPBackend.CUDNN_ATTENTION,
    "_native_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "_native_flash": SDPBackend.FLASH_ATTENTION,
    "_native_math": SDPBackend.MATH,
}
INT4_GROUP = 128  # weights that share a scale


class Placement:
    """Where a model's networks are, while it is loaded."""

    def __init__(self, offload: str = "none") -> None:
        self.swapping = offload != "none"  # whether it costs time to go from one network to another
        self.swaps = 0  # how often a whole network came to the device
        self._here: nn.Module | None = None
        self._weights: dict[nn.Module, list[tuple[dict[str, Any], str, torch.Tensor]]] = {}

    def manage(self, network: nn.Module, device: torch.device) -> None:
        """Keep the network in the CPU's memory, and bring it to the device when it is used, in the place of the one
        that was there."""
        network.to(CPU)
        self._weights[network] = list(tensors(network))
        add_hook_to_module(network, _Bringing(self, device))

    def bring(self, network: nn.Module, device: torch.device) -> None:
        """Have this network on the device, and no other."""
        if network is self._here:
            return
        if self._here is not None:
            self._put(self._here, CPU)
        self._here = None  # until it is there as a whole
        try:
            self._put(network, device)
        except BaseException:
            self._put(network, CPU)
            raise
        self._here = network
        self.swaps += 1

    def _put(self, network: nn.Module, device: torch.device) -> None:
        """From the CPU's copy in any case: weights never change, so that none are copied back."""
        for table, name, kept in self._weights[network]:
            moved = kept.to(device)
            table[name] = nn.Parameter(moved, requires_grad=False) if isinstance(kept, nn.Parameter) else moved


class _Bringing(ModelHook):  # type: ignore[misc]
    """Before a network is used, also by the methods of an autoencoder that diffusers marks."""

    def __init__(self, placement: Placement, device: torch.device) -> None:
        self._placement, self._device = placement, device

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self._placement.bring(module, self._device)
        return args, kwargs


def first_device(family: Family, options: MemoryOptions) -> torch.device:
    """Where the weights are read to, before `place`: not the device, where they would not all fit as they are."""
    return family.device if options.offload == "none" and options.quantize is None else CPU


@torch.inference_mode()  # as they are used: what torchao makes cannot be moved otherwise
def place(components: Mapping[str, nn.Module], family: Family, options: MemoryOptions) -> Placement:
    """Put networks that have their weights, on their first device, where they are to be. What is done to them is never
    undone: they go as a whole when the model is unloaded."""
    if (part := denoiser(family)) is not None:
        _prepare_denoiser(components[part], family, options)
    vae: Any = components.get("vae")
    if options.vae_slicing:
        vae.enable_slicing()
    if options.vae_tiling:
        vae.enable_tiling()
    if _traceable(family, options) and hasattr(vae, "decoder"):
        vae.decoder.forward = traced(vae.decoder)
    placement = Placement(options.offload)
    for name, network in components.items():
        _offload(network, options.offload, family.device, placement, streams=name == part)
    return placement


def denoiser(family: Family) -> str | None:
    """The name of the network that predicts, None where a family has it elsewhere."""
    return next((name for name in ("unet", "transformer") if name in family.meta_components), None)


def _prepare_denoiser(network: Any, family: Family, options: MemoryOptions) -> None:
    if options.attention_slicing is not None:
        network.set_attention_slice(options.attention_slicing)
    if options.quantize is not None:
        quantise(network, options.quantize, family.device)
    cast(network, options, family.dtype)
    if options.compile:
        # Weights that come and go are there for the engine alone.
        network.forward = compiled(network, background=options.offload == "none")
    elif _traceable(family, options) and options.attention_slicing is None:  # which is a loop over rows
        network.forward = traced(network)
    if kernel := ATTENTION_KERNELS.get(options.attention_backend or "native"):
        network.forward = _with_kernel(network.forward, kernel)


def _traceable(family: Family, options: MemoryOptions) -> bool:
    return family.device.type == "cpu" and options.offload == "none"


def cast(network: Any, options: MemoryOptions, dtype: torch.dtype) -> None:
    """Keep the weights of convolutions and linear layers in a type of 8 bits, but for computing."""
    if options.layerwise_casting is not None:
        storage = getattr(torch, options.layerwise_casting)
        network.enable_layerwise_casting(storage_dtype=storage, compute_dtype=dtype)


def quantise(network: nn.Module, kind: str, device: torch.device) -> None:
    """Quantise the weights of the linear layers, one after another on the device; with float8-dynamic also what they
    are multiplied by, each time, as Hopper's tensor cores multiply twice as fast in float8 as in half precision. Each
    row has a scale of its own there, so that pictures do not depend on each other.

    :raises ImportError: torchao is missing, or what it needs for this kind
    """
    import torchao.quantization as ao

    configs: dict[str, Callable[[], Any]] = {  # Inductor's settings would be those of the whole process
        "int8": lambda: ao.Int8WeightOnlyConfig(set_inductor_config=False),
        "int4": lambda: ao.Int4WeightOnlyConfig(group_size=INT4_GROUP, set_inductor_config=False),
        "float8": lambda: ao.Float8WeightOnlyConfig(set_inductor_config=False),
        "float8-dynamic": lambda: ao.Float8DynamicActivationFloat8WeightConfig(
            granularity=ao.PerRow(), set_inductor_config=False
        ),
    }
    ao.quantize_(network, configs[kind](), device=device)


def _with_kernel(plain: Callable[..., Any], kernel: SDPBackend) -> Callable[..., Any]:
    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(kernel):
            return plain(*args, **kwargs)

    return forward


def _offload(network: nn.Module, how: str, device: torch.device, placement: Placement, streams: bool) -> None:
    match how:
        case "none":
            network.to(device)
        case "model":
            placement.manage(network, device)
        case "sequential":
            cpu_offload(network, device)
        case "group":
            # A stream brings each layer while the one before it is at work. It learns their order from the network's
            # forward, which an autoencoder never runs.
            apply_group_offloading(
                network, device, offload_type="leaf_level", use_stream=streams and device.type == "cuda"
            )


def device_bytes(family: Family, options: MemoryOptions) -> int:
    """How much the weights take on the device, at most."""
    sizes = {name: [*_layer_bytes(name, family, options)] for name in family.meta_components}
    match options.offload:
        case "none":
            return sum(map(sum, sizes.values()))
        case "model":
            return max(map(sum, sizes.values()), default=0)
        case "sequential":
            return max((size for layers in sizes.values() for size in layers), default=0)
        case _:  # with a stream, the next layer comes while one is at work
            return max((sum(sorted(layers)[-2:]) for layers in sizes.values()), default=0)


def _layer_bytes(name: str, family: Family, options: MemoryOptions) -> Iterator[int]:
    """Of each module with weights of its own."""
    network = nn.Module.to(copy.deepcopy(family.meta_components[name]), family.dtype_of(name))
    quantised = options.quantize if name == denoiser(family) else None
    if name == denoiser(family):
        cast(network, options, family.dtype)
    for module in network.modules():
        linear = isinstance(module, nn.Linear)
        yield sum(_bytes(p, quantised if linear else None) for p in module.parameters(recurse=False))


def _bytes(weights: torch.Tensor, quantised: str | None) -> int:
    if quantised is None or weights.dim() < 2 or (quantised == "int4" and weights.shape[1] % INT4_GROUP):
        return weights.nbytes
    if quantised == "int4":  # and a scale and a zero point for each group, of 2 bytes
        return weights.numel() // 2 + weights.numel() // INT4_GROUP * 4
    return weights.numel() + 5 * weights.shape[0]  # each row's scale, of 4 bytes at most, and zero point
