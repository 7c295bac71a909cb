"""Base of Stable Diffusion 1.x, 2.x and XL: a UNet, a VAE, CLIP text encoders."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, ClassVar, Self

from darkroom_plugins import UnsupportedCombination, Violation
from darkroom_plugins.builtin.families import deepcache
from darkroom_plugins.builtin.families.clip import ClipEncoder, Prompt, TextEncoders
from darkroom_plugins.contract import Family, ModelInfo, PromptReader
from darkroom_plugins.deferred import torch
from darkroom_plugins.files import MetaNetworks, ModelFiles
from darkroom_plugins.fixed_outputs import with_fixed_outputs
from darkroom_plugins.request import Request
from darkroom_plugins.sample import Evaluation, PromptEmbedding, Row
from darkroom_plugins.tensors import to_device

# Schedulers of models that scale noise in other ways, and cannot be sampled by the server's.
OTHER_FORMULATIONS = ("EDM", "FlowMatch", "CMStochastic")


class UNetFamily(Family):
    """The components of one of diffusers' pipelines."""

    classes: ClassVar[Mapping[str, str]]  # component → class, as in model_index.json
    text_encoders: ClassVar[tuple[str, ...]]  # in the order of prompt, prompt_2
    penultimate: ClassVar[bool] = False  # whether hidden states are the last but one layer's
    patched_options: ClassVar[Mapping[str, Any]] = {}  # scheduler options that the pipeline overrides
    reads_headers_only = True

    def __init__(self, files: ModelFiles, device: torch.device, dtype: torch.dtype) -> None:
        self.info = self.describe(files)
        self.device, self.dtype, self._files = device, dtype, files
        self.meta_components = MetaNetworks(
            {name: files.component(name) for name in ("unet", "vae", *self.text_encoders)}
        )
        self.components = {}
        files.class_of("scheduler")
        for name in self.text_encoders:
            files.check_tokenizer(_tokenizer_of(name))

    def build(self) -> None:
        super().build()
        _ = self.scheduler_config, self.texts

    @cached_property
    def texts(self) -> TextEncoders:
        """The text encoders with their tokenizers."""
        encoders = [
            ClipEncoder(self._files.tokenizer(_tokenizer_of(name)), self, name, index, self.penultimate)
            for index, name in enumerate(self.text_encoders)
        ]
        return TextEncoders(encoders, self._files.index.get("force_zeros_for_empty_prompt", False))

    def _config(self, component: str) -> Any:
        return self.meta_components[component].config

    @property
    def unet(self) -> Any:
        """The denoiser."""
        return self.components["unet"]

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.components["vae"]

    @classmethod
    def open(cls, files: ModelFiles, device: torch.device, dtype: torch.dtype) -> Self:
        return cls(files, device, dtype)

    @classmethod
    def detect(cls, model_index: Mapping[str, Any]) -> bool:
        return all((model_index.get(part) or [None, None])[1] == name for part, name in cls.classes.items())

    @classmethod
    def describe(cls, files: ModelFiles) -> ModelInfo:
        parts = ("unet", "vae", *cls.text_encoders)
        unet, vae, *encoders = (files.config(part) for part in parts)
        scheduler = files.config("scheduler")
        if (kind := scheduler.get("_class_name", "")).startswith(OTHER_FORMULATIONS):
            raise refusal(f"its scheduler is {kind}: it is of another formulation than noise in discrete steps")
        channels, latent_channels = unet["in_channels"], vae["latent_channels"]
        if channels not in (latent_channels, 2 * latent_channels + 1):
            raise refusal(f"its denoiser takes {channels} channels where its VAE makes {latent_channels}")
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        size = unet["sample_size"]
        height, width = size if isinstance(size, list) else (size, size)
        return ModelInfo(
            family=cls.name,
            prediction_type=scheduler.get("prediction_type", "epsilon"),
            size_factor=math.lcm(8, factor),  # diffusers' pipelines take multiples of 8 whatever the VAE
            default_width=width * factor,
            default_height=height * factor,
            max_clip_skip=min(encoder["num_hidden_layers"] for encoder in encoders) - 1,
            text_encoders=len(encoders),
            inpainting=channels != latent_channels,
            max_cache_interval=deepcache.max_interval(unet),
        )

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        config = self.config("vae")
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        return config["latent_channels"], height // factor, width // factor

    @property
    def guidance_embedded(self) -> bool:
        """Whether the UNet takes the guidance scale as an input (guidance-distilled models): one row a sample."""
        return self._config("unet").time_cond_proj_dim is not None

    def prompt_keys(self, request: Request, read: PromptReader) -> tuple[Prompt, ...]:
        return self.texts.keys(request, read, request.guided and not self.guidance_embedded)

    def encode_prompts(self, keys: Sequence[Prompt]) -> list[PromptEmbedding]:
        return self.texts.encode(keys, torch.empty(0, device=self.device, dtype=self.dtype))

    def residual_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        unet: Any = self.meta_components["unet"]
        shapes = [(unet.conv_in.out_channels, height, width)]
        for block in unet.down_blocks:
            shapes += [(resnet.out_channels, height, width) for resnet in block.resnets]
            for downsampler in block.downsamplers or ():
                height, width = -(-height // 2), -(-width // 2)
                shapes.append((downsampler.out_channels, height, width))
        return [*shapes, shapes[-1]]  # the mid block's

    def structure(self, row: Row) -> Hashable:
        return deepcache.is_cached_step(row)

    def predict(self, evaluation: Evaluation) -> torch.Tensor:
        from darkroom_plugins.builtin.families.cross_attention_cache import projected
        from darkroom_plugins.builtin.families.time_layers import time_outputs

        condition = self._guidance_embedding(evaluation) if self.guidance_embedded else None
        latents = [each for each in (evaluation.latents, evaluation.extra_channels) if each is not None]
        added = self.added_conditions(evaluation)
        with (
            projected(self.unet, evaluation),
            with_fixed_outputs(time_outputs(self.unet, evaluation, added, condition)),
        ):
            return deepcache.denoise(
                self.unet,
                evaluation,
                torch.cat(latents, dim=1),
                evaluation.timesteps,
                encoder_hidden_states=evaluation.prompts,
                timestep_cond=condition,
                return_dict=False,
                **added,
                **_residuals(evaluation),
                **evaluation.arguments,
            )

    def _guidance_embedding(self, evaluation: Evaluation) -> torch.Tensor:
        """(rows, width): that of guidance_scale - 1 as a timestep, as in the pipeline."""
        requests = [row.sample.request for row in evaluation.rows]
        return evaluation.batch_cache.get_or_make("timestep_cond", self._embedded, requests)

    def _embedded(self, requests: Sequence[Request]) -> torch.Tensor:
        from diffusers.models.embeddings import get_timestep_embedding

        scales = torch.tensor([request.guidance_scale - 1 for request in requests])
        width = self._config("unet").time_cond_proj_dim
        return to_device(get_timestep_embedding(scales * 1000, width).to(self.dtype), self.device)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        latents = latents.to(self.vae.dtype)
        mean, std = self._statistics(latents)
        pictures = self.vae.decode(latents * std / self.vae.config.scaling_factor + mean, return_dict=False)[0]
        return pictures.to(self.dtype)  # type: ignore[no-any-return]

    def tiling(self, width: int, height: int) -> AbstractContextManager[None] | None:
        larger = max(self.latent_shape(width, height)[1:]) > self.vae.tile_latent_min_size
        return Tiling(self.vae) if larger and not self.vae.use_tiling else None

    def encode(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        distribution = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        latents = distribution.mode()
        if generator is not None:
            from diffusers.utils.torch_utils import randn_tensor

            # As `latent_dist.sample`, without its device synchronisation
            noise = randn_tensor(latents.shape, generator, dtype=latents.dtype)
            latents = latents + distribution.std * to_device(noise, latents.device)
        latents = latents.to(self.dtype)
        mean, std = self._statistics(latents)
        return (latents - mean) * self.vae.config.scaling_factor / std  # type: ignore[no-any-return]

    def _statistics(self, like: torch.Tensor) -> tuple[Any, Any]:
        """Mean and standard deviation of the VAE's latents, (1, channels, 1, 1); 0 and 1 if not configured."""
        mean, std = (self.vae.config.get(name) for name in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            return 0.0, 1.0
        there = [to_device(torch.tensor(each, dtype=like.dtype), like.device) for each in (mean, std)]
        return there[0].view(1, -1, 1, 1), there[1].view(1, -1, 1, 1)

    @property
    def own_scheduler(self) -> Mapping[str, Any]:
        return self._files.config("scheduler")

    @cached_property
    def scheduler_config(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The scheduler's configuration in the pipeline. Defaults that its file does not set are left out: another
        class that is built `from_config` has its own."""
        config = dict(self._files.scheduler().config)
        defaults = set(config.pop("_use_default_values", ())) - set(self.patched_options)
        config |= {name: value for name, value in self.patched_options.items() if name in config}
        return {name: value for name, value in config.items() if name not in defaults}


class Tiling(AbstractContextManager[None]):
    """diffusers' switch of an autoencoder, which it reads when `encode` or `decode` begins."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def __enter__(self) -> None:
        self._vae.enable_tiling()

    def __exit__(self, *_: object) -> None:
        self._vae.disable_tiling()


def _residuals(evaluation: Evaluation) -> dict[str, Any]:
    """The residuals as arguments of the UNet's forward."""
    if evaluation.residuals is None:
        return {}
    *down, middle = evaluation.residuals
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def _tokenizer_of(text_encoder: str) -> str:
    return text_encoder.replace("text_encoder", "tokenizer")


def refusal(problem: str) -> UnsupportedCombination:
    """The error for a model that cannot be served."""
    return UnsupportedCombination([Violation("model", problem)])
