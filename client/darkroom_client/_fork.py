"""gRPC's asyncio side does not survive a fork: calls in the child would wait for ever. So they are refused."""

import os

from darkroom_client.errors import DarkroomError

_first_used_in: int | None = None  # the process


def refuse_after_fork() -> None:
    """To be called before each use of gRPC.

    :raises DarkroomError: in a child that was forked after its parent had used a client.
    """
    global _first_used_in
    _first_used_in = _first_used_in or os.getpid()
    if _first_used_in != os.getpid():
        raise DarkroomError(
            "a Darkroom client was used before this process was forked, which gRPC does not survive: "
            "start processes by 'spawn' (multiprocessing.set_start_method), or use clients in the children only"
        )
