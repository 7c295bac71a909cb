"""`darkroom serve` in its own process, and its clients."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import uvloop
from grpc import aio
from PIL import Image

from darkroom.v1 import edits_pb2, image_service_pb2, image_service_pb2_grpc, parameters_pb2
from tests.benchmarks.driving import Record, Run, drive
from tests.benchmarks.workload import Order, Traffic, edges, mask, picture, png

PREVIEWS = {
    "off": parameters_pb2.PREVIEW_MODE_OFF,
    "latent-rgb": parameters_pb2.PREVIEW_MODE_LATENT_RGB,
    "full-vae": parameters_pb2.PREVIEW_MODE_FULL_VAE,
}
Stub = image_service_pb2_grpc.ImageServiceStub
Threads: TypeAlias = dict[tuple[str, int, int], float]  # by kind, process and thread
ENGINES = "engines"
# Kept apart: where it is installed, diffusers imports it always.
TORCHAO = Path(os.environ.get("TORCHAO", ".torchao")).absolute()


class Served:
    """A server process. Without a model it serves the demo model, its ControlNet and its LoRAs; `clocks` adds profiling
    by stage; `options` are further settings of the model, `settings` those of the server, as environment variables."""

    def __init__(
        self,
        model: Path | None,
        device: str,
        dtype: str,
        clocks: bool = False,
        options: Mapping[str, object] = {},
        settings: Mapping[str, str] = {},
    ) -> None:
        darkroom = str(Path(sys.executable).with_name("darkroom"))
        command = [sys.executable, "-m", "tests.benchmarks.clocks"] if clocks else [darkroom]
        command += ["serve", "--listen", "127.0.0.1:0", "--device", device, "--dtype", dtype]
        offered = _environment(model, options)
        self._log = tempfile.NamedTemporaryFile("w")  # noqa: SIM115  # as long as the server
        self._process = subprocess.Popen(
            command,
            env={**(with_torchao(os.environ) if options.get("quantize") else os.environ), **offered, **settings},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        lines = iter(self._read, "")  # of libraries, too
        found = next(filter(None, (re.search(r"ready on (\S+):", line) for line in lines)), None)
        if not found:
            raise RuntimeError(f"the server did not start: {self.log}")
        self.address = found[1]

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def clocks(self) -> dict[str, Any]:
        """The clocks' readings (see clocks.py)."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        while not (line := self._read()).startswith("{"):  # skip the readiness lines
            pass
        return json.loads(line)  # type: ignore[no-any-return]

    @property
    def log(self) -> str:
        """The server's log without the lines on ended jobs."""
        lines = Path(self._log.name).read_text().splitlines(keepends=True)
        return "".join(line for line in lines if " ended after " not in line)

    @property
    def memory(self) -> int:
        """Resident set size, bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    @property
    def cpu_seconds(self) -> float:
        """Of the process so far, without those of a cluster's other processes."""
        return _cpu_seconds(psutil.Process(self._process.pid))

    @property
    def threads(self) -> dict[int, float]:
        """CPU seconds of each of the process's threads so far."""
        return {each.id: each.user_time + each.system_time for each in psutil.Process(self._process.pid).threads()}

    @property
    def cluster_threads(self) -> Threads:
        """CPU seconds of all of a cluster's threads so far, by what their processes are: replicas, the rest of Ray, the
        edge and the clients."""
        server = psutil.Process(self._process.pid)
        kinds = {server: "edge", psutil.Process(): "clients"}
        found: Threads = {}
        for process in (*kinds, *server.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                kind = kinds.get(process) or ("replicas" if "ServeReplica" in " ".join(process.cmdline()) else "Ray")
                for thread in process.threads():
                    found[kind, process.pid, thread.id] = thread.user_time + thread.system_time
        return found

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def channel(self) -> aio.Channel:
        """A connection of its own: for the server's fair shares, a client."""
        return aio.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])

    def run(self, traffic: Traffic, preview: str = "off") -> Run:
        """Send the orders; the clients share one connection."""
        return uvloop.run(self._run(traffic, preview))

    def picture(self, order: Order, preview: str = "off") -> Image.Image:
        """The picture of one order, which is in one message."""
        request = request_of(order, PREVIEWS[preview])

        async def made() -> bytes:
            async with self.channel() as channel:
                events = [each.event async for each in _call(Stub(channel), request)]
            [image] = [event.image for event in events if event.WhichOneof("event") == "image"]
            return bytes(image.image_bytes)

        return Image.open(io.BytesIO(uvloop.run(made())))

    async def _run(self, traffic: Traffic, preview: str) -> Run:
        async with self.channel() as channel:
            await channel.channel_ready()
            return await drive(partial(_make, Stub(channel), PREVIEWS[preview]), traffic)


def spent(before: Threads, after: Threads) -> dict[str, float]:
    """CPU seconds between two readings of `cluster_threads`; those of engines, the busiest thread of each replica, by
    themselves."""
    more = {thread: seconds - before.get(thread, 0.0) for thread, seconds in after.items()}
    replicas = {pid for kind, pid, _ in more if kind == "replicas"}
    engines = {max((each for each in more if each[1] == pid), key=more.__getitem__) for pid in replicas}
    found = Counter[str]()
    for thread, seconds in more.items():
        found[ENGINES if thread in engines else thread[0]] += seconds
    return dict(found)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def with_torchao(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that quantises."""
    paths = [str(TORCHAO), environment.get("PYTHONPATH")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _environment(model: Path | None, options: Mapping[str, object]) -> dict[str, str]:
    """The settings as environment variables."""
    from darkroom_server.config.demo import with_demo
    from darkroom_server.config.settings import ModelSettings, Settings

    settings = Settings(models=[ModelSettings(name=model.name, path=model)]) if model else with_demo(Settings())
    offered = settings.model_dump(mode="json", include={"models", "controlnets", "loras"})
    offered["models"] = [{**each, **options} for each in offered["models"]]
    return {f"DARKROOM_{name.upper()}": json.dumps(entries) for name, entries in offered.items()}


async def _make(stub: Stub, preview: int, order: Order, record: Record) -> None:
    """Send one order, and consume its stream."""
    began = time.perf_counter()
    request = request_of(order, preview)
    async for response in _call(stub, request):
        event = response.event
        match event.WhichOneof("event"):
            case "step":
                record.shares.append((time.perf_counter(), 1 / event.step.step_count))
                record.rows.append(event.step.batch_rows)
            case "preview":
                record.previews += 1
                if record.first_preview is None:
                    record.first_preview = time.perf_counter() - began
            case "completed":
                record.queued = event.completed.timings.queue_seconds


def _call(stub: Stub, request: Any) -> Any:
    generates = isinstance(request, image_service_pb2.GenerateRequest)
    return (stub.Generate if generates else stub.Edit)(request)


def request_of(order: Order, preview: int = PREVIEWS["off"]) -> Any:
    """The order as a request."""
    parameters = parameters_pb2.Parameters(
        prompt=order.prompt,
        seed=order.seed,
        num_inference_steps=order.steps,
        guidance_scale=order.guidance,
        scheduler=parameters_pb2.SchedulerSpec(name=order.scheduler),
        loras=[parameters_pb2.LoraSpec(name=order.lora)] if order.lora else [],
        controls=[parameters_pb2.ControlSpec(model=order.control, image=png(edges()))] if order.control else [],
    )
    if order.edge:
        parameters.width = parameters.height = order.edge
    common: dict[str, Any] = {
        "parameters": parameters,
        "preview": parameters_pb2.PreviewOptions(mode=preview),
        "deterministic": order.deterministic,
    }
    if order.kept:
        common |= {"request_id": uuid.uuid4().hex, "disconnect_policy": parameters_pb2.DISCONNECT_POLICY_KEEP}
    match order.task:
        case "txt2img":
            return image_service_pb2.GenerateRequest(**common)
        case "img2img":
            return image_service_pb2.EditRequest(
                image=png(picture()), image_to_image=edits_pb2.ImageToImage(), **common
            )
        case "inpaint":
            inpaint = edits_pb2.Inpaint(mask=png(mask()))
            return image_service_pb2.EditRequest(image=png(picture()), inpaint=inpaint, **common)
