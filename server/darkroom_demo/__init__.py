"""The embedded demo model: a small latent-diffusion model of coloured shapes, trained on pictures drawn here.

Importing this package imports nothing heavy; `data` needs Pillow, numpy and OpenCV, training and evaluation also torch.
"""

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"
"""The folder with the trained weights, as `StableDiffusionPipeline.from_pretrained` loads it."""

ADAPTERS_PATH = Path(__file__).parent / "adapters"
CONTROLNET_PATH = ADAPTERS_PATH / "controlnet-canny"
"""A ControlNet for Canny edges, as `ControlNetModel.from_pretrained` loads it."""
LORA_PATHS = {name: ADAPTERS_PATH / f"{name}.safetensors" for name in ("outline", "stripes")}
"""Style LoRAs by name, as `StableDiffusionPipeline.load_lora_weights` loads them."""

__all__ = ["ADAPTERS_PATH", "CONTROLNET_PATH", "LORA_PATHS", "MODEL_PATH"]
