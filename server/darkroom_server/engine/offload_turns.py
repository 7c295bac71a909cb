"""Schedules network swaps of offloaded models: text encoding and decoding are batched between denoising steps.

A swap moves weights: the denoiser off the device, text encoders and VAE on it one after another, the denoiser back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from darkroom_server.engine.decode import DECODED_AT_ONCE
from darkroom_server.engine.previews import preview_is_due
from darkroom_server.engine.slot import Slot

# Between two swaps. One of SDXL in half precision moves 7 GB, about the time of so many evaluations of one image: swaps
# take at most half of the time, and no prompt, preview or decoding waits longer than this.
MAX_EVALUATIONS = 8


def swap_is_due(slots: Sequence[Slot]) -> bool:
    """Whether to swap in the other networks after the next evaluation of these slots, all of one lane."""
    ready = [slot for slot in slots if slot.sample is not None and not slot.sample.done]
    waiting = len(slots) - len(ready)
    overdue = any(slot.evaluations + 1 >= MAX_EVALUATIONS for slot in ready)
    return not ready or waiting >= DECODED_AT_ONCE or (overdue and (waiting > 0 or any(map(_needs_swap, ready))))


def _needs_swap(slot: Slot) -> bool:
    assert slot.sample is not None
    step = slot.plan.steps.ends.get(slot.sample.evaluation)
    by_network = slot.plan.preview_by_network
    return by_network and step is not None and preview_is_due(slot, step, time.monotonic())
