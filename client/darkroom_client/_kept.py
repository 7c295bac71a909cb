"""The streams of kept jobs, which are taken up again when the connection or the server is lost."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from darkroom.v1 import events_pb2
from darkroom_client._attempts import StreamCall, cancellation
from darkroom_client.errors import (
    DarkroomError,
    JobLogUnavailable,
    QueueFull,
    RequestNotFound,
    SlowReader,
    Unavailable,
)

log = logging.getLogger("darkroom_client")

_PATIENCE = 300.0  # seconds without a server, of a call without a time-out
_FIRST_DELAY, _LONGEST_DELAY, _JITTER = 0.1, 2.0, 0.25  # seconds; share of the delay


class KeptCall:
    """A kept job's stream over as many calls as it takes. What its reader has seen does not come again.

    :param first: the call that is under way, which is made again by itself until it is answered.
    :param watch: begins a Watch after a sequence, with the seconds left.
    :param again: starts the job again, with this seed, where the server does not know it any more; None: that cannot be
        done.
    :param after: the sequence that `first` began after.
    :param timeout: seconds for all of it; None: no limit, but for how long the server may be away.
    """

    def __init__(
        self,
        first: StreamCall,
        watch: Callable[[int, float | None], StreamCall],
        again: Callable[[int, float | None], StreamCall] | None,
        timeout: float | None,
        after: int = 0,
    ) -> None:
        self._call, self._watch, self._again = first, watch, again
        self._end = None if timeout is None else time.monotonic() + timeout
        self._after = after  # the sequence of the last event read
        self._answered = False
        self._request_id = ""  # known once it is answered
        self._seen = _Seen()
        self._lost_at: float | None = None  # when the server was lost; None: it is there
        self._backoff = _FIRST_DELAY
        self._cancelled = asyncio.Event()

    async def read(self) -> Any:
        """The next response, or None at the end.

        :raises DarkroomError: the job's error; `Cancelled` if it was cancelled here.
        """
        while True:
            try:
                response = await self._call.read()
            except DarkroomError as error:
                self._call = await self._resumed(error)
                continue
            if response is None:
                return None
            self._answered, self._after = True, response.event.sequence
            self._request_id = response.event.request_id
            self._lost_at, self._backoff = None, _FIRST_DELAY
            if self._seen.is_new(response.event):
                return response

    def cancel(self) -> None:
        """Ends the stream; its reader gets `Cancelled`. Idempotent."""
        self._cancelled.set()
        self._call.cancel()

    async def _resumed(self, error: DarkroomError) -> StreamCall:
        """The next call after this error.

        :raises DarkroomError: the error, if there is none.
        """
        gone = isinstance(error, RequestNotFound) and self._again is not None and self._lost_at is not None
        lost = isinstance(error, Unavailable | SlowReader | QueueFull) and not isinstance(error, JobLogUnavailable)
        if self._cancelled.is_set() or not self._answered or not (gone or lost):
            raise error
        now = time.monotonic()
        self._lost_at = self._lost_at or now
        delay = self._backoff * random.uniform(1, 1 + _JITTER)
        self._backoff = min(2 * self._backoff, _LONGEST_DELAY)
        if now + delay >= (self._end or self._lost_at + _PATIENCE):
            raise error
        log.info("%s; resuming in %.1f s", error.message, delay)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._cancelled.wait(), delay)
        if self._cancelled.is_set():
            raise cancellation()
        left = None if self._end is None else max(self._end - time.monotonic(), 0.001)
        if self._again is not None and gone:
            log.warning("the server does not know the job %s any more; it is started again", self._request_id)
            return self._again(self._seen.seed or 0, left)
        return self._watch(self._after, left)


class _Seen:
    """What the reader has got, by what it is: a job that was begun again sends it again."""

    def __init__(self) -> None:
        self.seed: int | None = None  # None until `accepted`
        self._newest: dict[tuple[str, int], int] = {}  # step, by kind of event and image
        self._missing: dict[tuple[str, int], int] = {}  # bytes, by picture

    def is_new(self, event: events_pb2.JobEvent) -> bool:
        """Whether the reader has not got it, which it has afterwards."""
        kind = event.WhichOneof("event")
        match kind:
            case "accepted":
                return self._is_first(list(event.accepted.seeds))
            case "step" | "preview":
                body = getattr(event, kind)
                newer = body.step > self._newest.get((kind, body.image_index), 0)
                self._newest[kind, body.image_index] = max(body.step, self._newest.get((kind, body.image_index), 0))
                return bool(newer)
            case "image":
                return self._begin(("image_index", event.image.image_index), event.image)
            case "control_image":
                return self._begin(("control_index", event.control_image.control_index), event.control_image)
            case "chunk":
                target = event.chunk.WhichOneof("target")
                return self._go_on((target or "", getattr(event.chunk, target or "image_index")), event.chunk)
        return True

    def _is_first(self, seeds: list[int]) -> bool:
        first = self.seed is None
        self.seed = self.seed if not first else seeds[0] if seeds else 0
        return first

    def _begin(self, picture: tuple[str, int], body: Any) -> bool:
        if self._missing.get(picture) == 0:
            return False
        self._missing[picture] = max(0, body.total_bytes - len(body.image_bytes))
        return True

    def _go_on(self, picture: tuple[str, int], body: Any) -> bool:
        if self._missing.get(picture) == 0:
            return False
        self._missing[picture] = max(0, self._missing.get(picture, 0) - len(body.data))
        return True
