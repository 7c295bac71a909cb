"""CPU threads: OpenMP teams, spinning, priorities, Python's switch interval.

When all OpenMP teams together have more threads than there are processors, GNU's OpenMP stops spinning at barriers: at
each of an evaluation's many barriers threads go to sleep, and small models take twice as long. So only the engine's
thread has a team. It spins for less than the default, as the event loop and the encoders need the processor too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

SPINS = "100000"  # about 1 ms at a barrier
SWITCH_SECONDS = 0.0005
# By how much niceness is raised. Of work that nobody waits for: a tenth of a normal thread's share, not less, as a
# thread that holds the GIL must make progress. Of an engine that computes on the processors itself: they are all busy,
# and what answers calls would wait for a time slice, of milliseconds, each time that it wakes up.
NICENESS, ENGINE_NICENESS = 10, 5


def limit_openmp_spinning() -> None:
    """To be called before torch is imported. An operator's own setting stays."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def shorten_switch_interval() -> None:
    """Switch Python threads ten times as often as by default. The engine launches hundreds of torch operations per
    evaluation, and may wait for the GIL after each: beside a thread busy in Python, such as a compiler for minutes, an
    evaluation of 0.04 s took 9 s."""
    sys.setswitchinterval(SWITCH_SECONDS)


def lower_thread_priority(by: int = NICENESS) -> None:
    """Have this thread, and the threads and processes that it starts, a lower priority than the process's main thread.
    Does nothing where threads have no priorities of their own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # one whose priority is lower still may lack permission
            own = os.getpriority(os.PRIO_PROCESS, os.getpid())
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), own + by)


@functools.cache
def background() -> ThreadPoolExecutor:
    """One thread for work that nobody waits for. To be created before the engine sets its number of threads."""
    return single_threaded_pool("background")


def single_threaded_pool(name: str, threads: int = 1) -> ThreadPoolExecutor:
    """A pool, without an OpenMP team, for torch work beside the engine. The engine has to set its own number of threads
    again afterwards: each setting also applies to torch's libraries, and to threads that are new to torch."""
    import torch

    pool, started = ThreadPoolExecutor(threads, name), Barrier(threads)

    def settle() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # initialises it; else the first operation would apply the default
        started.wait()

    for each in [pool.submit(settle) for _ in range(threads)]:
        each.result()
    return pool
