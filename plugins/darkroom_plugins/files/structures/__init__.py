"""Names and shapes of a network's weights, by its configuration: as the classes of diffusers and transformers make
them, which take seconds to import. Covers the networks of Stable Diffusion 1.x, 2.x and XL.
"""

from __future__ import annotations

from darkroom_plugins.files.structures import clip, unet, vae
from darkroom_plugins.files.structures.network import Config, Kinds, Network, Shapes

KINDS: Kinds = {**unet.KINDS, **vae.KINDS, **clip.KINDS}


def structure(kind: str, config: Config) -> Shapes | None:
    """The weights of a network of this class; None if the class, or an option of it, is not covered here."""
    if kind not in KINDS:
        return None
    network = Network()
    try:
        KINDS[kind][0](network, with_defaults(kind, config))
    except Exception:  # the class says what is wrong with the configuration
        return None
    return network


def with_defaults(kind: str, config: Config) -> Config:
    """A configuration with the defaults of its class, where the class is covered: files of older versions leave out
    what came later."""
    return {**KINDS[kind][1], **config} if kind in KINDS else config
