"""Model architectures: Stable Diffusion 1.x, 2.x and XL."""
