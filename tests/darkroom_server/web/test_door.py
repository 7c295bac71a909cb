"""HTTP's door: who is let in, what a client that leaves stops, and how it opens and closes."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx2
import pytest

from darkroom_server.api.listening import CannotListen
from tests.darkroom_server.web.http import GENERATE, ORIGIN, envelope, envelopes, stream_json, unary
from tests.support import RunningServer, generate_request, wait_for

LONG = {"parameters": {"prompt": "x", "numInferenceSteps": 400}}
LIST = "/darkroom.v1.CatalogService/ListModels"


@contextmanager
def enveloped_stream(http: httpx2.Client, media_type: str) -> Iterator[None]:
    headers = {"content-type": media_type}
    request = generate_request(prompt="x", num_inference_steps=400).SerializeToString()
    with http.stream("POST", GENERATE, content=envelope(request), headers=headers) as answer:
        messages = envelopes(answer.iter_bytes())
        next(messages)
        yield
        messages.close()  # not before: it closes the connection


connect_stream = partial(enveloped_stream, media_type="application/connect+proto")
grpc_web_stream = partial(enveloped_stream, media_type="application/grpc-web+proto")


@contextmanager
def image_events(http: httpx2.Client) -> Iterator[None]:
    fields = {"prompt": "x", "steps": 400, "stream": True, "partial_images": 3}
    with http.stream("POST", "/v1/images/generations", json=fields) as answer:
        assert answer.status_code == 200
        yield


@contextmanager
def image(http: httpx2.Client) -> Iterator[None]:
    """Its answer comes at the end, so the request is written by hand."""
    host, _, port = str(http.base_url.netloc, "ascii").rpartition(":")
    body = b'{"prompt": "x", "steps": 400}'
    headers = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST /v1/images/generations HTTP/1.1\r\n{headers}\r\n\r\n".encode() + body)
        yield


@pytest.mark.parametrize(
    "door",
    [connect_stream, grpc_web_stream, image_events, image],
    ids=["connect_stream", "grpc_web_stream", "image_events", "image"],
)
def test_closing_the_connection_stops_the_job(
    web: RunningServer, http: httpx2.Client, door: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a step of the moment when the server hears of it."""
    engine, at_cancel = web.app.engine, []
    cancel, before = engine.cancel, engine.ticks
    monkeypatch.setattr(engine, "cancel", lambda *why: (at_cancel.append(engine.ticks), cancel(*why)))
    with door(http):
        wait_for(lambda: engine.ticks > before)
    wait_for(lambda: web.app.jobs.active_jobs == 0 and engine.idle)
    assert engine.ticks - at_cancel[0] <= 1
    assert engine.ticks - before < 400


def test_pages_of_configured_origins_are_let_in(http: httpx2.Client) -> None:
    """With the preflight that browsers send, and headers that scripts may read."""
    asks = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,connect-timeout-ms",
    }
    preflight = http.options(LIST, headers={"origin": ORIGIN, **asks})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "connect-timeout-ms" in preflight.headers["access-control-allow-headers"]
    answer = unary(http, LIST, {}, origin=ORIGIN)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "Grpc-Status-Details-Bin" in answer.headers["access-control-expose-headers"]


def test_other_pages_are_refused(web: RunningServer, http: httpx2.Client) -> None:
    """Also what browsers send without asking first: forms, and the page of a name that was turned to this address."""
    evil = {"origin": "http://evil.example"}
    asks = {"access-control-request-method": "POST"}
    assert http.options(LIST, headers={**evil, **asks}).status_code == 400
    assert unary(http, LIST, {}, **evil).status_code == 403
    form = {"data": {"prompt": "x"}, "files": {"image": b"x"}}
    assert http.post("/v1/images/edits", headers=evil, **form).status_code == 403
    assert http.post("/v1/images/edits", headers={"origin": web.app.url}, **form).status_code == 403


def test_what_is_not_there(http: httpx2.Client) -> None:
    for answer in (http.get("/"), http.get("/v1/nothing"), http.get("/v1/images/edits")):
        assert answer.status_code in (404, 405)
        assert "there is nothing for GET at" in answer.json()["error"]["message"]
    assert http.post("/darkroom.v1.ImageService/Nope", json={}).status_code == 404


def test_an_address_in_use_is_refused(web: RunningServer, tiny_model: Path) -> None:
    address = web.app.url.removeprefix("http://")
    with (
        pytest.raises(CannotListen, match=f"cannot listen on {address}: Address already in use"),
        RunningServer(models=[{"name": "tiny", "path": tiny_model}], http=address),
    ):
        pass


def test_a_unix_socket(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with RunningServer(models=[{"name": "tiny", "path": tiny_model}], http=f"unix:{path}") as server:
        transport = httpx2.HTTPTransport(uds=str(path))
        with httpx2.Client(transport=transport, base_url="http://x") as http:
            assert unary(http, LIST, {}).json()["models"][0]["name"] == "tiny"
        assert server.app.url == f"unix:{path}"
    assert not path.exists()


def test_running_jobs_may_end_when_the_server_stops(tiny_model: Path) -> None:
    """The drain is gRPC's: new calls are refused, and what runs goes to its end."""
    found: list[dict] = []
    server = RunningServer(models=[{"name": "tiny", "path": tiny_model}], http="127.0.0.1:0", drain_seconds=60)
    with server, httpx2.Client(base_url=server.app.url, timeout=60) as http:
        message = {"parameters": {"prompt": "x", "numInferenceSteps": 20}}
        client = threading.Thread(target=lambda: found.extend(stream_json(http, GENERATE, message)))
        client.start()
        wait_for(lambda: server.app.engine.ticks > 0)
        stopping = server.begin(server.app.stop())
        client.join(60)
        stopping.result(60)
    assert found[-1] == {}
    assert "completed" in found[-2]["event"]
