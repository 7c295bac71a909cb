"""Metrics for Prometheus, on a port of their own: the names of the numbers that the server leaves behind.

They are read when somebody asks, on a thread of its own; nothing is spent on them before.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from darkroom_plugins.version import VERSION
from darkroom_server.config.address import TcpAddress, parse_address
from darkroom_server.jobs.kept import JobState
from darkroom_server.jobs.numbers import Distribution, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from typing import Any

    from darkroom_server.engine.engine import Engine
    from darkroom_server.jobs.kept import KeptJob
    from darkroom_server.jobs.numbers import CallNumbers
    from darkroom_server.jobs.registry import Registry
    from darkroom_server.models.residency import ResidencyManager

LOOP_SECONDS = 0.1  # between two looks at the event loop
CANCELS = ("CLIENT", "DEADLINE", "CANCELLED", "SLOW_READER", "SHUTTING_DOWN")


class Metrics(Collector):
    """Serves the metrics from `start` to `stop`. For the event loop, but for `collect`."""

    def __init__(
        self,
        jobs: Registry,
        kept_jobs: Callable[[], Collection[KeptJob]],
        calls: CallNumbers,
        of_engines: Callable[[], Iterable[Metric]],
    ) -> None:
        """`of_engines` has the metrics of what does the jobs, here or elsewhere. Both functions are called on another
        thread."""
        self._jobs, self._kept_jobs, self._calls, self._of_engines = jobs, kept_jobs, calls, of_engines
        self._delays = seconds()
        self._watching: asyncio.Task[None] | None = None
        self._server: Any = None
        self.address = ""

    def start(self, listen: str) -> None:
        """Serve `/metrics` on an address HOST:PORT. :raises OSError: it cannot be listened on"""
        wanted = parse_address(listen)
        assert isinstance(wanted, TcpAddress)
        registry = CollectorRegistry()
        registry.register(self)
        self._server, _ = start_http_server(wanted.port, wanted.host, registry)
        self.address = str(TcpAddress(wanted.host, self._server.server_port))
        self._watching = asyncio.create_task(self._watch_loop())

    def stop(self) -> None:
        """Close the port, if it was opened."""
        if self._watching is not None:
            self._watching.cancel()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    async def _watch_loop(self) -> None:
        while True:
            due = time.monotonic() + LOOP_SECONDS
            await asyncio.sleep(LOOP_SECONDS)
            self._delays.add(max(0.0, time.monotonic() - due))

    def collect(self) -> Iterable[Metric]:
        """All metrics, as they are now."""
        yield from self._of_jobs()
        yield from self._of_engines()
        yield from self._of_calls()
        yield _gauge("darkroom_info", "The server's version.", {(VERSION,): 1.0}, "version")
        yield _histogram(
            "darkroom_event_loop_delay_seconds", "How late the event loop is, ten times a second.", {(): self._delays}
        )

    def _of_jobs(self) -> Iterator[Metric]:
        queued, running = self._jobs.counts()
        states = {("queued",): queued, ("running",): running}
        yield _gauge("darkroom_jobs", "Jobs that wait for their first turn, and that have had it.", states, "state")
        dropped = self._jobs.dropped_previews()
        yield _counter("darkroom_previews_dropped_total", "Previews that a newer one replaced unread.", {(): dropped})
        kept = self._kept_jobs()
        found = Counter(each.state for each in kept)
        states = {(state.value,): found[state] for state in JobState}
        yield _gauge("darkroom_kept_jobs", "Jobs that are kept, running or ended.", states, "state")
        size = sum(each.size for each in kept)
        yield _gauge("darkroom_kept_bytes", "What they take, in memory or on the disk.", {(): size})

    def _of_calls(self) -> Iterator[Metric]:
        ends = dict(self._calls.ends)
        what = "Calls that have ended, by their error's reason; OK: without one."
        yield _counter("darkroom_calls_total", what, ends, "method", "reason")
        causes = dict.fromkeys(CANCELS, 0)
        for (_, reason), count in ends.items():
            if reason in causes:
                causes[reason] += count
        cancels = {(cause.lower(),): count for cause, count in causes.items()}
        what = "Calls that ended early: by the client or its connection, its deadline, Cancel, unread, at shutdown."
        yield _counter("darkroom_cancels_total", what, cancels, "cause")
        streams = {(method,): count for method, count in dict(self._calls.open).items()}
        yield _gauge("darkroom_streams_open", "Calls that are open.", streams, "method")
        usage = dict(self._calls.usage)
        jobs, pixels = ({(name,): getattr(each, kind) for name, each in usage.items()} for kind in ("jobs", "pixels"))
        yield _counter("darkroom_token_jobs_total", "Jobs of a token that were checked.", jobs, "token")
        yield _counter("darkroom_token_pixels_total", "Pixels of their pictures.", pixels, "token")


def of_engine(engine: Engine, residency: ResidencyManager) -> Iterator[Metric]:
    """Those of an engine and its weights. May be called on another thread."""
    numbers = engine.numbers
    waiting, active = engine.samples()
    samples = {("waiting",): waiting, ("active",): active}
    yield _gauge("darkroom_engine_samples", "Images that the engine has not begun, and has begun.", samples, "state")
    yield _histogram("darkroom_queue_wait_seconds", "From a job's arrival to its first turn.", {(): numbers.waits})
    yield _histogram("darkroom_batch_rows", "Rows of an evaluation.", {(): numbers.rows})
    what = "An evaluation with its scheduler steps, by model and size (the edge of a square of as many pixels)."
    yield _histogram("darkroom_step_seconds", what, dict(numbers.steps), "model", "size")
    parts = {(part,): spent for part, spent in dict(numbers.parts).items()}
    yield _counter("darkroom_tick_seconds_total", "What the engine's time is spent on.", parts, "part")
    yield _counter("darkroom_ticks_total", "Turns of the engine.", {(): engine.ticks})
    yield _counter("darkroom_previews_made_total", "Previews that were decoded.", {(): numbers.previews})
    ends = {(reason,): count for reason, count in dict(numbers.ends).items()}
    yield _counter("darkroom_jobs_ended_total", "Jobs that left the engine; OK: done.", ends, "reason")
    held = residency.held_bytes()
    places = {("device",): held[0], ("host",): held[1]}
    yield _gauge("darkroom_weights_bytes", "Weights resident on the device, and parked.", places, "place")
    what = "Embeddings of prompts, kept for jobs that have the same."
    yield _gauge("darkroom_prompt_cache_bytes", what, {(): engine.prompts.held_bytes})
    yield _counter("darkroom_loads_total", "Models and assets that were loaded.", {(): residency.loads})
    what = "Models and assets that left the device."
    yield _counter("darkroom_evictions_total", what, {(): residency.evictions})


def labelled(texts: Mapping[str, str], label: str) -> Iterator[Metric]:
    """The metrics that several processes have told, in Prometheus's text format; a label says whose each is.

    :param texts: by the label's value
    """
    families: dict[str, Metric] = {}
    for value, text in texts.items():
        for told in text_string_to_metric_families(text):
            family = families.setdefault(told.name, Metric(told.name, told.documentation, told.type))
            for each in told.samples:
                family.add_sample(each.name, {**each.labels, label: value}, each.value)
    yield from families.values()


def text_of(metrics: Iterable[Metric]) -> str:
    """Metrics in Prometheus's text format."""
    return generate_latest(_Given(metrics)).decode()


class _Given(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _gauge(name: str, what: str, values: Mapping[Any, float], *labels: str) -> Metric:
    family = GaugeMetricFamily(name, what, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _counter(name: str, what: str, values: Mapping[Any, float], *labels: str) -> Metric:
    family = CounterMetricFamily(name, what, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _histogram(name: str, what: str, values: Mapping[Any, Distribution], *labels: str) -> Metric:
    family = HistogramMetricFamily(name, what, labels=labels)
    for key, each in values.items():
        counts, buckets, so_far = list(each.counts), [], 0
        for bound, count in zip([*map(str, each.bounds), "+Inf"], counts, strict=True):
            so_far += count
            buckets.append((bound, so_far))
        family.add_metric(key, buckets, each.total)
    return family
