"""Who computes with how many threads on the CPU.

Where GNU's OpenMP counts more threads in all teams than there are processors, none may spin while it waits for others
of its team: each of the many barriers of an evaluation then puts threads to sleep, and small models take twice as long.
So only the engine's thread has a team. It may spin for a moment, less than is usual, as the event loop and the encoders
want the processor too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

SPINS = "100000"  # about 1 ms
SWITCH_SECONDS = 0.0005
NICENESS = 10  # a tenth of another's share: one that has Python's lock must go on


def limit_openmp_spinning() -> None:
    """Before torch is loaded. An operator's own setting stays."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def shorten_switch_interval() -> None:
    """Have Python's threads take turns ten times as often as is usual. The engine asks torch for hundreds of operations
    in an evaluation, and may wait for its turn after each: while another thread is busy in Python, as one that compiles
    is for minutes, an evaluation of 0.04 s took 9 s."""
    sys.setswitchinterval(SWITCH_SECONDS)


def lower_thread_priority() -> None:
    """Have this thread, and what it starts, leave the processors to others where those want them. Where threads have no
    priorities of their own, nothing is changed."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # of a service that may not
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


@functools.cache
def background() -> ThreadPoolExecutor:
    """A thread for work that nobody waits for. It is to be there before the engine sets its number of threads."""
    return single_threaded_pool("background")


def single_threaded_pool(name: str, threads: int = 1) -> ThreadPoolExecutor:
    """A pool for work that may use torch, beside the engine. The engine has to set its own number again after this, as
    each setting is also that of torch's libraries, and of threads that are new to torch."""
    import torch

    pool, started = ThreadPoolExecutor(threads, name), Barrier(threads)

    def settle() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # else its first work would set the number that is then usual
        started.wait()

    for each in [pool.submit(settle) for _ in range(threads)]:
        each.result()
    return pool
