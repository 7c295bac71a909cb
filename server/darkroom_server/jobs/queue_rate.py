"""When a refused client should try again."""

from __future__ import annotations

import random
from collections import deque

MEASURED = 64  # jobs
UNKNOWN = 2.0  # seconds, before any job has ended
LEAST, MOST = 0.5, 60.0  # seconds
SHARE, JITTER = 0.1, 0.25


class QueueRate:
    """Measures how fast jobs end."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=MEASURED)  # time.monotonic

    def record_end(self, now: float) -> None:
        """A job that had started has ended."""
        self._ends.append(now)

    def retry_after(self, waiting: int, now: float) -> float:
        """Seconds in which a tenth of the waiting jobs will have ended, at least one, give or take a quarter by chance:
        clients that were refused together do not come back together."""
        seconds = UNKNOWN
        if self._ends:
            seconds = (now - self._ends[0]) / len(self._ends) * max(1.0, SHARE * waiting)
        return round(random.uniform(1 - JITTER, 1 + JITTER) * min(max(seconds, LEAST), MOST), 3)
