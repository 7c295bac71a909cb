"""The embedded demo model: a small latent-diffusion model of coloured shapes, trained on pictures drawn here.

Importing this package imports nothing heavy; `data` needs Pillow and numpy, `train` and `evaluate` also torch.
"""

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"
"""The folder with the trained weights, as `StableDiffusionPipeline.from_pretrained` loads it."""

__all__ = ["MODEL_PATH"]
