"""What clients that stop reading cost the others: images/s beside streams that nobody reads, and without them."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvloop
from grpc import aio

from darkroom.v1 import catalog_service_pb2, catalog_service_pb2_grpc
from tests.benchmarks.bench import Bench
from tests.benchmarks.driving import Run
from tests.benchmarks.served import PREVIEWS, Served, Stub, request_of
from tests.benchmarks.workload import Order, Traffic, mixed

CLIENTS = 16  # that read
STREAMS, EDGE = 8, 128  # that nobody reads, and pixels of a side of their pictures
WINDOW, ROUNDS = 15.0, 12  # seconds: a machine's speed changes by a tenth within minutes
REST = 60.0  # seconds
SMALL = [("grpc.http2.bdp_probe", 0)]  # a window of 64 KiB, beyond which the server has to wait


def measure(bench: Bench) -> dict[str, Any]:
    """Images/s of clients that read, in turns, and the server's CPU seconds a second where there are none. The streams'
    jobs have been made by then: their pictures and previews wait for their reader, for longer than the server does by
    default."""
    served = bench.serve(DARKROOM_SLOW_READER_SECONDS="600")
    open_streams: list[int] = []

    def run(beside: bool) -> Run:
        seconds = bench.options.seconds or (2.0 if bench.options.smoke else WINDOW)
        traffic = Traffic(bench.orders(mixed, 4 * CLIENTS), CLIENTS, seconds=seconds)
        if not beside:
            return served.run(traffic)
        with _unread(served.address, open_streams):
            return served.run(traffic)

    try:
        run(beside=False)  # warm-up
        ways = {"alone": lambda: run(beside=False), "beside them": lambda: run(beside=True)}
        runs = bench.turns(f"{CLIENTS} clients, mixed", ways, ROUNDS)
        rest = 1.0 if bench.options.smoke else REST
        idle = {"alone": _cpu(served, rest)}
        with _unread(served.address, open_streams):
            idle["beside them"] = _cpu(served, rest)
    finally:
        served.stop()
    ratio = runs.over("beside them", "alone")
    bench.hold("images/s beside clients that stopped reading over without", ratio, at_least={"cpu": 0.97})
    bench.hold("streams that nobody reads, still open", min(open_streams), at_least={"cpu": STREAMS})
    rows = [{**runs[name].row(name), "ratio": runs.over(name, "alone"), "CPU at rest": idle[name]} for name in runs]
    bench.table(f"{CLIENTS} clients beside {STREAMS} streams that nobody reads", rows)
    return {"ratio": ratio, "open streams": open_streams, "rows": rows}


def _cpu(served: Served, seconds: float) -> float:
    """CPU seconds a second of a server without work."""
    before = served.cpu_seconds
    time.sleep(seconds)
    return (served.cpu_seconds - before) / seconds


@contextlib.contextmanager
def _unread(address: str, open_streams: list[int]) -> Iterator[None]:
    """Beside streams that nobody reads, of another process; their jobs are done. Adds how many are open at the end."""
    command = [sys.executable, "-m", __name__, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdout.readline()
        yield
        client.stdin.close()
        open_streams.append(int(client.stdout.read()))


async def _open(address: str) -> None:
    """Open streams, and read nothing until standard input ends."""
    async with aio.insecure_channel(address, options=SMALL) as channel:
        catalog = catalog_service_pb2_grpc.CatalogServiceStub(channel)
        streams = []
        for number in range(STREAMS):
            order = Order(number, steps=50, edge=EDGE)
            streams.append(Stub(channel).Generate(request_of(order, PREVIEWS["full-vae"])))
            await streams[-1].read()
        load = catalog_service_pb2.GetServerLoadRequest()
        while (now := await catalog.GetServerLoad(load)).waiting_images or now.active_images:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        print("done", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        print((await catalog.GetServerLoad(load)).open_streams)


if __name__ == "__main__":
    uvloop.run(_open(sys.argv[1]))
