"""A plugin that fails wherever a plugin can, and a server with it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import torch
from diffusers import DDIMScheduler

from darkroom.v1 import image_service_pb2 as image_pb
from darkroom_plugins import hookimpl
from darkroom_plugins.builtin.tasks.txt2img import Txt2Img
from darkroom_plugins.contract import Adapter, BatchContract, Conditioner, Finisher, SchedulerEntry
from tests.support import Refused, RunningServer, Stream, generate_request

SECRET = "/home/operator/secret"
FAULTS: dict[str, Callable[[], Exception]] = {
    "error": lambda: RuntimeError(SECRET),
    "unset": lambda: KeyError(SECRET),
    "memory": lambda: torch.OutOfMemoryError(SECRET),
    "device": lambda: RuntimeError(f"CUDA error: an illegal memory access was encountered {SECRET}"),
}


def stumble(place: str, prompt: str) -> None:
    """Raise where the prompt says so: `fail PLACE FAULT`."""
    match prompt.split():
        case ["fail", where, fault] if where == place:
            raise FAULTS[fault]()


class Gate:
    """Holds the engine in the middle of a job of the prompt `patient`, and threads with those of `patient planning` and
    `patient finish`, until the test lets them go on."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def wait(self) -> None:
        assert self._open.wait(60)


class FailingTask(Txt2Img):
    name = "failing"

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def first_evaluation(self, request: Any, timesteps: torch.Tensor, order: int, parameters: Any) -> int:
        stumble("first_evaluation", request.prompt)
        return 0

    def begin(self, sample: Any, parameters: Any) -> None:
        stumble("task_begin", sample.request.prompt)
        super().begin(sample, parameters)

    def after_evaluation(self, sample: Any, latents: torch.Tensor, parameters: Any) -> torch.Tensor:
        if sample.request.prompt == "patient" and sample.evaluation == 1:
            self.gate.wait()
        if sample.evaluation == 1:
            stumble("after_evaluation", sample.request.prompt)
        return latents


class FailingConditioner(Conditioner):
    name = "failing"

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def wants(self, request: Any, parameters: Any) -> bool:
        stumble("wants", request.prompt)
        if request.prompt == "patient planning":
            self.gate.wait()
        return request.task == "failing"

    def begin(self, sample: Any, parameters: Any) -> None:
        stumble("begin", sample.request.prompt)

    def condition(self, evaluation: Any, parameters: Any) -> None:
        for row in evaluation.rows:
            if row.sample.evaluation == 2:
                stumble("condition", row.sample.request.prompt)
        if len(evaluation.rows) > 2 and any(row.sample.request.prompt == "crowded" for row in evaluation.rows):
            raise torch.OutOfMemoryError(SECRET)


class KeyedConditioner(Conditioner):
    name = "failing-key"
    contract = BatchContract.KEYED

    def wants(self, request: Any, parameters: Any) -> bool:
        return request.prompt.startswith("fail key") or request.prompt == "unhashable key"

    def key(self, request: Any, parameters: Any) -> Any:
        stumble("key", request.prompt)
        return []


class FailingAdapter(Adapter):
    name = "failing"

    def wants(self, request: Any, parameters: Any) -> bool:
        return request.task == "failing"

    @contextlib.contextmanager
    def applied(self, model: Any, evaluation: Any, parameters: Any) -> Iterator[None]:
        for row in evaluation.rows:
            if row.sample.evaluation == 2:
                stumble("applied", row.sample.request.prompt)
        yield


class FailingFinisher(Finisher):
    name = "failing"

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def finish(self, picture: Any, request: Any, parameters: None) -> Any:
        stumble("finish", request.prompt)
        if request.prompt == "patient finish":
            self.gate.wait()
        if request.prompt == "no picture":
            return None
        if request.prompt == "no JSON":
            picture.metadata["failing"] = object()
        return picture


class FailingScheduler(DDIMScheduler):
    def set_timesteps(self, *arguments: Any, **more: Any) -> None:
        raise RuntimeError(SECRET)


class Failing:
    """A plugin that fails wherever a plugin can."""

    darkroom_api_version = 1

    def __init__(self) -> None:
        self.gate = Gate()

    @hookimpl
    def darkroom_tasks(self) -> list[Any]:
        return [FailingTask(self.gate)]

    @hookimpl
    def darkroom_conditioners(self) -> list[Any]:
        return [FailingConditioner(self.gate), KeyedConditioner()]

    @hookimpl
    def darkroom_adapters(self) -> list[Any]:
        return [FailingAdapter()]

    @hookimpl
    def darkroom_finishers(self) -> list[Any]:
        return [FailingFinisher(self.gate)]

    @hookimpl
    def darkroom_schedulers(self) -> list[Any]:
        return [SchedulerEntry(name="failing", scheduler=FailingScheduler)]


class FailingServer(RunningServer):
    """A server with that plugin, on which a `patient` job can be held while others come."""

    def __init__(self, tiny_model: Path, **settings: Any) -> None:
        plugin = Failing()
        self.gate = plugin.gate
        super().__init__(plugins={"failing": plugin}, models=[{"name": "tiny", "path": tiny_model}], **settings)

    def request(self, prompt: str, **parameters: Any) -> image_pb.GenerateRequest:
        given = {"task": "failing", "num_inference_steps": 6, "scheduler": "ddim", "seed": 3, **parameters}
        return generate_request(prompt=prompt, **given)

    def patient(self, **parameters: Any) -> Stream:
        """A job in the midst of its steps."""
        stream = self.start(self.request("patient", **parameters))
        stream.read_until("step")
        return stream

    def beside(self, *requests: image_pb.GenerateRequest) -> tuple[Stream, list[Stream]]:
        """A patient job, and others that share its batches from the first to the last evaluation."""
        with self.gate.closed():
            patient = self.patient()
            others = [self.start(request) for request in requests]
            for other in others:
                with contextlib.suppress(grpc.RpcError):
                    other.read_until("accepted")
        return patient, others

    def secret_of(self, failed: Refused) -> bool:
        return SECRET in failed.message or SECRET.encode() in failed.trailers.get("grpc-status-details-bin", b"")
