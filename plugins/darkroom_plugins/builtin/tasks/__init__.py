"""Tasks: text to image, image to image, inpainting, outpainting."""
