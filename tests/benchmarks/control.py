"""What the number of replicas costs a cluster's controller and its edges, measured with replicas that do nothing."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import psutil
import ray
from ray import serve
from ray.serve._private.common import ReplicaID
from ray.serve._private.request_router.common import ReplicaQueueLengthCache

from darkroom_server.cluster.deployment import APPLICATION, HEALTH_SECONDS, ROUTER, STATS_SECONDS
from darkroom_server.cluster.router import PLACEMENT, ModelRouter
from darkroom_server.cluster.wire import Residence
from tests.benchmarks.bench import Bench

FEW, MANY, SECONDS = 2, 12, 20.0
CANDIDATES = (10, 100, 1000)
MODELS = tuple(f"model-{number}" for number in range(4))  # that a replica has


def measure(bench: Bench) -> dict[str, Any]:
    """CPU seconds: `controller_s` of the controller in a second for each replica, `broadcast_s` of an edge for each
    replica of a call that all answer (ListModels), `route_s` of an edge to choose one of so many replicas."""
    smoke = bench.options.smoke
    found = {count: _cluster(count, 1.0 if smoke else SECONDS) for count in ((1, 2) if smoke else (FEW, MANY))}
    (few, less), (many, more) = found.items()
    controller, broadcast = ((b - a) / (many - few) for a, b in zip(less, more, strict=True))
    route = {str(count): asyncio.run(_route(count, 10 if smoke else 200)) for count in CANDIDATES}
    figures = {"controller_s": max(0.0, controller), "broadcast_s": max(0.0, broadcast)}
    bench.table("CPU seconds by replica: the controller's a second, an edge's a broadcast", [figures])
    bench.table("CPU seconds of an edge to choose a replica, by their number", [route])
    return {**figures, "route_s": route}


class Idle:
    """A replica that does nothing."""

    async def record_routing_stats(self) -> dict[str, Any]:
        said = Residence("", 0.0, MODELS)
        return {"replica": "", "process": 0, "residence": said, "jobs": 0, "queued": 0, "calls": 0, "loads": 0}

    async def check_health(self) -> None: ...

    async def answer(self) -> list[bytes]:
        return [bytes(1000)]


def _cluster(count: int, seconds: float) -> tuple[float, float]:
    """CPU seconds of the controller a second, and of this process a broadcast."""
    ray.init(address="local", num_cpus=count, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    try:
        serve.start(proxy_location="Disabled")
        deployment = serve.deployment(
            num_replicas=count,
            ray_actor_options={"num_cpus": 0},
            health_check_period_s=HEALTH_SECONDS,
            request_router_config={"request_router_class": ROUTER, "request_routing_stats_period_s": STATS_SECONDS},
        )
        handle = serve.run(deployment(Idle).bind(), name=APPLICATION, route_prefix=None)
        children = psutil.Process().children(recursive=True)
        [controller] = [each for each in children if "ServeController" in each.name()]
        handle.broadcast("answer").results()
        before = _cpu(controller)
        time.sleep(seconds)
        watched = (_cpu(controller) - before) / seconds
        began = time.process_time()
        for _ in range(calls := max(1, round(2 * seconds))):
            handle.broadcast("answer").results()
        return watched, (time.process_time() - began) / calls
    finally:
        serve.shutdown()
        ray.shutdown()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def _route(count: int, calls: int) -> float:
    """CPU seconds of `ModelRouter` for one choice, where a tenth of the replicas have the model."""
    router, cache = ModelRouter.__new__(ModelRouter), ReplicaQueueLengthCache()
    router._replica_queue_len_cache = cache
    replicas: list[Any] = []
    for number in range(count):
        PLACEMENT.hear(Residence(str(number), 0.0, MODELS if number % 10 == 0 else MODELS[1:]))
        replicas.append(SimpleNamespace(replica_id=ReplicaID(str(number), APPLICATION)))
        cache.update(replicas[-1].replica_id, number % 7)
    metadata = SimpleNamespace(multiplexed_model_id=MODELS[0], internal_request_id="")
    future = asyncio.get_running_loop().create_future()
    pending: Any = SimpleNamespace(routing_context=SimpleNamespace(), kwargs={}, metadata=metadata, future=future)
    began = time.process_time()
    for _ in range(calls):
        ranks = await router.choose_replicas(replicas, pending)
        min(cache.get(each.replica_id) or 0 for each in ranks[0])  # as Ray Serve does with the first rank
    return (time.process_time() - began) / calls
