"""The family of Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, a VAE."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from darkroom_plugins import UnsupportedCombination, Violation, hookimpl
from darkroom_plugins.contract import Family, ModelInfo, PromptReader
from darkroom_plugins.request import Request
from darkroom_plugins.sample import Evaluation, PromptEmbedding

darkroom_api_version = 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an embedding depends on."""

    text: str
    clip_skip: int
    length: int


class StableDiffusion(Family):
    """A Stable Diffusion 1.x or 2.x model: what diffusers' StableDiffusionPipeline runs, in parts."""

    name = "sd"
    pipeline_class = StableDiffusionPipeline  # whose loaders know the formats of LoRAs

    def __init__(self, pipeline: Any, info: ModelInfo) -> None:
        self.info = info
        self.unet = pipeline.unet
        self.vae = pipeline.vae
        self.text_encoder = pipeline.text_encoder
        self.components = {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}
        self.tokenizer = pipeline.tokenizer
        self.scheduler_config = _patched(pipeline.scheduler.config)
        self.device = self.unet.device
        self.dtype = self.unet.dtype
        self._vae_factor = pipeline.vae_scale_factor

    @classmethod
    def detect(cls, model_index: Mapping[str, Any]) -> bool:
        needed = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "vae": "AutoencoderKL"}
        present = {part: (model_index.get(part) or [None, None])[1] for part in needed}
        return present == needed and "text_encoder_2" not in model_index

    @classmethod
    def describe(cls, folder: Path) -> ModelInfo:
        unet, vae, text, scheduler = (
            _read(folder / part)
            for part in (
                "unet/config.json",
                "vae/config.json",
                "text_encoder/config.json",
                "scheduler/scheduler_config.json",
            )
        )
        channels, latent_channels = unet["in_channels"], vae["latent_channels"]
        if channels not in (latent_channels, 2 * latent_channels + 1):
            problem = f"its denoiser takes {channels} channels where its VAE makes {latent_channels}"
            raise UnsupportedCombination([Violation("model", problem)])
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        size = unet["sample_size"]
        height, width = size if isinstance(size, list) else (size, size)
        return ModelInfo(
            family=cls.name,
            prediction_type=scheduler.get("prediction_type", "epsilon"),
            size_factor=math.lcm(8, factor),  # diffusers' pipelines take multiples of 8 whatever the VAE
            default_width=width * factor,
            default_height=height * factor,
            max_clip_skip=text["num_hidden_layers"] - 1,
            inpainting=channels != latent_channels,
        )

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> StableDiffusion:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        return cls(pipeline.to(device), cls.describe(folder))

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self.vae.config.latent_channels, height // self._vae_factor, width // self._vae_factor

    @property
    def guidance_embedded(self) -> bool:
        """Whether the denoiser takes the guidance as an input (distilled models), so that one row is enough."""
        return self.unet.config.time_cond_proj_dim is not None

    def prompt_keys(self, request: Request, read: PromptReader) -> tuple[Prompt, ...]:
        """As StableDiffusionPipeline.encode_prompt, which does not skip layers for the negative prompt."""
        length = self.tokenizer.model_max_length
        conditional = Prompt(request.prompt, request.clip_skip, length)
        if not request.guided or self.guidance_embedded:
            return (conditional,)
        return Prompt(request.negative_prompt or "", 0, length), conditional

    def encode_prompt(self, key: Prompt) -> PromptEmbedding:
        text, clip_skip = key.text, key.clip_skip
        limit = self.tokenizer.model_max_length
        ids = self.tokenizer(text, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        mask = ids.attention_mask if getattr(self.text_encoder.config, "use_attention_mask", False) else None
        output = self.text_encoder(
            ids.input_ids.to(self.device),
            attention_mask=mask.to(self.device) if mask is not None else None,
            output_hidden_states=clip_skip > 0,
        )
        hidden = output[0]
        if clip_skip > 0:
            norm = getattr(self.text_encoder, "text_model", self.text_encoder).final_layer_norm
            hidden = norm(output.hidden_states[-(clip_skip + 1)])
        return PromptEmbedding(hidden.to(self.dtype), warnings=self._cut_off(text, limit))

    def _cut_off(self, text: str, limit: int) -> tuple[str, ...]:
        ids = self.tokenizer(text, truncation=False, verbose=False).input_ids
        if len(ids) <= limit:
            return ()
        rest = self.tokenizer.decode(ids[limit - 1 : -1])[:200]
        return (f"the text encoder takes {limit - 2} tokens; of a prompt of {len(ids) - 2} this was cut off: {rest!r}",)

    def predict(self, evaluation: Evaluation) -> torch.Tensor:
        condition = self._guidance_embedding(evaluation) if self.guidance_embedded else None
        latents = [each for each in (evaluation.latents, evaluation.extra_channels) if each is not None]
        return self.unet(  # type: ignore[no-any-return]
            torch.cat(latents, dim=1),
            evaluation.timesteps,
            encoder_hidden_states=evaluation.prompts,
            timestep_cond=condition,
            return_dict=False,
            **self.added_conditions(evaluation),
            **evaluation.arguments,
        )[0]

    def _guidance_embedding(self, evaluation: Evaluation) -> torch.Tensor:
        """(rows, width) as diffusers' StableDiffusionPipeline.get_guidance_scale_embedding, a function of w - 1."""
        scales = torch.tensor([row.sample.request.guidance_scale - 1 for row in evaluation.rows])
        width = self.unet.config.time_cond_proj_dim
        embed = StableDiffusionPipeline.get_guidance_scale_embedding
        return embed(None, scales, embedding_dim=width).to(self.device, self.dtype)  # type: ignore[no-any-return]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]  # type: ignore[no-any-return]

    def encode(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        distribution = self.vae.encode(images).latent_dist
        latents = distribution.sample(generator) if generator else distribution.mode()
        return latents * self.vae.config.scaling_factor  # type: ignore[no-any-return]


def _patched(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration with what the pipeline sets where the model's files are silent; `from_config` would
    take these two for defaults, and leave them out."""
    silent = set(config.get("_use_default_values", ())) - {"steps_offset", "clip_sample"}
    return {name: value for name, value in config.items() if name not in silent and name != "_use_default_values"}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


@hookimpl
def darkroom_families() -> Sequence[type[Family]]:
    return [StableDiffusion]
