"""The ids of jobs that clients choose."""

from __future__ import annotations

import re

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def is_request_id(text: str) -> bool:
    """Whether a client may choose this id."""
    return REQUEST_ID.fullmatch(text) is not None
