"""Each metric, read over HTTP as Prometheus reads it, after traffic that must move it."""

import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from darkroom.v1 import catalog_service_pb2, image_service_pb2, parameters_pb2
from darkroom_server.config.settings import Settings
from darkroom_server.jobs.events import PreviewMade
from darkroom_server.jobs.numbers import Distribution, size_class
from tests.failing import FailingServer
from tests.scraping import read
from tests.support import RunningServer, Stream, generate_request, preview, refused, settle

DASHBOARD = Path(__file__).parents[3] / "server/deploy/grafana.json"
ME = [("authorization", "Bearer t0ken")]


@pytest.fixture(scope="module")
def measured(tiny_model: Path, tiny_v_model: Path) -> Iterator[RunningServer]:
    models = [{"name": "tiny", "path": tiny_model}, {"name": "tiny-v", "path": tiny_v_model, "preload": False}]
    tokens = [{"name": "me", "role": "operator", "sha256": hashlib.sha256(b"t0ken").hexdigest()}]
    limits = {"max_batch_rows": 4}
    with RunningServer(
        models=models, tokens=tokens, metrics="127.0.0.1:0", limits=limits, park_budget="1 GiB"
    ) as server:
        yield server


def until(server: RunningServer, there: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """The samples, once they are so. The test's own time limit ends this."""
    while not there(found := read(server)):
        pass
    return found


def start(server: RunningServer, **parameters: Any) -> Stream:
    """With a deadline that is not too short for many long jobs on a busy machine."""
    return Stream(server.images.Generate(generate_request(**parameters), metadata=ME, timeout=600))


def moved(server: RunningServer, work: Callable[[], object]) -> dict[str, float]:
    """By how much this work moves each sample that it moves."""
    before = read(server)
    work()
    settle(server)
    after = read(server)
    return {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}


def test_a_picture(measured: RunningServer) -> None:
    rows = moved(
        measured,
        lambda: start(
            measured, num_inference_steps=3, scheduler="ddim", **preview(mode="PREVIEW_MODE_LATENT_RGB")
        ).read(),
    )
    assert rows["darkroom_queue_wait_seconds_count"] == 1
    assert rows["darkroom_queue_wait_seconds_sum"] > 0
    assert rows["darkroom_batch_rows_count"] == 3
    assert rows["darkroom_batch_rows_sum"] == 6
    assert rows["darkroom_batch_rows_bucket le=2"] == 3
    assert rows["darkroom_step_seconds_count model=tiny size=64"] == 3
    assert rows["darkroom_ticks_total"] >= 3
    for part in ("begin", "evaluation", "step", "preview", "decode"):
        assert rows[f"darkroom_tick_seconds_total part={part}"] > 0
    assert rows["darkroom_previews_made_total"] == 3
    assert rows["darkroom_jobs_ended_total reason=OK"] == 1
    assert rows["darkroom_calls_total method=/darkroom.v1.ImageService/Generate reason=OK"] == 1
    assert rows["darkroom_token_jobs_total token=me"] == 1
    assert rows["darkroom_token_pixels_total token=me"] == 32 * 32


def test_jobs_that_wait(measured: RunningServer) -> None:
    """A gauge that says nothing while nine wait is worse than none."""
    with measured.paused():
        streams = [start(measured, num_inference_steps=500) for _ in range(9)]
        for stream in streams:
            stream.read_until("accepted")
        found = read(measured)
        assert found["darkroom_jobs state=queued"] == 9
        assert found["darkroom_jobs state=running"] == 0
        assert found["darkroom_streams_open method=/darkroom.v1.ImageService/Generate"] == 9
    found = until(measured, lambda now: now["darkroom_jobs state=running"] == 2)  # of two rows each
    assert found["darkroom_jobs state=queued"] == 7
    assert found["darkroom_engine_samples state=active"] == 2
    assert found["darkroom_engine_samples state=waiting"] == 7
    for stream in streams:
        stream.call.cancel()
    settle(measured)
    found = read(measured)
    assert found["darkroom_jobs state=queued"] == found["darkroom_jobs state=running"] == 0
    assert found["darkroom_streams_open method=/darkroom.v1.ImageService/Generate"] == 0


def test_cancels_by_their_cause(measured: RunningServer) -> None:
    def by_client() -> None:
        stream = start(measured, num_inference_steps=500)
        stream.read_until("step")
        stream.call.cancel()

    rows = moved(measured, by_client)
    assert rows["darkroom_cancels_total cause=client"] == rows["darkroom_jobs_ended_total reason=CLIENT"] == 1

    def by_deadline() -> None:
        request = generate_request(num_inference_steps=1)  # one that could have been done in time
        with measured.paused():
            failed = refused(lambda: list(measured.images.Generate(request, metadata=ME, timeout=2)))
            measured.run(measured.app.jobs.idle())  # the server knows a little later than its client
        assert failed.code == StatusCode.DEADLINE_EXCEEDED

    rows = moved(measured, by_deadline)
    assert rows["darkroom_cancels_total cause=deadline"] == rows["darkroom_jobs_ended_total reason=DEADLINE"] == 1

    def by_request() -> None:
        stream = start(measured, request_id="x", num_inference_steps=500)
        stream.read_until("step")
        assert measured.images.Cancel(image_service_pb2.CancelRequest(request_id="x"), metadata=ME).cancelled
        assert refused(stream.read).code == StatusCode.CANCELLED

    rows = moved(measured, by_request)
    assert rows["darkroom_cancels_total cause=cancelled"] == 1
    assert rows["darkroom_jobs_ended_total reason=CANCELLED"] == 1


def test_refusals_and_failures_by_their_reason(measured: RunningServer, tiny_model: Path) -> None:
    rows = moved(measured, lambda: refused(start(measured, num_inference_steps=-1).read))
    assert rows["darkroom_calls_total method=/darkroom.v1.ImageService/Generate reason=INVALID_REQUEST"] == 1
    nobody = measured.channel.unary_unary("/other.Service/Call")
    rows = moved(measured, lambda: refused(lambda: nobody(b"", timeout=20)))
    assert rows["darkroom_calls_total method=other reason=UNAUTHENTICATED"] == 1  # no names of strangers' choice


def test_failures_by_their_reason(tiny_model: Path) -> None:
    with FailingServer(tiny_model, metrics="127.0.0.1:0") as server:
        request = server.request("fail after_evaluation error")
        rows = moved(server, lambda: refused(server.start(request).read))
        assert rows["darkroom_jobs_ended_total reason=PLUGIN_FAILED"] == 1
        assert rows["darkroom_calls_total method=/darkroom.v1.ImageService/Generate reason=PLUGIN_FAILED"] == 1


def test_loads_evictions_and_bytes(measured: RunningServer) -> None:
    load, unload = catalog_service_pb2.LoadModelRequest, catalog_service_pb2.UnloadModelRequest
    catalog = measured.catalog
    rows = moved(measured, lambda: list(catalog.LoadModel(load(model="tiny-v"), metadata=ME, timeout=60)))
    assert rows["darkroom_loads_total"] == 1
    weights = rows["darkroom_weights_bytes place=device"]
    assert weights > 0
    rows = moved(measured, lambda: catalog.UnloadModel(unload(model="tiny-v"), metadata=ME, timeout=60))
    assert rows["darkroom_evictions_total"] == 1
    assert rows["darkroom_weights_bytes place=device"] == -weights
    measured.run(measured.app.residency.relieve())  # the other: parked
    found = read(measured)
    assert found["darkroom_weights_bytes place=host"] > 0
    assert found["darkroom_weights_bytes place=device"] == 0


def test_the_embeddings_of_new_prompts_are_kept(measured: RunningServer) -> None:
    name, rows = "darkroom_prompt_cache_bytes", []
    for _ in range(2):
        rows.append(moved(measured, lambda: start(measured, prompt="of this test", num_inference_steps=1).read()))
    assert [row.get(name, 0) > 0 for row in rows] == [True, False]


def test_kept_jobs(measured: RunningServer) -> None:
    samples = [read(measured)]
    with measured.paused():
        keep = parameters_pb2.DISCONNECT_POLICY_KEEP
        stream = start(measured, num_inference_steps=1, request_id="kept", disconnect_policy=keep)
        stream.read_until("accepted")
        samples.append(read(measured))
    stream.read()
    settle(measured)
    samples.append(read(measured))
    assert [found["darkroom_kept_jobs state=queued"] for found in samples] == [0, 1, 0]
    assert [found["darkroom_kept_jobs state=completed"] for found in samples] == [0, 0, 1]
    before, accepted, done = (found["darkroom_kept_bytes"] for found in samples)
    assert before == 0 < accepted < done


def test_previews_that_nobody_reads_are_dropped(measured: RunningServer) -> None:
    job = measured.app.jobs.register("someone", "unread", 0)

    def put() -> None:
        for step in (1, 2, 3):
            job.mailbox.put(PreviewMade(0, step, None, "latent-rgb"))  # type: ignore[arg-type]

    put()
    assert read(measured)["darkroom_previews_dropped_total"] >= 2
    measured.app.jobs.release(job)
    assert read(measured)["darkroom_previews_dropped_total"] >= 2


def test_the_event_loops_delay_and_the_version(measured: RunningServer) -> None:
    until(measured, lambda now: now["darkroom_event_loop_delay_seconds_count"] > 0)
    assert any(name.startswith("darkroom_info version=") for name in read(measured))


def names(server: RunningServer) -> set[str]:
    """The names of all metrics, as a dashboard uses them."""
    found = {name.partition(" ")[0] for name in read(server)}
    return {re.sub("_(bucket|count|sum)$", "", name) for name in found}


def test_the_dashboard_shows_the_metrics_that_there_are(measured: RunningServer) -> None:
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    used = {
        re.sub("_(bucket|count|sum)$", "", name) for query in queries for name in re.findall(r"darkroom_\w+", query)
    }
    start(measured, num_inference_steps=1).read()
    settle(measured)
    assert used == names(measured)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_manual_lists_every_metric(measured: RunningServer) -> None:
    manual = (Path(__file__).parents[3] / "server/configuration.md").read_text()
    section = manual.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    listed = [
        re.findall(r"`(darkroom_\w+)`", line.split("|")[1]) for line in section.splitlines() if line.startswith("|")
    ]
    assert {name for line in listed for name in line} == names(measured)


def test_a_port_that_is_taken(tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = RunningServer(models=[{"name": "tiny", "path": tiny_model}], metrics=address)
        with pytest.raises(Exception, match=f"cannot listen on {address}: Address already in use"):
            server.__enter__()
    with pytest.raises(ValueError, match="HOST:PORT is needed"):
        Settings(metrics="unix:/tmp/metrics")


def test_distribution() -> None:
    made = Distribution((1, 2))
    for value in (0.5, 1, 1.5, 2, 3):
        made.add(value)
    assert (made.counts, made.total) == ([2, 2, 1], 8.0)
    assert [size_class(*size) for size in ((32, 32), (512, 512), (1024, 256), (4096, 4096))] == [
        "64",
        "512",
        "512",
        "larger",
    ]
