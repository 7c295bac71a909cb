"""The watchdog: alone, and in a server whose engine a plugin holds."""

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from darkroom_plugins import calls
from darkroom_server.config.settings import Settings
from darkroom_server.observe.watchdog import Watchdog
from tests.failing import FailingServer
from tests.support import generate_request, refused

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Engine:
    """As the watchdog sees it."""

    thread = -1
    working = "decode of job 'x' (sd, 2048 x 2048 pixels)"
    seconds = 0.0

    def stalled_for(self, now: float) -> float:
        return self.seconds


def watchdog(engine: Any, reports: list[object], **settings: Any) -> Watchdog:
    return Watchdog(engine, Settings(**settings), reports.append, lambda: reports.append("hangs"))


def test_a_stall_is_logged_reported_and_at_last_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    engine, reports = Engine(), []
    watching = watchdog(engine, reports, stall_seconds=60, stall_exit_seconds=300)
    ends = []
    for engine.seconds in (1, 12, 15, 30, 70, 2, 299, 300):
        ends.append(watching.check(now=0.0))
    assert reports == [True, False, True, "hangs"]
    assert ends == [False] * 7 + [True]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said[:2] == [
        "decode of job 'x' (sd, 2048 x 2048 pixels) has taken 12 s so far",
        "decode of job 'x' (sd, 2048 x 2048 pixels) has taken 30 s so far",
    ]


def test_a_hook_on_another_thread_is_named(caplog: pytest.LogCaptureFixture) -> None:
    reports: list[object] = []
    watching = watchdog(Engine(), reports, stall_seconds=60, stall_exit_seconds=None)
    contribution = SimpleNamespace(plugin="slow-plugin", name="x")
    with calls.calling(contribution, "finish", timed=False):
        (call,) = calls.running()
        assert not watching.check(now=call.began + 1000)
    assert reports == [True]
    assert "the plugin 'slow-plugin' in finish has taken 1000 s so far" in caplog.text
    assert calls.running() == []


def test_health_tells_of_an_engine_that_a_plugin_holds(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with FailingServer(tiny_model, stall_seconds=2.0, stall_exit_seconds=None) as server:
        request = health_pb2.HealthCheckRequest(service="darkroom.v1.ImageService")
        watch = health_pb2_grpc.HealthStub(server.channel).Watch(request, timeout=60)
        assert next(watch).status == SERVING
        with server.gate.closed():
            held = server.patient()
            assert next(watch).status == NOT_SERVING
        assert next(watch).status == SERVING
        held.read()
    assert "'failing' in after_evaluation: the server is not serving" in caplog.text


def test_an_engine_that_hangs_ends_the_server(tiny_model: Path) -> None:
    with FailingServer(tiny_model, stall_seconds=1.0, stall_exit_seconds=2.0) as server:
        with server.gate.closed():
            held = server.patient()
            failed = refused(held.read)
            server.run(server.app.failed.wait())
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST")


@pytest.mark.parametrize("prompt", ["patient planning", "patient finish"])
def test_a_job_whose_hook_hangs_on_another_thread_ends_with_the_reason(tiny_model: Path, prompt: str) -> None:
    with FailingServer(tiny_model, stall_seconds=0.5, stall_exit_seconds=1.0) as server:
        with server.gate.closed():
            held = server.start(server.request(prompt))
            server.run(server.app.failed.wait())
            server.run(server.app.jobs.drain(0, asyncio.Event()))
            failed = refused(held.read)
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST")


def test_a_fault_of_the_outbox_ends_as_any_of_the_engine(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FailingServer(tiny_model) as server:
        outbox = server.app.engine.outbox
        faults, post = iter([RuntimeError("no room in the outbox")]), outbox.post

        def fail_once(within_turn: bool = False) -> None:
            for fault in faults:
                raise fault
            post(within_turn)

        monkeypatch.setattr(outbox, "post", fail_once)
        failed = refused(lambda: server.start(generate_request(num_inference_steps=3)).read())
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST")
        server.run(server.app.failed.wait())
