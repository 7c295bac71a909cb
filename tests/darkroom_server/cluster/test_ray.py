"""Replicas on a real local cluster of Ray Serve: the picture is that of a server, whatever is killed or cancelled."""

import contextlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from darkroom.v1.catalog_service_pb2 import GetServerLoadRequest, ListModelsRequest
from darkroom.v1.image_service_pb2 import JOB_STATE_QUEUED, GetJobRequest, ListJobsRequest, WatchRequest
from darkroom.v1.image_service_pb2_grpc import ImageServiceStub
from darkroom_server.config.settings import ClusterSettings
from tests.darkroom_server.api.test_kept_jobs import kept
from tests.darkroom_server.cluster.test_edge import SAME, check_whole
from tests.postgres import postgres
from tests.support import RunningServer, Stream, generate_request, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0 if "DARKROOM_KILLS" in os.environ else 600),
    pytest.mark.filterwarnings("ignore:::ray"),
]

STREAMS = int(os.environ.get("DARKROOM_STREAMS", "6"))
KILLS, CANCELS = int(os.environ.get("DARKROOM_KILLS", "2")), int(os.environ.get("DARKROOM_CANCELS", "40"))


def replicas(cluster: RunningServer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.run(cluster.app.replicas.describe())
    return found


def left(cluster: RunningServer) -> int:
    return sum(each["jobs"] + each["calls"] for each in replicas(cluster))


def settle(cluster: RunningServer) -> None:
    """Wait until both replicas are there, and have nothing to do."""
    jobs = cluster.app.backend.jobs
    wait_for(lambda: len(replicas(cluster)) == 2 and left(cluster) == 0 and not jobs.active, seconds=180)


def kill_one(cluster: RunningServer, choose: Callable[[dict[str, Any]], int]) -> None:
    os.kill(max(replicas(cluster), key=choose)["process"], signal.SIGKILL)


def test_a_picture_of_the_cluster_is_that_of_a_server(cluster: RunningServer, server: RunningServer) -> None:
    request = {**SAME, "seed": 5}
    stream = cluster.generate(**request)
    check_whole(stream, steps=8, images=2)
    assert stream.files() == server.generate(**request).files()


def test_a_killed_replica_loses_no_job(cluster: RunningServer) -> None:
    settle(cluster)
    request = {"prompt": "x", "num_inference_steps": 80, "deterministic": True, "seed": 7}
    stream = cluster.start(generate_request(**request), timeout=300)
    stream.read_until("step")
    kill_one(cluster, lambda each: each["jobs"])
    check_whole(stream.read(), steps=80, images=1)
    assert max(event.queued.restarts for event in stream.events) == 1
    assert cluster.start(generate_request(**request), timeout=300).read().files() == stream.files()
    settle(cluster)


@contextlib.contextmanager
def edge_process(address: str, database: str, model: Path) -> Iterator[tuple[subprocess.Popen[str], ImageServiceStub]]:
    """An edge of its own on the cluster, as `darkroom serve` starts it, with what speaks to it."""
    command = [sys.executable, "-c", "from darkroom_client.cli import main; main()", "serve", "--engine", "ray"]
    command += ["--ray-address", address, "--listen", "127.0.0.1:0", "--model", f"tiny={model}"]
    environment = {**os.environ, "DARKROOM_JOB_LOG": database}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"ready on (\S+):", said)
            assert found is not None, said
            with grpc.insecure_channel(found[1]) as channel:
                yield process, ImageServiceStub(channel)
        finally:
            process.kill()


def test_kept_jobs_of_a_killed_edge_go_on_at_another(
    cluster: RunningServer, server: RunningServer, tiny_model: Path
) -> None:
    import ray

    settle(cluster)
    address = ray.get_runtime_context().gcs_address
    with (
        postgres() as database,
        edge_process(address, database, tiny_model) as (killed, one),
        edge_process(address, database, tiny_model) as (_, other),
    ):
        done = Stream(one.Generate(kept("done", seed=3))).read()
        streams = {}
        for seed in range(4):
            streams[seed] = Stream(one.Generate(kept(f"long-{seed}", seed=seed, num_inference_steps=200)))
            streams[seed].read_until("step")
        os.kill(killed.pid, signal.SIGKILL)
        assert Stream(other.Watch(WatchRequest(request_id="done"))).read().files() == done.files()
        for seed in streams:
            stream = Stream(other.Watch(WatchRequest(request_id=f"long-{seed}"))).read()
            assert [stream.kinds[-1], stream.kinds.count("image")] == ["completed", 1]
            alone = {"prompt": "x", "num_inference_steps": 200, "deterministic": True, "seed": seed}
            assert stream.files() == server.generate(**alone).files()
    settle(cluster)


@contextlib.contextmanager
def load(cluster: RunningServer, clients: int = 6) -> Iterator[list[int]]:
    """Clients that make one of four pictures again and again, each time whole and the same; the seeds of those that
    are done."""
    expected = {
        seed: cluster.start(generate_request(**SAME, seed=seed), timeout=300).read().files() for seed in range(4)
    }
    over, done = threading.Event(), list[int]()

    def client(number: int) -> None:
        while not over.is_set():
            seed = (number + len(done)) % 4
            stream = cluster.start(generate_request(**SAME, seed=seed), timeout=300).read()
            check_whole(stream, steps=8, images=2)
            assert stream.files() == expected[seed]
            done.append(seed)

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, number) for number in range(clients)]
        try:
            yield done
        finally:
            over.set()
        for each in running:
            each.result()


def test_kills_under_load_lose_no_job(cluster: RunningServer) -> None:
    settle(cluster)
    rng = random.Random(1)
    with load(cluster) as done:
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.5, 2))
            wait_for(lambda: len(replicas(cluster)) == 2, seconds=180)
            kill_one(cluster, lambda each: rng.randrange(1000))
    assert len(done) >= KILLS
    settle(cluster)


def deploy(cluster: RunningServer, /, **changed: Any) -> None:
    """Put other replicas, of changed settings, in the place of those that there are, as `serve deploy` does."""
    from ray import serve

    from darkroom_server.cluster.deployment import APPLICATION, application

    settings = cluster.app.settings.model_copy(update=changed)
    serve.run(application(settings), name=APPLICATION, route_prefix=None, logging_config={"log_level": "WARNING"})


def test_upgrades_under_load_lose_no_job(cluster: RunningServer) -> None:
    settle(cluster)
    with load(cluster) as done:
        threads = itertools.cycle((1, 3))
        while len(done) < STREAMS:
            before = {each["replica"] for each in replicas(cluster)}
            deploy(cluster, encoder_threads=next(threads))
            wait_for(lambda: len(replicas(cluster)) == 2, seconds=180)
            assert before.isdisjoint(each["replica"] for each in replicas(cluster))
    settle(cluster)


def test_requests_go_where_their_model_is(cluster: RunningServer) -> None:
    """Of two models each replica has room for one. At random each second request would load another."""
    settle(cluster)
    listed = cluster.catalog.ListModels(ListModelsRequest()).models
    (size,) = {each.weight_bytes for each in listed if each.name == "tiny"}
    two = [each for each in cluster.app.settings.models if each.name in ("tiny", "tiny-v")]
    deploy(cluster, models=two, memory_budget=int(1.5 * size))
    try:
        settle(cluster)
        before = sum(each["loads"] for each in replicas(cluster))
        rng, requests = random.Random(3), 100
        with ThreadPoolExecutor(4) as pool:
            names = [rng.choice(("tiny", "tiny-v")) for _ in range(requests)]
            made = [generate_request(prompt="x", model=name, num_inference_steps=4) for name in names]
            for stream in pool.map(lambda request: cluster.start(request, timeout=300).read(), made):
                assert stream.kinds[-1] == "completed"
        assert sum(each["loads"] for each in replicas(cluster)) - before <= requests / 2 / 3
    finally:
        deploy(cluster)
        settle(cluster)


def test_their_number_follows_the_load(cluster: RunningServer) -> None:
    settle(cluster)
    bounds = ClusterSettings(min_replicas=0, max_replicas=2, replica_cpus=0.5, wait_seconds=0.1, idle_seconds=3)
    deploy(cluster, cluster=bounds)
    try:
        wait_for(lambda: replicas(cluster) == [], seconds=180)
        stream = cluster.start(generate_request(prompt="x", seed=1, request_id="first"), timeout=300)
        wait_for(lambda: len(cluster.images.ListJobs(ListJobsRequest()).jobs) == 1)
        assert cluster.images.GetJob(GetJobRequest(request_id="first")).job.state == JOB_STATE_QUEUED
        assert stream.read().kinds[-1] == "completed"
        assert len(cluster.catalog.ListModels(ListModelsRequest()).models[0].replicas) == 1
        with load(cluster, clients=30):  # of two pictures each
            wait_for(lambda: len(replicas(cluster)) == 2, seconds=180)
        wait_for(lambda: replicas(cluster) == [], seconds=180)
        assert cluster.catalog.GetServerLoad(GetServerLoadRequest()).running_jobs == 0  # which brings none
        assert replicas(cluster) == []
        assert cluster.catalog.ListModels(ListModelsRequest()).models  # but this does
    finally:
        deploy(cluster)
        settle(cluster)


def test_random_cancels_leave_nothing(cluster: RunningServer) -> None:
    settle(cluster)
    rng = random.Random(2)

    def cancel_somewhen(seed: int, events: int, steps: int) -> None:
        stream = cluster.start(generate_request(prompt="x", seed=seed, num_inference_steps=steps))
        for response in stream.call:
            stream.events.append(response.event)
            if len(stream.events) >= events:
                break
        stream.call.cancel()

    with ThreadPoolExecutor(10) as pool:
        calls = [pool.submit(cancel_somewhen, n, rng.randint(0, 12), rng.randint(1, 60)) for n in range(CANCELS)]
        for call in calls:
            call.result()
    settle(cluster)
    assert cluster.generate(prompt="x", num_inference_steps=2).kinds[-1] == "completed"
