"""What diffusion can do, step by step, against a server of the demo model: `darkroom serve`, then `python tutorial.py`.

Writes all that it makes into one contact sheet, tutorial.png.
"""

import argparse
import sys

import PIL.Image
import PIL.ImageDraw

from darkroom_client import Client, ControlSpec
from darkroom_client.contact_sheet import Tile, contact_sheet


def steps(client: Client, num_inference_steps: int = 25) -> list[Tile]:
    """Runs every step of the tutorial; returns its pictures with labels."""
    made: list[Tile] = []
    same = {"seed": 7, "num_inference_steps": num_inference_steps}

    def show(label: str, picture: PIL.Image.Image) -> None:
        made.append(Tile(picture, label))

    # Text to image. The seed decides the noise that the picture is made from: the same one gives the same picture.
    heart = client.generate("a large red heart on a white background", **same).image()
    show("text to image", heart.pil)

    # Guidance is how strongly the prompt pulls. Up to 1 there is none: the plain conditional prediction, at half the
    # cost.
    for scale in (1.0, 7.5):
        picture = client.generate("a large red heart on a white background", guidance_scale=scale, **same).image()
        show(f"guidance {scale:g}", picture.pil)

    # Noise schedulers: other ways through the same noise. Those that add noise at each step are reproducible by seed,
    # too.
    streams = {
        name: client.generate("a large yellow star on a purple background", scheduler=name, **same)
        for name in ("ddim", "euler", "euler-ancestral", "dpmpp-2m", "unipc", "ddpm")
    }  # all at once: the server makes them together, step by step
    for name, stream in streams.items():
        show(name, stream.image().pil)

    # Image to image: noise is added to a picture, and only the last part of the steps runs.
    for strength in (0.4, 0.8):
        picture = client.edit(heart, "a large blue heart on a white background", strength=strength, **same).image()
        show(f"image to image, {strength:g}", picture.pil)

    # Inpainting: white in the mask is repainted, every other pixel is kept.
    mask = PIL.Image.new("L", (heart.width, heart.height))
    PIL.ImageDraw.Draw(mask).rectangle((0, 0, heart.width // 2, heart.height), fill=255)
    picture = client.edit(heart, "a green star", mask=mask, keep_unmasked=True, **same).image()
    show("inpainting, left half", picture.pil)

    # ControlNet: the server takes the edges of a picture, which the new one follows.
    edges = client.preprocess(heart, "canny").control_images()[0]
    show("edges by canny", edges.pil)
    control = ControlSpec("canny", edges)
    picture = client.generate("a large green heart on a yellow background", controls=[control], **same).image()
    show("along these edges", picture.pil)

    # LoRAs, each alone and blended by weights: small changes to the weights of the model.
    for loras in (["outline"], ["stripes"], ["outline:0.6", "stripes:0.6"]):
        picture = client.generate("a large green square on a white background", loras=loras, **same).image()
        show(" + ".join(loras), picture.pil)
    return made


def memory(client: Client) -> str:
    """What the models take. How they are kept small is the server's: `offload`, `vae_tiling`, `quantize`, `dtype` …, in
    darkroom.toml (server/configuration.md); no request and no client changes with it."""
    lines = (f"{model.name}: {model.weight_bytes / 2**20:.0f} MiB, {model.dtype}" for model in client.models())
    return "\n".join(lines)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("address", nargs="?", help="HOST:PORT; default: DARKROOM_ADDRESS, else 127.0.0.1:50051")
    with Client(arguments.parse_args().address) as server:
        contact_sheet(steps(server)).save("tutorial.png")
        sys.stdout.write(memory(server) + "\n")
