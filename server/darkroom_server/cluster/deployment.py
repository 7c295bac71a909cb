"""Replicas as a deployment of Ray Serve."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ray import serve

from darkroom_server.cluster.streaming import Batch, Outbox
from darkroom_server.cluster.wire import Call, Reply

if TYPE_CHECKING:
    from darkroom_server.config.settings import ClusterSettings, Settings

APPLICATION, DEPLOYMENT = "darkroom", "Darkroom"
BUILDER = "darkroom_server.cluster.deployment:build"
ROUTER = "darkroom_server.cluster.router:ModelRouter"
SCALING = "darkroom_server.cluster.scaling:Scaling"
REPORT_SECONDS = 1.0  # between reports of what the number of replicas goes by
UP_SECONDS = 2.0  # for which more replicas are wanted, until they are started
STATS_SECONDS = 2.0  # between reports of what a replica has in memory
HEALTH_SECONDS = 5.0
EDGES = {"engine", "listen", "http", "cors_origins", "health_while_starting", "metrics", "tls", "traces"}
EDGES |= {"state_dir", "job_log"}
UNLIMITED = 1_000_000  # calls at once: a replica refuses by itself what is too much


class Darkroom:
    """A replica for Ray Serve: an actor with one device."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        from darkroom_server.config.settings import Settings
        from darkroom_server.device.allocator import tune_malloc
        from darkroom_server.device.cuda import choose_allocator, is_cpu
        from darkroom_server.device.threads import limit_openmp_spinning, shorten_switch_interval

        own = Settings(**settings)
        if any(map(is_cpu, own.devices)):
            tune_malloc()
        choose_allocator()
        limit_openmp_spinning()
        shorten_switch_interval()
        from darkroom_server.cluster.replica import Replica

        name = serve.get_replica_context().replica_id.unique_id
        self._replica = await Replica.open(name, own, owns_process=True)
        self._outboxes: defaultdict[str, Outbox] = defaultdict(Outbox)  # by edge

    async def call(self, call: Call, edge: str, replica: str) -> AsyncGenerator[Reply, None]:
        """The first reply; the others are among the `replies` to this edge. `replica`, here and below, is for the
        router."""
        outbox = self._outboxes[edge]
        try:
            async with aclosing(self._replica.call(call)) as replies, aclosing(outbox.begin(call.id, replies)) as first:
                async for reply in first:
                    yield reply
        finally:
            if not outbox.calls and self._outboxes.get(edge) is outbox:
                del self._outboxes[edge]

    async def replies(self, edge: str, replica: str) -> AsyncGenerator[Batch, None]:
        """To all calls of an edge, until they have ended."""
        if replica == self._replica.name and edge in self._outboxes:  # else it is another one's that is gone
            async for batch in self._outboxes[edge].batches():
                yield batch

    async def cancel(self, call_id: str, replica: str) -> None:
        await self._replica.cancel(call_id)

    async def renew(self, call_ids: Sequence[str], replica: str) -> None:
        self._replica.renew(call_ids)

    async def describe(self) -> dict[str, Any]:
        return self._replica.describe()

    async def metrics(self, reader: str) -> tuple[str, str]:
        return self._replica.name, self._replica.metrics(reader)

    async def record_routing_stats(self) -> dict[str, Any]:
        """Called by Ray Serve."""
        return self._replica.describe()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray Serve."""
        return self._replica.load()

    async def check_health(self) -> None:
        """Called by Ray Serve."""
        self._replica.check()

    async def __del__(self) -> None:
        """Called by Ray Serve, once the replica's calls have ended."""
        if hasattr(self, "_replica"):
            await self._replica.close()


def application(settings: Settings) -> serve.Application:
    """The deployment of these settings."""
    cluster = settings.cluster
    deploy = serve.deployment(
        name=DEPLOYMENT,
        **_number(cluster),
        ray_actor_options={"num_cpus": cluster.replica_cpus, "num_gpus": cluster.replica_gpus},
        max_ongoing_requests=UNLIMITED,
        graceful_shutdown_timeout_s=max(1.0, settings.drain_seconds),
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=30.0,
        max_constructor_retry_count=2,
        request_router_config={"request_router_class": ROUTER, "request_routing_stats_period_s": STATS_SECONDS},
    )
    return deploy(Darkroom).bind(inner(settings))


def _number(cluster: ClusterSettings) -> dict[str, Any]:
    """How many replicas there are."""
    if cluster.max_replicas is None:
        return {"num_replicas": cluster.replicas}
    scaling = {
        "min_replicas": cluster.min_replicas,
        "initial_replicas": max(cluster.min_replicas, cluster.replicas),
        "max_replicas": cluster.max_replicas,
        "metrics_interval_s": REPORT_SECONDS,
        "look_back_period_s": 3 * REPORT_SECONDS,
        "upscale_delay_s": UP_SECONDS,
        "downscale_delay_s": cluster.idle_seconds,
        "policy": {"policy_function": SCALING, "policy_kwargs": {"wait_seconds": cluster.wait_seconds}},
    }
    return {"autoscaling_config": scaling}


def inner(settings: Settings, exclude_defaults: bool = False) -> dict[str, Any]:
    """The settings of a replica, as JSON's values: those of the edge are left out."""
    return settings.model_dump(mode="json", exclude=EDGES, exclude_defaults=exclude_defaults)


def serve_config(settings: Settings) -> dict[str, Any]:
    """Serve's configuration of an application of these settings, which `build` builds."""
    application = {
        "name": APPLICATION,
        "route_prefix": None,
        "import_path": BUILDER,
        "args": {"settings": inner(settings, exclude_defaults=True)},
    }
    return {"proxy_location": "Disabled", "applications": [application]}


def build(args: dict[str, Any]) -> serve.Application:
    """What Serve's configuration imports: `args` has the settings, as `darkroom deploy` writes them."""
    from darkroom_server.config.settings import Settings

    return application(Settings(**args["settings"]))
