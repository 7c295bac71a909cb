"""Connect and gRPC-Web by hand, as their specifications say, with nothing of the library that serves them."""

import base64
import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import httpx2
from google.protobuf import json_format
from google.rpc import error_details_pb2

ORIGIN = "http://page.example:3000"
BEARER = {"authorization": "Bearer t0ken"}
TOKEN = {"name": "user", "sha256": hashlib.sha256(b"t0ken").hexdigest()}
GENERATE = "/darkroom.v1.ImageService/Generate"
END_CONNECT, END_GRPC_WEB = 0b10, 0b10000000
DETAILS = {each.DESCRIPTOR.full_name: each for each in vars(error_details_pb2).values() if isinstance(each, type)}


def envelope(data: bytes) -> bytes:
    return struct.pack(">BI", 0, len(data)) + data


def envelopes(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The flags and data of each message."""
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= 5 and len(buffer) >= 5 + (size := struct.unpack(">I", buffer[1:5])[0]):
            yield buffer[0], buffer[5 : 5 + size]
            buffer = buffer[5 + size :]
    assert not buffer


def unary(http: httpx2.Client, method: str, message: dict[str, Any], **headers: str) -> httpx2.Response:
    return http.post(method, json=message, headers=headers)


def stream_json(http: httpx2.Client, method: str, message: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    """The messages of a Connect stream in JSON; the last is its end, with an error if there is one."""
    headers = {"content-type": "application/connect+json", **headers}
    answer = http.post(method, content=envelope(json.dumps(message).encode()), headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/connect+json"
    found = list(envelopes([answer.content]))
    assert [flags for flags, _ in found] == [0] * (len(found) - 1) + [END_CONNECT]
    return [json.loads(data) for _, data in found]


def stream_grpc_web(http: httpx2.Client, method: str, message: Any, kind: Any) -> tuple[list[Any], dict[str, str]]:
    """The messages of a gRPC-Web stream, and its trailers."""
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    answer = http.post(method, content=envelope(message.SerializeToString()), headers=headers)
    assert answer.status_code == 200
    if "grpc-status" in answer.headers:  # trailers only
        return [], dict(answer.headers)
    *messages, (flags, trailers) = envelopes([answer.content])
    assert flags == END_GRPC_WEB
    return [kind.FromString(data) for _, data in messages], dict(
        line.split(": ", 1) for line in trailers.decode().splitlines()
    )


def details(error: dict[str, Any]) -> dict[str, Any]:
    """The details of Connect's error by their names; what is shown in words is what the base64 says."""
    found = {}
    for each in error.get("details", ()):
        message = DETAILS[each["type"]].FromString(base64.b64decode(each["value"] + "=="))
        found[each["type"].removeprefix("google.rpc.")] = message
        assert each["debug"] == json_format.MessageToDict(message)
    return found
