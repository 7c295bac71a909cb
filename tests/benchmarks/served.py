"""`darkroom serve` in a process of its own, and clients of it."""

import asyncio
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from grpc import aio

from darkroom.v1 import image_service_pb2, image_service_pb2_grpc, parameters_pb2
from tests.benchmarks.workload import Order, share

PREVIEWS = {
    "off": parameters_pb2.PREVIEW_MODE_OFF,
    "latent-rgb": parameters_pb2.PREVIEW_MODE_LATENT_RGB,
    "full-vae": parameters_pb2.PREVIEW_MODE_FULL_VAE,
}


@dataclass
class Outcome:
    """What a run of many requests gave."""

    seconds: float
    previews: int = 0
    latencies: list[float] = field(default_factory=list)  # seconds, of each request
    first_previews: list[float] = field(default_factory=list)  # in step times after the job started
    rows: list[int] = field(default_factory=list)  # of each step


class Served:
    """A server, from start to stop."""

    def __init__(self, model: Path, device: str, dtype: str) -> None:
        command = [str(Path(sys.executable).with_name("darkroom")), "serve", "--listen", "127.0.0.1:0"]
        command += ["--model", str(model), "--device", device, "--dtype", dtype]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.address = self._wait_until_ready()

    def _wait_until_ready(self) -> str:
        assert self._process.stdout is not None
        found = re.search(r"ready on (\S+):", self._process.stdout.readline())
        if not found:
            raise RuntimeError("the server did not start")
        return found[1]

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def run(self, orders: list[Order], clients: int, preview: str = "off") -> Outcome:
        """Send the orders, each client one after another."""
        return asyncio.run(self._run(orders, clients, preview))

    async def _run(self, orders: list[Order], clients: int, preview: str) -> Outcome:
        outcome = Outcome(0.0)
        async with aio.insecure_channel(self.address) as channel:
            stub = image_service_pb2_grpc.ImageServiceStub(channel)
            await channel.channel_ready()
            began = time.perf_counter()
            await asyncio.gather(*(_client(stub, part, preview, outcome) for part in share(orders, clients)))
            outcome.seconds = time.perf_counter() - began
        return outcome


async def _client(
    stub: image_service_pb2_grpc.ImageServiceStub, orders: list[Order], preview: str, outcome: Outcome
) -> None:
    for order in orders:
        began = time.perf_counter()
        await _one(stub, order, preview, outcome)
        outcome.latencies.append(time.perf_counter() - began)


async def _one(stub: image_service_pb2_grpc.ImageServiceStub, order: Order, preview: str, outcome: Outcome) -> None:
    parameters = parameters_pb2.Parameters(
        prompt=order.prompt,
        seed=order.seed,
        num_inference_steps=order.steps,
        guidance_scale=order.guidance,
        scheduler=parameters_pb2.SchedulerSpec(name=order.scheduler),
    )
    options = parameters_pb2.PreviewOptions(mode=PREVIEWS[preview])
    accepted = first_preview = 0.0
    step_seconds = 1.0
    async for response in stub.Generate(image_service_pb2.GenerateRequest(parameters=parameters, preview=options)):
        event = response.event
        match event.WhichOneof("event"):
            case "accepted":
                accepted = time.perf_counter()
            case "step":
                outcome.rows.append(event.step.batch_rows)
                step_seconds = event.step.elapsed_seconds / event.step.step
            case "preview":
                first_preview = first_preview or time.perf_counter() - accepted
                outcome.previews += 1
    if first_preview:
        outcome.first_previews.append(first_preview / step_seconds)


def quiet() -> None:
    """Keep the libraries' progress bars out of the table."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
