"""Startup checks of memory options: conflicts between options, and support by model, device and libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from darkroom_plugins.deferred import nn, torch
from darkroom_server.device.threads import lower_thread_priority
from darkroom_server.networks.sizes import ATTENTION_KERNELS, denoiser

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

    from darkroom_plugins.contract import Family
    from darkroom_server.config.settings import MemoryOptions

DENOISER_OPTIONS = ("attention_slicing", "layerwise_casting", "quantize", "attention_backend", "compile", "cuda_graphs")
TRIED = ("layerwise_casting", "quantize", "attention_backend", "compile", "cuda_graphs")
VAE_OPTIONS = ("vae_slicing", "vae_tiling")


def check(options: MemoryOptions, family: Family) -> list[str]:
    """All violations of a model's memory options, each prefixed with the option's name."""
    return [*_conflicts(options), *_unsupported(options, family), *_failing(options, family)]


def needs_trial(options: MemoryOptions) -> bool:
    """Whether some are tried on the device, with torch."""
    return any(getattr(options, name) for name in TRIED)


def has_own_memory(device: torch.device) -> bool:
    """Whether the device's memory is separate from the CPU's."""
    return device.type not in ("cpu", "mps")


def _conflicts(options: MemoryOptions) -> Iterator[str]:
    if options.quantize and options.layerwise_casting:
        yield "layerwise_casting: quantize keeps the weights in a type of its own; set one of the two"
    if options.quantize and options.offload == "sequential":
        yield "offload: sequential cannot move quantised weights; with quantize use model or group"
    if options.compile and options.offload in ("sequential", "group"):
        yield f"compile: the weights come layer by layer with offload {options.offload}; use model or none"
    if options.compile and options.layerwise_casting:
        yield "compile: layerwise_casting changes the weights at each use; set one of the two"
    if options.compile and options.attention_backend is not None:
        yield "attention_backend: compiled code keeps the one that it was compiled with; set this or compile"
    if options.cuda_graphs and options.compile:
        yield "cuda_graphs: compiled code is launched as it is; set this or compile"
    if options.cuda_graphs and options.offload != "none":
        yield f"cuda_graphs: a graph needs the weights where they were, which offload {options.offload} moves"
    if options.attention_slicing is not None and options.attention_backend is not None:
        yield "attention_backend: sliced attention calls no backend; set this or attention_slicing"


def _unsupported(options: MemoryOptions, family: Family) -> Iterator[str]:
    """Options that the model's networks do not support."""
    lacks: tuple[str, ...] = DENOISER_OPTIONS if denoiser(family) is None else ()
    lacks += VAE_OPTIONS if "vae" not in family.meta_components else ()
    for name in lacks:
        if getattr(options, name) not in (None, False):
            yield f"{name}: the model has no network for it"
    part = denoiser(family)
    if options.attention_slicing is not None and part is not None:
        heads = min((m.sliceable_head_dim for m in _attentions(family.meta_components[part])), default=0)
        if not hasattr(family.meta_components[part], "set_attention_slice"):
            yield "attention_slicing: the model's attention cannot be sliced"
        elif isinstance(options.attention_slicing, int) and options.attention_slicing > heads:
            yield f"attention_slicing: must be at most {heads}, the heads of the smallest layer"
        elif options.attention_slicing == "auto" and heads < 2:
            yield "attention_slicing: auto takes half of a layer's heads, and one has a single head; use max"
    if options.attention_backend is not None and options.attention_backend not in ATTENTION_KERNELS:
        yield f"attention_backend: must be one of {', '.join(ATTENTION_KERNELS)}"


def _failing(options: MemoryOptions, family: Family) -> Iterator[str]:
    """Options that fail in a small trial on the device."""
    if options.offload != "none" and not has_own_memory(family.device):
        yield f"offload: {family.device} has no memory of its own that could be spared"
    if not needs_trial(options):
        return
    device, dtype = family.device, family.dtype
    if options.quantize is not None:
        yield from _trial("quantize", lambda: _try_quantise(options, device, dtype))
    if options.layerwise_casting is not None:
        storage = getattr(torch, options.layerwise_casting)
        yield from _trial("layerwise_casting", lambda: torch.ones(8, device=device).to(storage).to(dtype).cpu())
    kernel = ATTENTION_KERNELS.get(options.attention_backend or "native")
    if kernel is not None and (part := denoiser(family)) is not None:
        widths = {module.to_q.out_features // module.heads for module in _attentions(family.meta_components[part])}
        yield from _trial("attention_backend", lambda: _try_attention(kernel, widths, device, dtype))
    if options.cuda_graphs:
        from darkroom_server.networks import graphs

        if graphs.recorder(device) is None:
            yield f"cuda_graphs: {device} is no CUDA device"
    if options.compile and torch.version.cuda is not None and not torch.cuda.is_available():
        yield f"compile: torch {torch.__version__} is built for CUDA, and its compiler crashes without a GPU"
    elif options.compile:
        yield from _trial("compile", lambda: _try_compile(device))


def _trial(option: str, attempt: Callable[[], object]) -> Iterator[str]:
    try:
        with torch.inference_mode():
            attempt()
    except ModuleNotFoundError as error:
        yield f"{option}: needs {(error.name or '').partition('.')[0]}"
    except Exception as error:
        yield f"{option}: does not work here: {str(error).strip().partition(chr(10))[0][:200]}"


def _try_quantise(options: MemoryOptions, device: torch.device, dtype: torch.dtype) -> None:
    from darkroom_server.networks.conversion import INT4_GROUP, quantise

    assert options.quantize is not None
    layer = nn.Linear(INT4_GROUP, INT4_GROUP, dtype=dtype).requires_grad_(False)
    quantise(nn.Sequential(layer), options.quantize, device)
    if options.offload != "none":
        layer.to("cpu").to(device)
    layer(torch.ones(2, INT4_GROUP, device=device, dtype=dtype)).cpu()


def _try_compile(device: torch.device) -> None:
    """In a low-priority thread: Inductor's workers, which this starts, inherit its priority."""
    with ThreadPoolExecutor(1, initializer=lower_thread_priority) as pool:
        pool.submit(torch.inference_mode()(lambda: torch.compile(torch.sin)(torch.ones(8, device=device)))).result()


def _try_attention(kernel: str, widths: set[int], device: torch.device, dtype: torch.dtype) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for width in widths:
        query = torch.ones(2, 1, 16, width, device=device, dtype=dtype)  # (batch, heads, tokens, width)
        with sdpa_kernel(getattr(SDPBackend, kernel)):
            nn.functional.scaled_dot_product_attention(query, query, query).cpu()


def _attentions(network: nn.Module) -> list[Attention]:
    from diffusers.models.attention_processor import Attention

    return [module for module in network.modules() if isinstance(module, Attention)]
