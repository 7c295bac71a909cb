"""The networks alone, without the server: what a tick could take at best, and what keeps it from that."""

import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from darkroom_server.networks.graphs import recorder
from tests.benchmarks import architectures
from tests.benchmarks.bench import Bench
from tests.benchmarks.limits import TERA, launch_seconds, seconds_on, unet_operations

ROWS = (2, 8, 16, 32)
EDGES = (512, 768, 1024)  # pixels
STEPS = 20
KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
DECODES: dict[str, tuple[torch.dtype, int, torch.memory_format, bool]] = {  # dtype, pictures, layout, TF32
    "float32 with TF32": (torch.float32, 1, torch.channels_last, True),
    "float32": (torch.float32, 1, torch.channels_last, False),
    "float16": (torch.float16, 1, torch.channels_last, True),
    "bfloat16": (torch.bfloat16, 1, torch.channels_last, True),
    "bfloat16, contiguous": (torch.bfloat16, 1, torch.contiguous_format, True),
    "bfloat16, 4 at once": (torch.bfloat16, 4, torch.channels_last, True),
    "float32 with TF32, 4 at once": (torch.float32, 4, torch.channels_last, True),
}


@torch.inference_mode()
def measure(bench: Bench) -> dict[str, Any]:
    """Times of the denoiser by rows: eager, of Python alone, as a CUDA graph; with each attention kernel, contiguous,
    with cudnn.benchmark; by kernel; images/s by picture size; then of the decode by dtype."""
    unet = _Unet(bench)
    most = ROWS[0] if bench.options.smoke else ROWS[-1]
    for rows in (rows for rows in ROWS if rows <= most):
        bench.note(f"{rows} rows", unet.times(rows))
    bench.note(
        f"{most} rows by attention kernel, ms", {kernel.name: unet.with_kernel(most, kernel) for kernel in KERNELS}
    )
    bench.note(f"{most} rows by layout, ms", unet.by_layout(most))
    bench.note(f"{most} rows by kernel, ms", unet.by_kernel(most))
    for edge in () if bench.options.smoke else EDGES:
        found = {rows: rows / 2 / STEPS * 1000 / unet.eager(rows, edge // 8) for rows in ROWS}
        bench.note(f"images/s of {STEPS} steps by rows at {edge} pixels, without the decode", found)
    del unet
    vae, size = _vae(bench)
    for name, how in [*DECODES.items()][: 1 if bench.options.smoke else None]:
        bench.note(f"decode of one picture, {name}", _decode(vae, size, bench.options.device, *how))
    return bench.parts["networks"]  # type: ignore[no-any-return]


class _Unet:
    """A denoiser with random weights, channels last as in the server."""

    def __init__(self, bench: Bench) -> None:
        named = {"sd15": architectures.UNET_15, "sdxl": architectures.UNET_XL}
        config = named.get(bench.name) or UNet2DConditionModel.load_config(bench.model / "unet")
        self._device, self._dtype = bench.options.device, bench.dtype
        self._operations = unet_operations(config)
        with torch.device(self._device):
            self._unet = UNet2DConditionModel.from_config(config).to(self._dtype).eval()
        self._unet.to(memory_format=torch.channels_last)

    def call(self, rows: int, size: int | None = None) -> Callable[[], Any]:
        """One forward; `size` of the latents, None: the model's own."""
        config = self._unet.config
        size = size or config.sample_size
        like: dict[str, Any] = {"device": self._device, "dtype": self._dtype}
        prompts = torch.randn(rows, 77, config.cross_attention_dim, **like)
        args = torch.randn(rows, 4, size, size, **like), torch.full((rows,), 500.0, device=self._device), prompts
        more = {}
        if config.addition_embed_type:
            pooled = {"text_embeds": torch.randn(rows, 1280, **like), "time_ids": torch.full((rows, 6), 1024.0, **like)}
            more = {"added_cond_kwargs": pooled}
        return lambda: self._unet(*args, **more, return_dict=False)

    def eager(self, rows: int, size: int | None = None) -> float:
        """Milliseconds."""
        return 1000 * seconds_on(self._device, self.call(rows, size), 4)

    def times(self, rows: int) -> dict[str, Any]:
        """Milliseconds of one forward, and TFLOP/s."""
        run = self.call(rows)
        first = 1000 * _seconds(self._device, run)
        eager = self.eager(rows)
        found = {"first ms": first, "ms": eager, "TFLOP/s": rows * self._operations / TERA / eager * 1000}
        found["until launched, ms"] = 1000 * launch_seconds(self._device, run, 3)
        return {**found, "as a CUDA graph, ms": _attempt(lambda: self._graphed(run))}

    def _graphed(self, run: Callable[[], Any]) -> float | None:
        record = recorder(torch.device(self._device))
        return 1000 * seconds_on(self._device, record(run).replay, 4) if record else None

    def with_kernel(self, rows: int, kernel: SDPBackend) -> Any:
        """Milliseconds, or why not."""

        def with_it() -> float:
            with sdpa_kernel(kernel):
                return self.eager(rows)

        return _attempt(with_it)

    def by_layout(self, rows: int) -> dict[str, Any]:
        """Milliseconds channels last, with cudnn.benchmark, and contiguous."""
        found = {"channels last": self.eager(rows)}
        torch.backends.cudnn.benchmark = True
        try:
            found["channels last, cudnn.benchmark"] = self.eager(rows)
        finally:
            torch.backends.cudnn.benchmark = False
        self._unet.to(memory_format=torch.contiguous_format)
        found["contiguous"] = self.eager(rows)
        self._unet.to(memory_format=torch.channels_last)
        return found

    def by_kernel(self, rows: int) -> Any:
        """Milliseconds of the longest kernels of one forward."""
        from torch.profiler import ProfilerActivity, profile

        def profiled() -> dict[str, float]:
            run, cuda = self.call(rows), self._device != "cpu"
            with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
                _seconds(self._device, run)
            spent = {
                f"{each.key[:80]} x{each.count}": (each.self_device_time_total or each.self_cpu_time_total) / 1000
                for each in profiler.key_averages()
            }
            return dict(sorted(spent.items(), key=lambda item: -item[1])[:16])

        return _attempt(profiled)


def _vae(bench: Bench) -> tuple[Any, int]:
    """The decoder's network, and the size of its latents."""
    make = {"sd15": architectures.vae_15, "sdxl": architectures.vae_xl}.get(bench.name)
    with torch.device(bench.options.device):
        vae: Any = make() if make else AutoencoderKL.from_config(AutoencoderKL.load_config(bench.model / "vae"))
    return vae.eval(), vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)


def _decode(
    vae: Any, size: int, device: str, dtype: torch.dtype, count: int, layout: torch.memory_format, tf32: bool
) -> Any:
    latents = torch.randn(count, vae.config.latent_channels, size, size, device=device, dtype=dtype)
    vae.to(dtype=dtype, memory_format=layout)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32

    def decoded() -> dict[str, float]:
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        seconds = seconds_on(device, lambda: vae.decode(latents, return_dict=False), 3)
        peak = torch.cuda.max_memory_allocated() if device != "cpu" else 0
        return {"ms": 1000 * seconds / count, "peak GiB": peak / 2**30}

    try:
        return _attempt(decoded)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _seconds(device: str, run: Callable[[], Any]) -> float:
    """Of one run, with all that is done the first time."""
    began = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _attempt(run: Callable[[], Any]) -> Any:
    """What it returns, or its error: the other figures do not depend on it."""
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    finally:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
