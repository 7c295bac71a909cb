"""Hostile requests by every door: messages, JSON, forms and pictures that are damaged by chance, the same for a seed.

Their answers must be answers: no crash, no silence, no failure without a reason."""

import asyncio
import base64
import json
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import unquote

import grpc
import httpx2
import numpy as np
from google.protobuf import json_format
from google.protobuf.message import Message
from grpc import aio
from PIL import Image

from darkroom.v1 import catalog_service_pb2, edits_pb2, parameters_pb2
from darkroom.v1 import image_service_pb2 as pb
from tests.picture_files import FILES, encoded, mutated
from tests.support import edit_request, generate_request, png, preview, spec
from tests.support import struct as as_struct

SECONDS = 60.0  # without an answer: it hangs
PICTURE = png(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
MASK = png(np.eye(32, dtype=np.uint8) * 255)
IMAGES, CATALOG = "/darkroom.v1.ImageService/", "/darkroom.v1.CatalogService/"
LORA = parameters_pb2.LoraSpec(name="unet-a", weight=0.5)
CONTROL = parameters_pb2.ControlSpec(
    model="edges", image=PICTURE, preprocessor="canny", preprocessor_options=as_struct({"low_threshold": 3})
)
RICH: dict[str, Any] = {
    "prompt": "a (circle:1.2)",
    "negative_prompt": "",
    "seed": 3,
    "num_images": 2,
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "scheduler": spec("ddim", options={"set_alpha_to_one": True}),
    "loras": [LORA],
    "controls": [CONTROL],
    "extensions": {"vignette": {"strength": 0.5}},
    **preview(every_n_steps=2),
}
EDIT: dict[str, Any] = {"prompt": "x", "num_inference_steps": 4, "image": PICTURE}
CORPUS: list[tuple[str, Message]] = [
    (IMAGES + "Generate", generate_request(**{k: v for k, v in RICH.items() if k != "extensions"})),
    (IMAGES + "Generate", generate_request(**RICH)),
    (IMAGES + "Generate", generate_request(prompt="x", num_inference_steps=2, width=40, height=32)),
    (
        IMAGES + "Generate",
        generate_request(prompt="x", num_inference_steps=2, request_id="kept", disconnect_policy=2, deterministic=True),
    ),
    (IMAGES + "Edit", edit_request(**EDIT, image_to_image=edits_pb2.ImageToImage(strength=0.5))),
    (IMAGES + "Edit", edit_request(**EDIT, inpaint=edits_pb2.Inpaint(mask=MASK, mask_blur=2, padding_crop=4))),
    (IMAGES + "Edit", edit_request(**EDIT, outpaint=edits_pb2.Outpaint(left=8, bottom=8))),
    (IMAGES + "Preprocess", pb.PreprocessRequest(preprocessor="canny", image=PICTURE)),
    (IMAGES + "Watch", pb.WatchRequest(request_id="kept", after_sequence=3)),
    (IMAGES + "Cancel", pb.CancelRequest(request_id="kept")),
    (IMAGES + "GetJob", pb.GetJobRequest(request_id="kept")),
    (IMAGES + "ListJobs", pb.ListJobsRequest(page_size=2, page_token="2")),
    (CATALOG + "ListSchedulers", catalog_service_pb2.ListSchedulersRequest()),
]
SAFETENSORS = struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}      ' + bytes(8)
FILES_OF_ALL_KINDS = [*FILES.values(), PICTURE, MASK, SAFETENSORS, encoded(Image.new("L", (4096, 4096)), "PNG")]
WHOLE = (0, 1, 2, 7, 2**31 - 1, 2**31, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1)
REAL = (0.0, -0.0, 1e-320, 0.5, 1.0, -1.0, 1e308, float("inf"), float("-inf"), float("nan"))
TEXT = ("", "x", "\0", "../etc/passwd", "\u202ea", "é" * 300, "((((((" * 200, "[[a:b", "🎨" * 9, "%s{0}$x", "A" * 9000)
CODES = {code.value[0]: code.name for code in grpc.StatusCode}
DEEP = "nested lists"  # json.dumps cannot write as many
UNREASONED = ("UNKNOWN", "INTERNAL", "DATA_LOSS", "DEADLINE_EXCEEDED", "UNAVAILABLE", "UNREADABLE", "500", "SILENCE")

Field = tuple[int, int, Any]  # number, wire type, value


# ------------------------------------------------------------------------------------------------------------- messages


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A message whose bytes or whose fields are changed: the second is still one."""
    for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
        fields = _fields(data)
        data = _bytes(_changed(fields, chance)) if fields else data
    return mutated(data or b"\0", chance) if chance.random() < 0.3 else data


def _fields(data: bytes) -> list[Field]:
    """The fields of a message; none, if it is no message."""
    found, at = list[Field](), 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            number, kind = key >> 3, key & 7
            if kind == 0:
                value, at = _varint(data, at)
            elif kind in (1, 5):
                value, at = data[at : at + 4 * (kind == 5) + 8 * (kind == 1)], at + 4 * (kind == 5) + 8 * (kind == 1)
            elif kind == 2:
                size, at = _varint(data, at)
                value, at = data[at : at + size], at + size
            else:
                return []
            found.append((number, kind, value))
    except IndexError:
        return []
    return found if at == len(data) else []


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at


def _bytes(fields: list[Field]) -> bytes:
    made = b""
    for number, kind, value in fields:
        made += _written(number << 3 | kind)
        made += _written(value) if kind == 0 else (_written(len(value)) if kind == 2 else b"") + value
    return made


def _written(value: int) -> bytes:
    value, made = value % 2**64, b""
    while value > 0x7F:
        value, made = value >> 7, made + bytes([value & 0x7F | 0x80])
    return made + bytes([value])


def _changed(fields: list[Field], chance: random.Random) -> list[Field]:
    """With one field dropped, doubled, moved to another number, or of another value."""
    at = chance.randrange(len(fields))
    number, kind, value = fields[at]
    match chance.randrange(10):
        case 0:
            return fields[:at] + fields[at + 1 :]
        case 1:
            return fields + [fields[at]] * chance.choice((1, 2, 50))
        case 2:
            return [*fields[:at], (number % 30 + 1, kind, value), *fields[at + 1 :]]
    changed: Any
    if kind == 0:
        changed = chance.choice((*WHOLE, value + 1, chance.getrandbits(64)))
    elif kind == 2:
        changed = _other_bytes(value, chance)
    else:
        changed = (struct.pack("<d", chance.choice(REAL)) + bytes(8))[: len(value)]
    return [*fields[:at], (number, kind, changed), *fields[at + 1 :]]


def _other_bytes(value: bytes, chance: random.Random) -> bytes:
    within = _fields(value)
    if within and chance.random() < 0.8:
        return _bytes(_changed(within, chance))
    if len(value) > 60 and not within:  # a picture
        return mutated(chance.choice(FILES_OF_ALL_KINDS), chance)
    return chance.choice((chance.choice(TEXT).encode(), chance.randbytes(20), value[:-1], value * 2))


# ---------------------------------------------------------------------------------------------------------------- doors


async def by_grpc(channel: aio.Channel, method: str, message: Message, chance: random.Random) -> str:
    call = channel.unary_stream(method)(damaged(message.SerializeToString(), chance), timeout=SECONDS)
    try:
        async for _ in call:
            pass
    except aio.AioRpcError as error:
        trailers = dict(error.trailing_metadata() or ())
        return f"{error.code().name} {_reason(trailers.get('grpc-status-details-bin', b''))}"
    return "OK"


async def by_connect(http: httpx2.AsyncClient, method: str, message: Message, chance: random.Random) -> str:
    """Connect and gRPC-Web, in JSON and binary."""
    streams = method.rpartition("/")[2] in ("Generate", "Edit", "Preprocess", "Watch")
    body, kind = damaged(message.SerializeToString(), chance), "proto"
    if chance.random() < 0.5:
        body, kind = _damaged_json(json_format.MessageToDict(message), chance), "json"
    web = chance.random() < 0.3
    if streams or web:
        body = struct.pack(">BI", 0, len(body)) + body
        body = mutated(body, chance) if chance.random() < 0.1 else body
    headers = {"content-type": f"application/grpc-web+{kind}" if web else f"application/{'connect+' * streams}{kind}"}
    if chance.random() < 0.1:
        headers |= {chance.choice(("content-encoding", "connect-content-encoding", "connect-timeout-ms")): "gzip"}
    answer = await http.post(method, content=body, headers=headers)
    if answer.status_code == 200 and (streams or web):
        return _of_envelopes(answer.content, dict(answer.headers))
    if answer.status_code == 200 and kind == "proto":
        return "OK"
    return _of_json(answer.status_code, answer.content)


async def by_openai(http: httpx2.AsyncClient, method: str, message: Message, chance: random.Random) -> str:
    """OpenAI's images API."""
    given = {"prompt": "x", "n": 1, "size": "32x32", "steps": 2, "stream": chance.random() < 0.3, "quality": "low"}
    if chance.random() < 0.5:
        headers = {"content-type": "application/json"}
        answer = await http.post("/v1/images/generations", content=_damaged_json(given, chance), headers=headers)
    else:
        files = {name: (name, mutated(chance.choice(FILES_OF_ALL_KINDS), chance)) for name in ("image", "mask")}
        if chance.random() < 0.5:
            del files["mask"]
        fields = {name: chance.choice((str(value), *TEXT)) for name, value in given.items()}
        request = http.build_request("POST", "/v1/images/edits", data=fields, files=files)
        body = await request.aread()
        body = mutated(body, chance) if chance.random() < 0.3 else body
        headers = {"content-type": request.headers["content-type"]}
        answer = await http.post("/v1/images/edits", content=body, headers=headers)
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        return "OK" if b"event: error" not in answer.content else answer.content.rpartition(b"data: ")[2].decode()
    return _of_json(answer.status_code, answer.content)


def _damaged_json(value: Any, chance: random.Random) -> bytes:
    """JSON that is cut or mangled, or whose values are others."""
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        value = _changed_json(value, chance)
    text = json.dumps(value).replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000).encode()
    return mutated(text, chance) if chance.random() < 0.2 else text


def _changed_json(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        changed = {**value, key: _changed_json(value[key], chance)}
        return changed if chance.random() < 0.9 else {**changed, chance.choice((*TEXT, "\ud800")): 1}
    if isinstance(value, list) and value and chance.random() < 0.8:
        return [*value[1:], _changed_json(value[0], chance)]
    picture = base64.b64encode(mutated(chance.choice(FILES_OF_ALL_KINDS), chance)).decode()
    return chance.choice(
        (None, "\ud800", True, -1, 10**400, *WHOLE, *REAL, *TEXT, picture, [], {}, [[{"a": [1]}]], DEEP)
    )


# -------------------------------------------------------------------------------------------------------------- answers


def _reason(status: bytes) -> str:
    from google.rpc import error_details_pb2, status_pb2

    for detail in status_pb2.Status.FromString(status).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return ""


def _of_envelopes(data: bytes, headers: dict[str, str]) -> str:
    """How a stream of Connect or gRPC-Web ended."""
    end = "\n".join(f"{name}: {value}" for name, value in headers.items() if name.startswith("grpc-status"))
    while len(data) >= 5:
        size = struct.unpack(">I", data[1:5])[0]
        end, data = data[5 : 5 + size].decode(errors="replace"), data[5 + size :]
    if end.startswith("grpc-"):
        trailers = dict(line.split(": ", 1) for line in end.splitlines() if line)
        status = base64.b64decode(trailers.get("grpc-status-details-bin", "") + "==")
        reason = _reason(status) or _of_protocol(unquote(trailers.get("grpc-message", "")))
        return f"{CODES[int(trailers['grpc-status'])]} {reason}"
    return "UNREADABLE" if not end.startswith("{") else _of_json(200, end.encode())


def _of_json(status: int, data: bytes) -> str:
    try:
        said = json.loads(data)
    except ValueError:
        return str(status) if status != 200 else "UNREADABLE"
    error = said.get("error", said) if isinstance(said, dict) else said
    if status == 200 and (not isinstance(error, dict) or "code" not in error):
        return "OK"
    reasons = [each.get("debug", {}).get("reason") for each in error.get("details") or () if isinstance(each, dict)]
    reason = next(filter(None, reasons), _of_protocol(str(error.get("message"))))
    return f"{str(error.get('code')).upper()} {reason}"


def _of_protocol(words: str) -> str:
    """gRPC and Connect want INTERNAL for a message that says it is compressed, in a request that says by nothing."""
    return "COMPRESSED" if words.startswith("protocol error: sent compressed message") else ""


Door = Callable[[Any, str, Message, random.Random], Any]


async def send(address: str, http: str, count: float, seed: int = 0, together: int = 8) -> Counter[str]:
    """Send so many requests, or endlessly; how many had which answer, by door. `http` is the path of a socket."""
    answers: Counter[str] = Counter()
    numbers: Iterator[int] = iter(range(int(count)))
    transport = httpx2.AsyncHTTPTransport(uds=http, limits=httpx2.Limits(max_keepalive_connections=0))
    async with (
        aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
        httpx2.AsyncClient(transport=transport, base_url="http://darkroom", timeout=SECONDS) as client,
    ):
        doors: list[tuple[Door, Any]] = [(by_grpc, channel), (by_grpc, channel), (by_connect, client)]

        async def sender() -> None:
            for number in numbers:
                chance = random.Random(f"{seed} {number}")
                method, message = chance.choice(CORPUS)
                door, way = (by_openai, client) if chance.random() < 0.2 else chance.choice(doors)
                try:
                    answer = await door(way, method, message, chance)
                except httpx2.TransportError:
                    answer = "SILENCE"
                answers[f"{door.__name__} {answer}"] += 1

        await asyncio.gather(*(sender() for _ in range(together)))
    return answers


def faults(answers: Iterable[str]) -> list[str]:
    """The answers that no request may get."""
    return [each for each in answers if each.split()[1] in UNREASONED and len(each.split()) == 2]
