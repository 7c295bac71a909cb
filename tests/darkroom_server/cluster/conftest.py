"""Clusters: edges over replicas in this process, which tests can lose at any event; and over Ray Serve's."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from darkroom.v1.image_service_pb2 import GenerateResponse
from darkroom_plugins.manager import load_plugins
from darkroom_server.cluster.replica import Replica
from darkroom_server.cluster.wire import Call, ReplicaLost, Reply
from darkroom_server.config.settings import Settings
from tests.support import RunningServer


def is_preview(reply: Reply) -> bool:
    return isinstance(reply, list) and GenerateResponse.FromString(reply[0]).event.HasField("preview")


class ReplicasHere:
    """Real replicas in the edge's own process. Calls go to each in turn."""

    def __init__(self, count: int = 2, plugins: Mapping[str, object] | None = None) -> None:
        self._count, self._plugins = count, plugins
        self.replicas: dict[str, Replica] = {}
        self.called: list[tuple[str, Call]] = []  # the replica that got it
        self.lost_after: list[int] = []  # replies to the next calls, less previews, after which their replica is lost
        self.silent = False  # nothing that the edge says reaches a replica: as if it were dead
        self.stopping = False  # the replicas, when their calls have ended

    async def open(self, settings: Settings) -> "ReplicasHere":
        for number in range(self._count):
            name, plugins = f"replica-{number}", load_plugins(extra=self._plugins)
            self.replicas[name] = await Replica.open(name, settings, plugins=plugins)
        return self

    async def close(self) -> None:
        for replica in self.replicas.values():
            await replica.close()

    async def call(self, call: Call, model: str, replica: str = "") -> AsyncGenerator[Reply, None]:
        name, left = replica, None
        if not replica:
            name = list(self.replicas)[len(self.called) % len(self.replicas)]
            self.called.append((name, call))
            left = self.lost_after.pop(0) if self.lost_after else None
        replies: asyncio.Queue[Any] = asyncio.Queue()
        pump = asyncio.create_task(self._pump(name, call, replies))  # goes on if the edge dies, as a replica does
        while (reply := await replies.get()) is not None:
            if left == 0:
                pump.cancel()
                raise ReplicaLost("the test ended it")
            if left is not None and not is_preview(reply):  # how many previews come is the reader's pace
                left -= 1
            yield reply

    async def _pump(self, name: str, call: Call, replies: "asyncio.Queue[Any]") -> None:
        async for reply in self.replicas[name].call(call):
            replies.put_nowait(reply)
        replies.put_nowait(None)

    async def cancel(self, replica: str, call_id: str) -> None:
        if not self.silent:
            await self.replicas[replica].cancel(call_id)

    async def renew(self, replica: str, call_ids: Sequence[str]) -> None:
        if not self.silent:
            self.replicas[replica].renew(call_ids)

    async def metrics(self, reader: str) -> dict[str, str]:
        return {name: each.metrics(reader) for name, each in self.replicas.items()}

    async def describe(self) -> list[dict[str, Any]]:
        return [] if self.stopping else [each.describe() for each in self.replicas.values()]

    def left(self) -> int:
        """Jobs and calls of all replicas."""
        return sum(each.describe()["jobs"] + each.describe()["calls"] for each in self.replicas.values())


@pytest.fixture(scope="module")
def here() -> ReplicasHere:
    return ReplicasHere()


@pytest.fixture(scope="module")
def lora_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def edge(here: ReplicasHere, tiny_model: Path, lora_folder: Path) -> Iterator[RunningServer]:
    """An edge over two replicas here, whose pictures come in parts."""
    models = [{"name": "tiny", "path": tiny_model, "presets": {"fast": {"num_inference_steps": 3}}}]
    limits = {"chunk_bytes": 1024}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("darkroom_server.models.asset_folders.LOOK_SECONDS", 3600)  # they look when they are asked to
        with RunningServer(replicas=here.open, models=models, limits=limits, lora_folder=lora_folder) as running:
            yield running


@pytest.fixture(scope="session")
def all_models(tiny_model: Path, tiny_v_model: Path, tiny_silent_model: Path) -> list[Any]:
    """Those of `server`."""
    from darkroom_server.config.demo import demo_model

    folders = {"tiny": tiny_model, "tiny-v": tiny_v_model, "tiny-silent": tiny_silent_model}
    return [*({"name": name, "path": path} for name, path in folders.items()), demo_model()]


@pytest.fixture(scope="session")
def edge_of_all(all_models: list[Any]) -> Iterator[RunningServer]:
    """The models of `server`, by a replica here, whose pictures come in parts."""
    with RunningServer(replicas=ReplicasHere(1).open, models=all_models, limits={"chunk_bytes": 1024}) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(all_models: list[Any]) -> Iterator[RunningServer]:
    """The models of `server`, by two replicas on a local cluster of Ray Serve, whose pictures come in parts."""
    cluster, limits = {"replicas": 2, "replica_cpus": 0.5}, {"chunk_bytes": 1024}
    with RunningServer(engine="ray", cluster=cluster, models=all_models, limits=limits) as running:
        yield running
