"""When a model under offload turns from its denoiser to its other networks.

Each turn moves weights: the denoiser leaves, text encoders and VAE come one after another, the denoiser comes back.
So prompts that wait, finished latents, and previews that need the VAE are worked off together, between evaluations.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from darkroom_server.engine.decode import DECODED_AT_ONCE
from darkroom_server.engine.previews import preview_is_due
from darkroom_server.engine.slot import Slot

# Between two turns. One of SDXL in half precision moves 7 GB, which takes about as long as so many evaluations of one
# picture: at most half of the time goes into turns, and nothing that waits for one waits longer than this.
MAX_EVALUATIONS = 8


def swap_is_due(slots: Sequence[Slot]) -> bool:
    """Whether the other networks have their turn after the next evaluation of these slots, all of one lane."""
    ready = [slot for slot in slots if slot.sample is not None and not slot.sample.done]
    waiting = len(slots) - len(ready)
    long_ago = any(slot.evaluations + 1 >= MAX_EVALUATIONS for slot in ready)
    return not ready or waiting >= DECODED_AT_ONCE or (long_ago and (waiting > 0 or any(map(_wants_network, ready))))


def _wants_network(slot: Slot) -> bool:
    assert slot.sample is not None
    step = slot.job.plan.steps.ends.get(slot.sample.evaluation)
    by_network = slot.job.plan.preview_by_network
    return by_network and step is not None and preview_is_due(slot, step, time.monotonic())
