"""Compilation in a process of its own, into Inductor's caches on the disk.

A compiler runs Python for minutes, and takes turns with the engine's thread in doing so. What another process has
compiled the server's finds in the caches: it traces the network, about a quarter of the work, and loads it. The process
gets the network without its weights, as the caches' keys do not depend on them, and allocates nothing for them.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from darkroom_server.device import cuda
from darkroom_server.networks.dynamo import compile_lazily, configure_dynamo

COMMAND = (sys.executable, "-P", "-m", __name__)
PLAIN = (torch.Tensor, nn.Parameter)
PATIENCE = 3600.0  # seconds: a process that takes longer is taken to hang, and killed


class CannotPack(ValueError):
    """What is to be compiled cannot be sent to another process."""


class CompilerKilled(ChildProcessError):
    """A signal ended the process: for want of memory, by a fault of the compiler, or as it hung. This one is not to try
    the same."""


def compile_elsewhere(network: nn.Module, args: Any, kwargs: Any) -> None:
    """Compile a network for a call like this, into the caches. Returns when the other process is done.

    :raises CannotPack: the network is of classes that cannot be pickled, or has quantised weights
    :raises CompilerKilled: a signal ended the process
    :raises OSError: the process does not start, or fails (`ChildProcessError`)
    """
    packed = pack(network, args, kwargs)
    with tempfile.TemporaryFile() as said:
        # The process ends with its standard input, and so with this one: not by Ctrl-C before, which would look like
        # its own failure. Without a reader it has ended: `said` has why.
        with (
            contextlib.suppress(BrokenPipeError),
            subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, process_group=0
            ) as process,
        ):
            assert process.stdin is not None
            process.stdin.write(len(packed).to_bytes(8, "big") + packed)
            process.stdin.flush()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        if process.returncode:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            kind = CompilerKilled if process.returncode < 0 else ChildProcessError
            raise kind(f"the other one ended with {process.returncode}: {last}")


def pack(network: nn.Module, args: Any, kwargs: Any) -> bytes:
    """A network and a call of it, without the values of tensors.

    :raises CannotPack: as `compile_elsewhere`
    """
    packed = io.BytesIO()
    try:
        _Pickler(packed).dump((network, args, kwargs, _settings()))
    except CannotPack:
        raise
    except Exception as error:  # pickle raises many kinds
        raise CannotPack(f"{type(network).__name__} cannot be pickled: {error}") from error
    return packed.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        if type(value) not in PLAIN:
            raise CannotPack(f"weights are of the class {type(value).__name__}")
        layout = tuple(value.shape), value.stride(), value.dtype, str(value.device)
        return _tensor, (layout, isinstance(value, nn.Parameter), value.is_inference())


def _settings() -> tuple[int, bool | None]:
    """What code depends on of the process. The caches' keys tell a setting that was made from its default."""
    return torch.get_num_threads(), cuda.allowed_tf32


def _tensor(layout: tuple[Any, ...], parameter: bool, inference: bool) -> torch.Tensor:
    shape, strides, dtype, device = layout
    with torch.inference_mode(inference), torch.no_grad():
        made = torch.empty_strided(shape, strides, dtype=dtype, device=device)
        return nn.Parameter(made, requires_grad=False) if parameter else made


@torch.inference_mode()
def compile_packed(packed: bytes) -> None:
    """Compile into the caches, in the process for it."""
    from torch._dynamo import lookup_backend
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    inductor = lookup_backend("inductor")

    def compile_only(graph: Any, inputs: Any) -> Callable[..., Any]:
        for node in graph.graph.find_nodes(op="placeholder"):  # the caches' keys have the classes of tensors
            if node.type is FakeTensor:
                node.type = nn.Parameter if isinstance(node.meta["example_value"], nn.Parameter) else torch.Tensor
        graph.recompile()
        inductor(graph, inputs)
        return graph.forward  # type: ignore[no-any-return]  # runs without values

    with FakeTensorMode():
        network, args, kwargs, settings = pickle.loads(packed)
        threads, tf32 = settings
        torch.set_num_threads(threads)
        cuda.set_tf32(tf32)
        configure_dynamo()
        compile_lazily(network, backend=compile_only)(*args, **kwargs)


def main() -> None:
    """The process: one packed call from standard input, which stays open until it is done."""
    packed = sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(8), "big"))

    def end() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
    compile_packed(packed)
    sys.stderr.flush()
    os._exit(0)  # the thread holds standard input's lock


if __name__ == "__main__":
    main()
