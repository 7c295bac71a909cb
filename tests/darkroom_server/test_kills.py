"""Kept jobs outlive `kill -9` at any time, and one that is why the server ends is found. `make soak KILLS=1000`."""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from darkroom.v1 import image_service_pb2 as pb
from darkroom.v1 import image_service_pb2_grpc, parameters_pb2
from darkroom.v1.events_pb2 import JobEvent
from darkroom_client import AsyncClient, Client, JobFailed
from darkroom_server.api.suspects import BEGUN, ENDS
from tests import deadly
from tests.killable import Forks, KillableServer, many
from tests.noise_family import save_noise
from tests.support import edit_request, generate_request, png, preview
from tests.watching import check_lives, follow

KILLS = int(many("KILLS", 5))
SERVERS = 4 if KILLS > 100 else 1
CLIENTS = 3  # jobs at once, of each server
LATE = 2.5  # the longest life of a server, in CPU seconds of a start and one job
PATIENCE = 60.0  # seconds of a life in which the moment does not come
PICTURE = png(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))


def job(number: int) -> dict[str, Any]:
    """A job by its number, which makes the same pictures each time; mostly of a model that takes little time."""
    chance = random.Random(number)
    asked = {
        "model": "noise" if number % 4 else "tiny",
        "prompt": f"prompt {number}",
        "num_inference_steps": chance.randint(1, 30 if number % 4 else 8),
        "num_images": chance.choice((1, 1, 2)),
        "seed": number,
        "deterministic": True,
        "preview": "off",
        # Of some the pictures are files, of most they are in the database.
        **({"width": 96, "height": 96} if number % 8 == 4 else {}),
    }
    return {**asked, "image": PICTURE} if number % 12 == 0 else asked


def kept(number: int) -> pb.GenerateRequest | pb.EditRequest:
    """The request of a job that is kept."""
    asked = {**job(number), **preview(mode="PREVIEW_MODE_OFF")}
    asked |= {"request_id": str(number), "disconnect_policy": parameters_pb2.DISCONNECT_POLICY_KEEP}
    return edit_request(**asked) if "image" in asked else generate_request(**asked)


async def pictures(client: AsyncClient, number: int, **how: Any) -> list[bytes]:
    """The pictures of a job, once it is done."""
    asked = job(number)
    start = client.edit if "image" in asked else client.generate
    return [image.image_bytes for image in await start(**asked, timeout=3600, **how).images()]


class Killing:
    """A server, its clients, and what kills it."""

    def __init__(self, server: KillableServer, share: int) -> None:
        self.server, self.share = server, share
        self.chance = random.Random(share)
        self.accepted = asyncio.Event()
        self.lives: dict[int, list[list[JobEvent]]] = {}  # of each job that is done
        self.kills: Counter[str] = Counter()
        self.over = False

    async def run(self) -> None:
        self.server.begin()
        async with AsyncClient(self.server.address) as client:
            await pictures(client, self.share or 4)  # one of its jobs that takes long
        self.started = self.server.cpu_seconds
        self.server.kill()
        async with self.channel() as channel:
            images = image_service_pb2_grpc.ImageServiceStub(channel)
            async with asyncio.TaskGroup() as keeping:
                for place in range(CLIENTS):
                    keeping.create_task(self.keep(images, place))
                for number in range(self.share, KILLS, SERVERS):
                    self.server.begin()
                    moment = await self.moment(number // SERVERS)
                    self.kills[moment + ", while it started" * (not self.server.ready)] += 1
                    self.server.kill()
                    if number % 50 == 0:
                        print(time.strftime("%H:%M:%S"), number, "kills,", len(self.lives), "jobs", flush=True)
                self.over = True
                self.server.begin()

    def channel(self) -> grpc.aio.Channel:
        """One that finds a server that is back soon."""
        delays = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]
        return grpc.aio.insecure_channel(self.server.address, options=delays)

    async def keep(self, images: Any, place: int) -> None:
        """Kept jobs, one after the other."""
        number = place * SERVERS + self.share
        while not self.over or not self.lives:
            self.lives[number] = await follow(images, kept(number), self.accepted.set)
            number += CLIENTS * SERVERS

    async def check(self) -> dict[int, list[bytes]]:
        """Each job's pictures, once what was read of all jobs is right."""
        made = {}
        async with self.channel() as channel:
            images = image_service_pb2_grpc.ImageServiceStub(channel)
            for number, lives in self.lives.items():
                (again,) = await follow(images, kept(number))
                files = check_lives(lives, again).files()
                made[number] = [files[index] for index in sorted(files)]
        return made

    async def moment(self, number: int) -> str:
        """Returns when the server is to be killed. The log's writing is aimed at from a random moment on: its first is
        the same each time, that one job is alone at work, in its first step, as if it were why the server ends."""
        self.accepted.clear()
        kind = ("at any time", "in its start", "once a job is accepted", "at any time", "as the log is written")[
            number % 5
        ]
        if kind == "once a job is accepted":
            await self.until(self.accepted.is_set)
            await asyncio.sleep(self.chance.uniform(0.0, 0.01))
        else:
            life = self.started * self.chance.uniform(0.0, 1.0 if kind == "in its start" else LATE)
            await self.until(lambda: self.server.cpu_seconds >= life)
            if kind == "as the log is written":
                before = self.written()
                await self.until(lambda: self.written() > before)
        return kind

    async def until(self, true: Any) -> None:
        end = time.monotonic() + PATIENCE
        while not true() and time.monotonic() < end:  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.002)

    def ready(self) -> bool:
        return self.server.ready

    def written(self) -> int:
        """When a picture's file was made last, or a commit."""
        paths = (self.server.state / "pictures", self.server.state / "jobs.sqlite-wal")
        return max(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)


@pytest.mark.soak
def test_kills_lose_no_accepted_job(forks: Forks, tiny_model: Path, tmp_path: Path) -> None:
    """Jobs of mixed sizes, while servers are killed by signal 9: each ends once, with the pictures that it would have
    had."""
    folders = [tmp_path / str(number) for number in range(SERVERS + 1)]
    for folder in folders:
        folder.mkdir()
    paths = {"tiny": tiny_model, "noise": save_noise(tmp_path / "noise")}
    models = [{"name": name, "path": path, "max_pixels": 96 * 96} for name, path in paths.items()]
    servers = [KillableServer(forks, folder, models=models) for folder in folders]

    async def run() -> list[Killing]:
        killings = [Killing(server, share) for share, server in enumerate(servers[:SERVERS])]
        async with asyncio.TaskGroup() as group:
            for killing in killings:
                group.create_task(killing.run())
        return killings

    async def compare(made: dict[int, list[bytes]]) -> None:
        together = asyncio.Semaphore(16)

        async def one(client: AsyncClient, number: int) -> None:
            async with together:
                assert await pictures(client, number) == made[number], f"job {number} made other pictures"

        async with AsyncClient(servers[-1].address) as client:
            await asyncio.gather(*(one(client, number) for number in made))

    try:
        killings, made = asyncio.run(run()), dict[int, list[bytes]]()
        for killing in killings:
            with Client(killing.server.address) as client:
                listed = client.jobs()
            assert {each.state for each in listed} == {"completed"}
            assert len(listed) == len(killing.lives)
            made |= asyncio.run(killing.check())
        servers[-1].start()
        asyncio.run(compare(made))
    finally:
        for server in servers:
            server.kill()
    kills = sum((killing.kills for killing in killings), Counter[str]())
    print(f"{len(made)} kept jobs over {kills.total()} kills:", dict(kills))


def test_the_job_that_ends_the_server_is_given_up_alone(forks: Forks, tiny_model: Path, tmp_path: Path) -> None:
    """Soon; and those of its batch are done."""
    server = KillableServer(forks, tmp_path, models=[{"name": "tiny", "path": tiny_model, "max_pixels": 96 * 96}])
    deaths = 0

    async def supervise() -> None:
        nonlocal deaths
        while True:
            server.begin()
            while server.alive:  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.02)
            deaths += 1

    async def run() -> None:
        supervising = asyncio.create_task(supervise())
        async with AsyncClient(server.address) as client:
            guilty = client.generate(deadly.PROMPT, num_inference_steps=5, keep=True, timeout=600)
            innocent = asyncio.gather(*(pictures(client, number, keep=True) for number in (4, 8, 16)))  # of tiny
            with pytest.raises(JobFailed) as given_up:
                await guilty.images()
            assert given_up.value.reason == "GIVEN_UP"
            assert all(await innocent)
        supervising.cancel()

    try:
        asyncio.run(run())
    finally:
        server.kill()
    assert deaths == BEGUN + 1 + ENDS
