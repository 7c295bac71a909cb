"""Applies a model's memory options to its networks: offload, quantisation, attention, compilation, tracing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from darkroom_server.device.pinned import pinned_like
from darkroom_server.networks import graphs
from darkroom_server.networks.compiled import compiled
from darkroom_server.networks.conversion import cast, quantise
from darkroom_server.networks.sizes import ATTENTION_KERNELS, denoiser
from darkroom_server.networks.tensors import tensors
from darkroom_server.networks.traced import traced

if TYPE_CHECKING:
    from darkroom_plugins.contract import Family
    from darkroom_server.config.settings import MemoryOptions

CPU = torch.device("cpu")
Weight: TypeAlias = tuple[dict[str, Any], str, torch.Tensor]  # the dict of its module, its key there, its CPU copy


class Placement:
    """The devices of a loaded model's networks; with model offload one network at a time is on the device."""

    def __init__(self, offload: str = "none") -> None:
        self.swapping = offload != "none"  # whether switching networks costs time
        self.swaps = 0  # whole networks moved to the device so far
        self._active: nn.Module | None = None
        self.weights: dict[nn.Module, list[Weight]] = {}

    def manage(self, network: nn.Module, device: torch.device) -> None:
        """Model offload: keep the network on the CPU, and move it to the device at its next use, in place of the
        active one."""
        network.to(CPU)
        weights = list(tensors(network))
        if device.type == "cuda":
            weights = _pinned(weights)
        self.weights[network] = weights
        add_hook_to_module(network, _MoveToDeviceHook(self, device))

    def activate(self, network: nn.Module, device: torch.device) -> None:
        """Move this network to the device, and the active one back to the CPU."""
        if network is self._active:
            return
        if self._active is not None:
            self._put(self._active, CPU)
        self._active = None  # until it is moved completely
        try:
            self._put(network, device)
        except BaseException:
            self._put(network, CPU)
            raise
        self._active = network
        self.swaps += 1

    def _put(self, network: nn.Module, device: torch.device) -> None:
        """Always from the CPU's copy: weights are constant, so nothing is copied back. Pinned ones are copied without
        waiting, before what the network is going to do."""
        for table, name, cpu_copy in self.weights[network]:
            moved = cpu_copy.to(device, non_blocking=True) if _is_plain(cpu_copy) else cpu_copy.to(device)
            table[name] = nn.Parameter(moved, requires_grad=False) if isinstance(cpu_copy, nn.Parameter) else moved


def _pinned(weights: list[Weight]) -> list[Weight]:
    """The weights in pinned memory."""
    plain = [each for each in weights if _is_plain(each[2])]
    copies = {}
    for (table, name, tensor), copied in zip(plain, pinned_like([tensor for *_, tensor in plain]), strict=True):
        copied.copy_(tensor)
        table[name] = nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied
        copies[id(table), name] = table[name]
    return [(table, name, copies.get((id(table), name), tensor)) for table, name, tensor in weights]


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is no torchao tensor, which has several of its own, and does not move without waiting."""
    return type(tensor) in (torch.Tensor, nn.Parameter)


class _MoveToDeviceHook(ModelHook):  # type: ignore[misc]
    """Runs before forward, and before an autoencoder's encode and decode (diffusers' `apply_forward_hook`)."""

    def __init__(self, placement: Placement, device: torch.device) -> None:
        self._placement, self._device = placement, device

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self._placement.activate(module, self._device)
        return args, kwargs


def first_device(family: Family, options: MemoryOptions) -> torch.device:
    """The device to load weights to before `place`: the CPU with offload or quantisation, as they may not fit yet."""
    return family.device if options.offload == "none" and options.quantize is None else CPU


@torch.inference_mode()  # torchao's tensors can be moved in the mode of their creation only
def place(components: Mapping[str, nn.Module], family: Family, options: MemoryOptions) -> Placement:
    """Apply the options to networks whose weights are loaded on their first device. Irreversible: unloading drops the
    networks."""
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


def _prepare_denoiser(network: Any, family: Family, options: MemoryOptions) -> None:
    if options.attention_slicing is not None:
        network.set_attention_slice(options.attention_slicing)
    if options.quantize is not None:
        quantise(network, options.quantize, family.device)
    cast(network, options, family.dtype)
    if options.compile:
        # Under model offload a background thread cannot rely on the weights being on the device.
        advice = (
            "" if options.quantize is None else "quantised weights are slower so than plain ones: leave quantize out"
        )
        network.forward = compiled(network, options.offload == "none", advice)
    elif options.cuda_graphs and (record := graphs.recorder(family.device)) is not None:
        network.forward = graphs.graphed(network, record)
    elif _traceable(family, options) and options.attention_slicing is None:  # slicing is a Python loop over rows
        network.forward = traced(network)
    if kernel := ATTENTION_KERNELS.get(options.attention_backend or "native"):
        network.forward = _with_kernel(network.forward, getattr(SDPBackend, kernel))


def _traceable(family: Family, options: MemoryOptions) -> bool:
    return family.device.type == "cpu" and options.offload == "none"


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
            # With a stream the next layer is prefetched while one runs. diffusers learns the order of layers from the
            # network's forward, which an autoencoder never runs.
            from diffusers.hooks.group_offloading import apply_group_offloading  # with PEFT, which takes a second

            apply_group_offloading(
                network, device, offload_type="leaf_level", use_stream=streams and device.type == "cuda"
            )
