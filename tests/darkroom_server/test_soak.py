"""Everything at once at one server: kept jobs, kills, crashing clients, clients that never read, floods, cancels,
deadlines, hostile requests. `make soak MINUTES=30`; in the first third of the time the server is killed at random."""

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import aio

from darkroom.v1 import image_service_pb2_grpc
from darkroom_client import Accepted, AsyncClient, Completed, DarkroomError, Image
from tests import hostile
from tests.killable import Forks, KillableServer, many
from tests.noise_family import save_noise
from tests.scraping import late_turns, total
from tests.support import details, generate_request, png

SECONDS = 60 * many("MINUTES", 0.5)
KILLING = 1 / 3  # of the time
SLOPE = 1.0  # MiB of memory a minute, over the last half
LONG_ENOUGH = 30 * 60  # for the slope to mean something
PICTURE = png(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
LARGE = {"model": "noise", "width": 1024, "height": 1024, "num_images": 4, "num_inference_steps": 1}
SCHEDULERS = ("euler", "ddim", "dpmpp-2m", "euler-ancestral", "unipc")
CRASHING = """
import sys
from darkroom_client import Client
asked = {"num_inference_steps": 60, "timeout": 60}
streams = [Client(sys.argv[1]).generate("crash", keep=bool(number % 2), **asked) for number in range(3)]
for stream in streams:
    next(iter(stream))
print("begun", flush=True)
for event in streams[0]: pass
"""


def kept_job(number: int) -> dict[str, Any]:
    """A job by its number, which makes the same pictures each time."""
    chance = random.Random(number)
    job = {
        "prompt": f"prompt {number}",
        "num_inference_steps": chance.randint(1, 40),
        "num_images": chance.choice((1, 1, 2)),
        "scheduler": chance.choice(SCHEDULERS),
        "seed": number,
        "deterministic": True,
        "preview": chance.choice(("off", "latent-rgb")),
    }
    return {**job, "image": PICTURE} if number % 3 == 0 else job


KEPT_JOBS = [kept_job(number) for number in range(24)]


class World:
    """A server, what is done to it, and what became of that."""

    def __init__(self, server: KillableServer, http: Path) -> None:
        self.server, self.http = server, http
        self.over, self.killing = False, True
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.expected: list[dict[int, bytes]] = []
        self.memory: list[tuple[float, float]] = []  # minutes, and MiB without the prompts that are kept, up to 64 MiB

    def channel(self) -> aio.Channel:
        """A connection of its own: another client."""
        return aio.insecure_channel(self.server.address, options=[("grpc.use_local_subchannel_pool", 1)])

    def ended(self, who: str, how: str, killing: bool, words: str = "") -> None:
        """A call has ended. What no call may end with, is a fault, but for the server's absence if it began while the
        server was killed."""
        self.counts[f"{who}: {how}"] += 1
        if how in hostile.UNREASONED and not (killing and how in ("UNAVAILABLE", "SILENCE", "UNREADABLE")):
            self.faults.append(f"{who}: {how}{words and ': '}{words}" + " beside kills" * killing)


async def keep(world: World, chance: random.Random) -> None:
    """Kept jobs, one after the other, which must all end as they would have."""
    async with AsyncClient(world.server.address) as client:
        while not world.over:
            number = chance.randrange(len(KEPT_JOBS))
            accepted, pictures = await run_kept(world, client, KEPT_JOBS[number])
            if accepted and pictures is None:
                world.faults.append(f"kept job {number} was lost")
            elif pictures is not None and pictures != world.expected[number]:
                world.faults.append(f"kept job {number} made other pictures")


async def run_kept(world: World, client: AsyncClient, job: dict[str, Any]) -> tuple[bool, dict[int, bytes] | None]:
    """Whether it was accepted, and its pictures once it is done."""
    accepted, pictures, start = False, dict[int, bytes](), client.edit if "image" in job else client.generate
    try:
        async for event in start(**job, keep=True, timeout=600):
            match event:
                case Accepted():
                    accepted = True
                case Image():
                    if event.image_index in pictures:
                        world.faults.append("a picture of a kept job came twice")
                    pictures[event.image_index] = event.image_bytes
                case Completed():
                    world.counts["kept: done"] += 1
                    return accepted, pictures
    except DarkroomError as error:
        world.counts[f"kept: {type(error).__name__}" + " after it was accepted" * accepted] += 1
    return accepted, None


async def crash(world: World, chance: random.Random) -> None:
    """Clients whose processes are killed while they read."""
    while not world.over:
        command = [sys.executable, "-c", CRASHING, world.server.address]
        pipe = asyncio.subprocess.PIPE
        client = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
        assert client.stdout is not None
        world.counts["crashing: " + ("killed" if await client.stdout.readline() else "not begun")] += 1
        await asyncio.sleep(chance.uniform(0.0, 0.5))
        if client.returncode is None:
            client.kill()
        await client.wait()
        await asyncio.sleep(chance.uniform(0.0, 2.0))


async def call(world: World, who: str, leave: float | None = None, deadline: float = 300, **parameters: Any) -> None:
    """A job of a connection of its own; perhaps it is left after so many seconds."""
    killing = world.killing
    async with world.channel() as channel:
        made = image_service_pb2_grpc.ImageServiceStub(channel).Generate(
            generate_request(prompt=who, **parameters), timeout=deadline
        )
        if leave is not None:
            asyncio.get_running_loop().call_later(leave, made.cancel)
        try:
            async for _ in made:
                pass
        except aio.AioRpcError as error:
            said = "grpc-status-details-bin" in dict(error.trailing_metadata() or ())
            how = f"{error.code().name} {details(error)[0] if said else ''}".strip()
            how = "its deadline" if how == "DEADLINE_EXCEEDED" and deadline < 60 else how
            world.ended(who, how, killing, error.details() or "")
        except asyncio.CancelledError:
            if leave is None or not made.cancelled():
                raise
            world.ended(who, "left", killing)
        else:
            world.ended(who, "OK", killing)


async def leave(world: World, chance: random.Random) -> None:
    """Cancels and deadlines at any moment."""
    while not world.over:
        steps = chance.randint(1, 60)
        if chance.random() < 0.5:
            await call(world, "cancelling", leave=chance.uniform(0.0, 1.0), num_inference_steps=steps)
        else:
            await call(world, "late", deadline=chance.uniform(0.01, 1.0), num_inference_steps=steps)


async def flood(world: World, chance: random.Random) -> None:
    """More jobs at once than the queue takes."""
    while not world.over:
        await asyncio.gather(*(call(world, "flooding", num_inference_steps=chance.randint(1, 20)) for _ in range(60)))
        await asyncio.sleep(chance.uniform(2.0, 8.0))


async def never_read(world: World, chance: random.Random) -> None:
    """Large pictures of which nothing is read, until the server ends that."""
    while not world.over:
        async with world.channel() as channel:
            stub = image_service_pb2_grpc.ImageServiceStub(channel)
            made = stub.Generate(generate_request(**LARGE), timeout=300)
            killing, end = world.killing, asyncio.ensure_future(made.code())
            await asyncio.wait([end], timeout=30)
            made.cancel()
            world.ended("never reading", (await end).name, killing)
        await asyncio.sleep(chance.uniform(0.0, 5.0))


async def be_hostile(world: World, chance: random.Random) -> None:
    while not world.over:
        killing = world.killing
        answers = await hostile.send(world.server.address, str(world.http), 20, chance.getrandbits(30), together=2)
        for answer, count in answers.items():
            door, _, how = answer.partition(" ")
            for _ in range(count):
                world.ended(f"hostile {door}", how.strip(), killing)


async def kill(world: World, chance: random.Random) -> None:
    """Kill the server at random times, for a while, mostly after it has done some kept jobs: one that is killed faster
    than it does them does none, and gives them up."""
    end = time.monotonic() + KILLING * SECONDS
    while time.monotonic() < end:
        await asyncio.sleep(chance.uniform(0.5, 3.0))
        enough = world.counts["kept: done"] + chance.choice((0, 1, 2, 4))
        while world.counts["kept: done"] < enough and time.monotonic() < end:  # noqa: ASYNC110  # of no other task
            await asyncio.sleep(0.1)
        await asyncio.to_thread(world.server.kill)
        await asyncio.to_thread(world.server.start)
        world.counts["kills"] += 1
    world.killing = False


async def weigh(world: World, chance: random.Random) -> None:
    while not world.over:
        await asyncio.sleep(1.0)
        kept = total(await asyncio.to_thread(world.server.read), "darkroom_prompt_cache_bytes")
        world.memory.append((time.monotonic() / 60, (world.server.memory - kept) / 2**20))


Actor = Callable[[World, random.Random], Coroutine[Any, Any, None]]
ACTORS: list[Actor] = [*[keep] * 4, *[leave] * 3, crash, flood, never_read, be_hostile]


async def soaked(world: World) -> None:
    async with AsyncClient(world.server.address) as client:
        for job in KEPT_JOBS:
            _, pictures = await run_kept(world, client, job)
            assert pictures is not None
            world.expected.append(pictures)
    actors = [asyncio.create_task(actor(world, random.Random(seed))) for seed, actor in enumerate(ACTORS)]
    began = time.monotonic()
    await kill(world, random.Random(99))
    actors.append(asyncio.create_task(weigh(world, random.Random(0))))
    await asyncio.wait(actors, timeout=began + SECONDS - time.monotonic(), return_when=asyncio.FIRST_EXCEPTION)
    world.over = True
    await asyncio.gather(*actors)


def slope(memory: list[tuple[float, float]]) -> float:
    """MiB a minute over the last half of the whole time, of the least in each minute: the rest is pictures that are
    being made."""
    last, least = memory[-1][0], dict[int, float]()
    for minutes, mebibytes in memory:
        if (ago := last - minutes) <= SECONDS / 120:
            least[int(ago)] = min(mebibytes, least.get(int(ago), mebibytes))
    return -float(np.polyfit(list(least), list(least.values()), 1)[0]) if len(least) > 1 else 0.0


@pytest.fixture
def world(forks: Forks, tiny_model: Path, tmp_path: Path) -> Iterator[World]:
    size = {"max_edge": 1024, "max_pixels": 1024 * 1024}
    served = KillableServer(
        forks,
        tmp_path,
        http=f"unix:{tmp_path / 'http'}",
        models=[
            {"name": "tiny", "path": tiny_model, "default_num_inference_steps": 5},
            {"name": "noise", "path": save_noise(tmp_path / "noise"), **size},
        ],
        limits={"max_queued_jobs": 60, "max_inference_steps": 60, "max_images": 4},
        slow_reader_seconds=3,
        keep_results_seconds=60,
        max_kept_bytes=32 * 2**20,
    )
    served.start()
    yield World(served, tmp_path / "http")
    served.kill()


@pytest.mark.soak
@pytest.mark.slow
def test_minutes_of_everything_at_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(soaked(world))
    lost = [record.message for record in caplog.records if "does not know the job any more" in record.message]
    world.faults += lost  # their clients have started them again
    pause = time.monotonic() + 120
    while total(found := world.server.read(), "darkroom_jobs") or total(found, "darkroom_streams_open"):
        assert time.monotonic() < pause, "jobs or streams are left"
        time.sleep(0.1)
    risen = slope(world.memory)
    for what, count in sorted(world.counts.items()):
        print(f"{count:8} {what}")
    print("memory, MiB:", *(f"{memory:.0f}" for _, memory in world.memory[:: max(1, len(world.memory) // 20)]))
    print(f"event loop over a second late: {late_turns(found, 1):.0f}; memory {world.memory[-1][1]:.0f} MiB, ", end="")
    print(f"{risen:+.2f} MiB a minute over the last half; jobs and streams left: 0; faults: {len(world.faults)}")
    assert world.faults == []
    assert world.counts["kept: done"] > len(KEPT_JOBS)
    if SECONDS >= LONG_ENOUGH:
        assert risen < SLOPE
