"""Refuses calls in forked children: gRPC's asyncio API does not survive a fork, and they would hang."""

import os

from darkroom_client.errors import DarkroomError

_owner: int | None = None  # PID of the process that used gRPC first


def refuse_after_fork() -> None:
    """Call it before each use of gRPC.

    :raises DarkroomError: in a child forked after its parent had used a client.
    """
    global _owner
    _owner = _owner or os.getpid()
    if _owner != os.getpid():
        raise DarkroomError(
            "a Darkroom client was used before this process was forked, which gRPC does not survive: "
            "start processes by 'spawn' (multiprocessing.set_start_method), or use clients in the children only"
        )
