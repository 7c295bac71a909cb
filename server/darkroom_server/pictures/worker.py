"""A worker process of `uploads`: decodes one picture after another, within limits that the system enforces.

It is what strangers' files reach, so it gets little: memory and time are bounded, it can open neither files nor
sockets, and its environment has no secrets. It imports Pillow and NumPy alone, to start fast.

Protocol, on standard input and output: `READY` when it has started; then for each picture a `Task` with the file behind
it, and a `Reply` with the pixels, or with what is wrong as text, behind it.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys
from contextlib import suppress
from typing import BinaryIO, NamedTuple

READY = b"R"
KINDS = ("image", "control_map", "mask", "transparency")  # decode_… of `decode`
PIXELS, REFUSED, TOO_LARGE = range(3)  # of a Reply
TASK, REPLY = struct.Struct("<BIQdQ"), struct.Struct("<BIIBQ")
ALARM_SECONDS = 5.0  # after those in which the server ends the worker: for one whose server is gone


class Task(NamedTuple):
    kind: int  # index in KINDS
    max_edge: int  # pixels
    max_pixels: int
    seconds: float  # to decode in
    size: int  # bytes of the file


class Reply(NamedTuple):
    outcome: int  # PIXELS, REFUSED, or TOO_LARGE: more memory than the limit
    height: int
    width: int
    channels: int  # 0: none, of a mask
    size: int  # bytes of pixels or text


def main() -> None:
    """Work until standard input ends. The argument is the memory limit, in bytes, beside what an idle worker takes."""
    tasks, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # what libraries print is no reply
        os.dup2(null, stream)
    os.close(null)
    _import_readers()
    _restrict(int(sys.argv[1]))
    replies.write(READY)
    replies.flush()
    while header := tasks.read(TASK.size):
        task = Task(*TASK.unpack(header))
        data = tasks.read(task.size)
        signal.setitimer(signal.ITIMER_REAL, task.seconds + ALARM_SECONDS)  # SIGALRM ends the process
        _answer(replies, task, data)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(replies: BinaryIO, task: Task, data: bytes) -> None:
    from darkroom_server.pictures import decode

    shape, outcome, payload = (0, 0, 0), PIXELS, memoryview(b"")
    try:
        pixels = getattr(decode, f"decode_{KINDS[task.kind]}")(data, task)
        payload = pixels.data.cast("B") if pixels.flags.c_contiguous else memoryview(pixels.tobytes())
        shape = (pixels.shape[0], pixels.shape[1], pixels.shape[2] if pixels.ndim == 3 else 0)
    except decode.BadImage as error:
        outcome, payload = REFUSED, memoryview(str(error).encode())
    except MemoryError:
        outcome = TOO_LARGE
    replies.write(REPLY.pack(*Reply(outcome, *shape, len(payload))))
    replies.write(payload)
    replies.flush()


def _import_readers() -> None:
    """Decode a picture of each kind: what is imported on first use cannot be opened later."""
    import io

    from PIL import Image

    from darkroom_server.pictures import decode

    task = Task(0, 8, 64, 0.0, 0)
    for format in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        for mode in ("L", "RGB", "RGBA", "P"):
            file = io.BytesIO()
            with suppress(OSError, decode.BadImage):  # the format has no such mode, or this Pillow cannot read its own
                Image.new(mode, (8, 8)).save(file, format)
                for kind in KINDS:
                    getattr(decode, f"decode_{kind}")(file.getvalue(), task)
    with suppress(decode.BadImage):
        decode.decode_image(b"\x89PNG\r\n\x1a\n", task)


def _restrict(memory: int) -> None:
    """Bound the memory, and take away what decoding does not need. Systems without one of the limits go without."""
    with suppress(OSError, ValueError):
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE):  # no dumps; no more files, no sockets
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (0, 0))


if __name__ == "__main__":
    main()
