"""Roofline: the upper bound of a card's images/s, its measured GEMM rate over the counted FLOPs."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch.utils.flop_counter import FlopCounterMode

TERA = 1e12


def limit(folder: Path, device: str, dtype: torch.dtype, steps: int = 20) -> dict[str, float]:
    """Images/s at this many steps, with guidance, at the model's default size; text encoding excluded."""
    unet = unet_operations(diffusers.UNet2DConditionModel.load_config(folder / "unet"))
    decode = decode_operations(folder)
    rate = matrix_rate(device, dtype)
    return {
        "TFLOP a UNet pass": unet / TERA,
        "TFLOP the decode": decode / TERA,
        "measured TFLOP/s": rate / TERA,
        "limit, images/s": rate / (2 * steps * unet + decode),
    }


def unet_operations(config: Mapping[str, Any]) -> int:
    """FLOPs of one row."""
    unet: Any = _empty(diffusers.UNet2DConditionModel, config)
    size, config = unet.config.sample_size, unet.config
    more = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        more = {"added_cond_kwargs": {"text_embeds": _meta(1, pooled), "time_ids": _meta(1, 6)}}
    with FlopCounterMode(display=False) as counter:
        unet(_meta(1, config.in_channels, size, size), _meta(1), _meta(1, 77, config.cross_attention_dim), **more)
    return counter.get_total_flops()


def decode_operations(folder: Path) -> int:
    """FLOPs to decode one picture."""
    vae: Any = _empty(diffusers.AutoencoderKL, diffusers.AutoencoderKL.load_config(folder / "vae"))
    size = diffusers.UNet2DConditionModel.load_config(folder / "unet")["sample_size"]
    with FlopCounterMode(display=False) as counter:
        vae.decode(_meta(1, vae.config.latent_channels, size, size))
    return counter.get_total_flops()


def matrix_rate(device: str, dtype: torch.dtype, edge: int = 8192, rounds: int = 20) -> float:
    """Measured FLOP/s of large matrix products on a CUDA device."""
    a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    return 2 * edge**3 / seconds_on(device, lambda: torch.mm(a, b), rounds)


def seconds_on(device: str, run: Callable[[], object], rounds: int) -> float:
    """Median seconds on the device, after two more runs."""
    seconds = []
    for _ in range(rounds + 2):
        if device == "cpu":
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
            continue
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        run()
        ended.record()
        torch.cuda.synchronize(device)
        seconds.append(began.elapsed_time(ended) / 1000)
    return statistics.median(seconds[2:])


def launch_seconds(device: str, run: Callable[[], object], times: int) -> float:
    """Mean seconds until one run is asked for, which the device may not have begun then."""
    began = time.perf_counter()
    for _ in range(times):
        run()
    taken = time.perf_counter() - began
    if device != "cpu":
        torch.cuda.synchronize(device)
    return taken / times


def _empty(kind: Any, config: Mapping[str, Any]) -> Any:
    with torch.device("meta"), torch.inference_mode():
        return kind.from_config(config).requires_grad_(False)


def _meta(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="meta")
