"""When a model under offload turns from its denoiser to its other networks.

Each turn moves weights: the denoiser leaves, text encoders and VAE come one after another, the denoiser comes back.
So prompts that wait, finished latents, and previews that need the VAE are worked off together, between evaluations.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from darkroom_server.engine.decode import DECODED_AT_ONCE
from darkroom_server.engine.previews import BY_NETWORK, wants_preview
from darkroom_server.engine.seat import Seat

# Between two turns. One of SDXL in half precision moves 7 GB, which takes about as long as so many evaluations of one
# picture: at most half of the time goes into turns, and nothing that waits for one waits longer than this.
MAX_EVALUATIONS = 8


def turns_now(seats: Sequence[Seat]) -> bool:
    """Whether the other networks have their turn after the next evaluation of these seats, all of one lane; the seats
    are told."""
    ready = [seat for seat in seats if seat.sample is not None and not seat.sample.done]
    waiting = len(seats) - len(ready)
    for seat in seats:
        seat.evaluations += 1
        seat.denoiser_stays = False
    long_ago = any(seat.evaluations >= MAX_EVALUATIONS for seat in ready)
    due = not ready or waiting >= DECODED_AT_ONCE or (long_ago and (waiting > 0 or any(map(_wants_network, ready))))
    for seat in seats:
        seat.denoiser_stays = not due
        seat.evaluations = 0 if due else seat.evaluations
    return due


def _wants_network(seat: Seat) -> bool:
    assert seat.sample is not None
    step = seat.job.plan.steps.ends.get(seat.sample.evaluation)
    by_network = seat.job.request.preview.mode in BY_NETWORK
    return by_network and step is not None and wants_preview(seat, step, time.monotonic())
