"""Connect and gRPC-Web: every call, the same pictures and the same errors as by gRPC."""

import base64
import json
import re
import socket
from typing import Any
from urllib.parse import unquote

import grpc
import httpx2
import pytest
from google.protobuf import descriptor_pool, json_format
from google.rpc import status_pb2
from grpc_reflection.v1alpha import reflection_pb2

from darkroom.v1 import catalog_service_pb2 as catalog_pb
from darkroom.v1 import image_service_pb2 as image_pb
from darkroom_server.api.door import SERVICES
from tests.darkroom_server.web.http import (
    BEARER,
    GENERATE,
    details,
    envelope,
    envelopes,
    stream_grpc_web,
    stream_json,
    unary,
)
from tests.support import RunningServer, Stream, generate_request, refused

PARAMETERS = {"prompt": "a circle", "num_inference_steps": 3, "num_images": 2, "seed": 2**62}
METHODS = [
    f"/{service}/{method.name}"
    for service in SERVICES
    for method in descriptor_pool.Default().FindServiceByName(service).methods
]


def asked(**fields: Any) -> image_pb.GenerateRequest:
    return generate_request(request_id="one-job", deterministic=True, **PARAMETERS, **fields)


def test_the_same_pictures_by_every_protocol(web: RunningServer, http: httpx2.Client) -> None:
    """Byte for byte, metadata included."""
    by_grpc = web.start(asked()).read()
    as_json = json_format.MessageToDict(asked())
    *messages, end = stream_json(http, GENERATE, as_json)
    by_connect = Stream(None, [json_format.ParseDict(each, image_pb.GenerateResponse()).event for each in messages])
    assert end == {}
    answers, trailers = stream_grpc_web(http, GENERATE, asked(), image_pb.GenerateResponse)
    by_web = Stream(None, [each.event for each in answers])
    assert trailers == {"grpc-status": "0"}
    files = by_grpc.files()
    assert len(files) == 2
    assert files == by_connect.files() == by_web.files()
    for stream in (by_connect, by_web):
        assert stream.kinds[0] == "accepted"
        assert stream.kinds[-1] == "completed"
        assert len(stream.of("step")) == len(by_grpc.of("step")) == 6
    assert messages[0]["event"]["accepted"]["seeds"] == [str(2**62), str(2**62 + 1)]  # JSON's numbers are too small


@pytest.mark.parametrize("method", METHODS)
def test_every_call_is_there(http: httpx2.Client, method: str) -> None:
    """An RPC that is added to the services needs nothing here. Empty requests are answered, or refused in words."""
    service = descriptor_pool.Default().FindServiceByName(method.split("/")[1])
    if not service.methods_by_name[method.split("/")[2]].server_streaming:
        answer = unary(http, method, {})
        assert answer.status_code in (200, 400, 404, 501), answer.text
        assert answer.status_code == 200 or answer.json()["message"]
        return
    messages = stream_json(http, method, {"parameters": {"numInferenceSteps": 1}} if method == GENERATE else {})
    assert messages[-1] == {} or messages[-1]["error"]["message"]


def test_lists_are_those_of_grpc(web: RunningServer, http: httpx2.Client) -> None:
    answer = unary(http, "/darkroom.v1.CatalogService/ListSchedulers", {})
    expected = web.catalog.ListSchedulers(catalog_pb.ListSchedulersRequest())
    assert json_format.ParseDict(answer.json(), catalog_pb.ListSchedulersResponse()) == expected


def test_errors_have_their_details(web: RunningServer, http: httpx2.Client) -> None:
    wrong = {"num_inference_steps": 0, "width": 1}
    by_grpc = refused(lambda: web.generate(**wrong))
    (end,) = stream_json(http, GENERATE, {"parameters": wrong})
    error, found = end["error"], details(end["error"])
    assert error["code"] == "invalid_argument"
    assert error["message"] == by_grpc.message
    assert found["ErrorInfo"].reason == "INVALID_REQUEST"
    assert {each.field: each.description for each in found["BadRequest"].field_violations} == by_grpc.violations
    _, trailers = stream_grpc_web(http, GENERATE, generate_request(**wrong), image_pb.GenerateResponse)
    assert trailers["grpc-status"] == "3"
    packed = base64.b64decode(trailers["grpc-status-details-bin"] + "==")
    assert packed == dict(by_grpc.trailers)["grpc-status-details-bin"]
    assert status_pb2.Status.FromString(packed).message == by_grpc.message


def test_a_full_queue_says_when_to_come_again(tiny_model: Any) -> None:
    models = [{"name": "tiny", "path": tiny_model}]
    with (
        RunningServer(models=models, http="127.0.0.1:0", limits={"max_queued_jobs": 1}) as server,
        httpx2.Client(base_url=server.app.url) as http,
        server.paused(),
    ):
        waiting = server.start(generate_request(prompt="x", num_inference_steps=1))
        waiting.read_until("accepted")
        (end,) = stream_json(http, GENERATE, {})
        answer = http.post("/v1/images/generations", json={"prompt": "x"})
        waiting.call.cancel()
    found = details(end["error"])
    assert (end["error"]["code"], found["ErrorInfo"].reason) == ("resource_exhausted", "QUEUE_FULL")
    assert found["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("text", ['{"requestIdd": "x"}', '{"requestId": 3}', "[1", '"x"', "\xff"])
def test_json_that_is_no_message_is_refused(http: httpx2.Client, text: str) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    answer = http.post("/darkroom.v1.ImageService/Cancel", content=text.encode("latin-1"), headers=headers)
    assert answer.status_code == 400
    assert details(answer.json())["ErrorInfo"].reason == "INVALID_REQUEST"


def test_bytes_that_are_no_message_are_refused(http: httpx2.Client) -> None:
    headers = {"content-type": "application/proto"}
    answer = http.post("/darkroom.v1.ImageService/Cancel", content=b"\xff\xff", headers=headers)
    assert (answer.status_code, answer.json()["message"]) == (400, "the request is not a message of this API")


@pytest.mark.parametrize("protocol", ["connect", "grpc-web"])
def test_what_is_said_to_be_compressed_is_refused_in_words(http: httpx2.Client, protocol: str) -> None:
    """With the code that both protocols want."""
    flagged = b"\x01" + envelope(b"x")[1:]
    answer = http.post(GENERATE, content=flagged, headers={"content-type": f"application/{protocol}+proto"})
    said = unquote(answer.content.decode(errors="replace") + str(answer.headers))
    assert "protocol error: sent compressed message without compression support" in said
    assert re.search('"code": "internal"' if protocol == "connect" else "grpc-status'?: '?13", said)


@pytest.mark.parametrize("size", [270, 1000], ids=["a little", "far"])
def test_requests_above_the_limit_are_refused(http: httpx2.Client, size: int) -> None:
    message = {"image": base64.b64encode(b"x" * size * 1024).decode()}
    (end,) = stream_json(http, "/darkroom.v1.ImageService/Edit", message)
    assert end["error"]["code"] == "resource_exhausted"
    answer = http.post("/v1/images/edits", data={"prompt": "x"}, files={"image": b"x" * size * 1024})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_calls_want_the_token(locked: RunningServer) -> None:
    with httpx2.Client(base_url=locked.app.url) as http:
        for wrong in ({}, {"authorization": "Bearer wrong"}):
            answer = unary(http, "/darkroom.v1.CatalogService/ListModels", {}, **wrong)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
            (end,) = stream_json(http, GENERATE, {}, **wrong)
            assert end["error"]["code"] == "unauthenticated"
        assert unary(http, "/darkroom.v1.CatalogService/ListModels", {}, **BEARER).status_code == 200
        unload = unary(http, "/darkroom.v1.CatalogService/UnloadModel", {"model": "tiny"}, **BEARER)
        assert (unload.status_code, details(unload.json())["ErrorInfo"].reason) == (403, "OPERATOR_TOKEN_REQUIRED")
        assert unary(http, "/grpc.health.v1.Health/Check", {}).json() == {"status": "SERVING"}


def test_a_request_is_refused_before_it_is_sent(locked: RunningServer) -> None:
    """Without a token nothing of a large request is read."""
    host, _, port = locked.app.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"POST {GENERATE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/connect+json\r\n"
        connection.sendall(f"{head}content-length: 100000\r\n\r\n".encode())
        answer = connection.recv(65536)
        while b"unauthenticated" not in answer:
            answer += connection.recv(65536)


def test_a_deadline_ends_the_job(web: RunningServer, http: httpx2.Client) -> None:
    short = {"parameters": {"num_inference_steps": 1}}  # it could be met: else the job would be refused
    with web.paused():
        *_, end = stream_json(http, GENERATE, short, **{"connect-timeout-ms": "1000"})
    assert end["error"]["code"] == "deadline_exceeded"


def test_reflection(http: httpx2.Client) -> None:
    """By HTTP/1.1 the questions come first, then the answers."""
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    method = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    body = envelope(ask.SerializeToString())
    answer = http.post(method, content=body, headers={"content-type": "application/connect+proto"})
    (_, message), (_, end) = envelopes([answer.content])
    listed = reflection_pb2.ServerReflectionResponse.FromString(message).list_services_response.service
    assert {each.name for each in listed} >= set(SERVICES)
    assert json.loads(end) == {}


def test_grpc_has_its_own_port(web: RunningServer, http: httpx2.Client) -> None:
    answer = http.post(GENERATE, content=envelope(b""), headers={"content-type": "application/grpc"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unimplemented")
    with grpc.insecure_channel(web.app.url.removeprefix("http://")) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/darkroom.v1.CatalogService/ListModels")(b"", timeout=10)
