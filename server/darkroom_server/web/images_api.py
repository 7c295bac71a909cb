"""The OpenAI images API: `POST /v1/images/generations` and `/edits`, `GET /v1/models`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from darkroom.v1 import catalog_service_pb2
from darkroom_server.api.in_process import Aborted, Caller
from darkroom_server.web.images_errors import ApiError, from_status
from darkroom_server.web.images_request import ParsedRequest, parse_edit, parse_generation
from darkroom_server.web.peers import grpc_peer

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from darkroom.v1 import events_pb2
    from darkroom_server.api.in_process import InProcessCall, InProcessCalls
    from darkroom_server.web.images_masks import Masks

log = logging.getLogger(__name__)

GENERATE, EDIT = "/darkroom.v1.ImageService/Generate", "/darkroom.v1.ImageService/Edit"
LIST_MODELS = "/darkroom.v1.CatalogService/ListModels"
# Nothing is counted in tokens here, and clients may read them.
USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
CLIENT_GONE = 499
T = TypeVar("T")


class ImagesApi:
    """The API's routes. Pictures are made by calls of ImageService, with the caller's token."""

    def __init__(self, calls: InProcessCalls, max_bytes: int) -> None:
        self._calls, self._max_bytes = calls, max_bytes
        self.masks: Masks | None = None  # None until there are services
        self.routes = [
            Route("/v1/images/generations", _answering_errors(self._generations), methods=["POST"]),
            Route("/v1/images/edits", _answering_errors(self._edits), methods=["POST"]),
            Route("/v1/models", _answering_errors(self._models), methods=["GET"]),
            Route("/v1/models/{name:path}", _answering_errors(self._model), methods=["GET"]),
        ]

    async def _generations(self, request: Request) -> Response:
        return await self._pictures(request, GENERATE, parse_generation)

    async def _edits(self, request: Request) -> Response:
        async def parse(limited: Request) -> ParsedRequest:
            assert self.masks is not None  # the call has been let in
            return await parse_edit(limited, self.masks)

        return await self._pictures(request, EDIT, parse)

    async def _pictures(
        self, request: Request, method: str, parse: Callable[[Request], Awaitable[ParsedRequest]]
    ) -> Response:
        caller = caller_of(request)
        async with contextlib.AsyncExitStack() as closing:
            call = await self._calls.begin(method, caller)  # before the request is read
            closing.push_async_callback(call.close)
            job = await parse(Request(request.scope, _limited(request.receive, self._max_bytes)))

            async def begin() -> tuple[Pictures, AsyncIterator[dict[str, Any]]]:
                job.settle(await self._named_model(caller, job))
                call.send(job.message.SerializeToString())
                pictures = Pictures(call, job)
                return pictures, await pictures.begun()

            async def whole() -> Response:
                pictures, events = await begin()
                async for _ in events:
                    pass
                return JSONResponse(pictures.body())

            if not job.fields.stream:
                return await while_connected(request.receive, whole())
            begun = await while_connected(request.receive, begin())
            closing.pop_all()  # now the response closes it
            return EventStream(call, begun[1])

    async def _named_model(self, caller: Caller, job: ParsedRequest) -> catalog_service_pb2.Model | None:
        name = job.message.parameters.model
        models = await self._list_models(caller)
        return next((each for each in models if (each.name == name if name else each.is_default)), None)

    async def _list_models(self, caller: Caller) -> list[catalog_service_pb2.Model]:
        answer = await self._calls.unary(LIST_MODELS, b"", caller)
        return list(answer.models)

    async def _models(self, request: Request) -> Response:
        models = await self._list_models(caller_of(request))
        return JSONResponse({"object": "list", "data": [_described(each) for each in models]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        found = [each for each in await self._list_models(caller_of(request)) if each.name == name]
        if not found:
            raise ApiError(404, f"there is no model {name!r}", "model_not_found", "model")
        return JSONResponse(_described(found[0]))


def _described(model: catalog_service_pb2.Model) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "darkroom"}


class Pictures:
    """What comes of a job: this API's events, and the finished pictures."""

    def __init__(self, call: InProcessCall, job: ParsedRequest) -> None:
        self._messages, self._job = call.messages(), job
        self._prefix = "image_edit" if job.edits else "image_generation"
        self._created = int(time.time())
        self._files: dict[int, bytearray] = {}
        self._images: dict[int, events_pb2.ImageEvent] = {}
        self._due: list[int] = []  # the steps after which partial images are sent
        self._partials: dict[int, int] = {}  # sent, by image
        self._size = ""

    async def begun(self) -> AsyncIterator[dict[str, Any]]:
        """The events, after the job has been accepted. :raises Aborted: it is refused"""
        accepted = (await anext(self._messages)).event.accepted
        count, steps = self._job.fields.partials, accepted.step_count
        self._due = [round(steps * (index + 1) / (count + 1)) for index in range(count)]
        width, height = accepted.parameters.width, accepted.parameters.height
        self._size = f"{width}x{height}" if width else "auto"  # of an edit, whose picture says it
        return self._events()

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        async for message in self._messages:
            event: events_pb2.JobEvent = message.event
            match event.WhichOneof("event"):
                case "preview":
                    for each in self._partial(event.preview):
                        yield each
                case "image":
                    index = event.image.image_index
                    self._images[index], self._files[index] = event.image, bytearray(event.image.image_bytes)
                    for each in self._completed(index):
                        yield each
                case "chunk" if event.chunk.WhichOneof("target") == "image_index":
                    self._files[event.chunk.image_index] += event.chunk.data
                    for each in self._completed(event.chunk.image_index):
                        yield each
                case "queued":
                    yield {}  # a sign of life

    def _partial(self, preview: events_pb2.PreviewEvent) -> list[dict[str, Any]]:
        sent = self._partials.get(preview.image_index, 0)
        if sent >= len(self._due) or preview.step < self._due[sent]:
            return []
        self._partials[preview.image_index] = sent + 1
        return [
            {
                "type": f"{self._prefix}.partial_image",
                "partial_image_index": sent,
                "b64_json": base64.b64encode(preview.image_bytes).decode(),
                **self._about(preview.image_index, preview.media_type),
                "size": self._size,
            }
        ]

    def _completed(self, index: int) -> list[dict[str, Any]]:
        """The event of a picture, if all of it has come."""
        image, file = self._images[index], self._files[index]
        if len(file) < image.total_bytes:
            return []
        return [
            {
                "type": f"{self._prefix}.completed",
                "b64_json": base64.b64encode(file).decode() if self._job.fields.stream else "",
                **self._about(index, image.media_type),
                "size": f"{image.width}x{image.height}",
                "seed": image.seed,
                "usage": USAGE,
            }
        ]

    def _about(self, index: int, media_type: str) -> dict[str, Any]:
        return {
            "image_index": index,
            "created_at": int(time.time()),
            "background": "opaque",
            "output_format": media_type.removeprefix("image/"),
            "quality": self._job.fields.quality or "auto",
        }

    def body(self) -> dict[str, Any]:
        """The answer with all pictures."""
        first = self._images[0]
        quality = self._job.fields.quality
        return {
            "created": self._created,
            "background": "opaque",
            "output_format": first.media_type.removeprefix("image/"),
            "size": f"{first.width}x{first.height}",
            **({"quality": quality} if quality in ("low", "medium", "high") else {}),
            "usage": USAGE,
            "data": [
                {"b64_json": base64.b64encode(self._files[index]).decode(), "seed": image.seed}
                for index, image in sorted(self._images.items())
            ],
        }


class EventStream(Response):
    """Server-sent events of a call. It ends the call, also when its client goes."""

    media_type = "text/event-stream"

    def __init__(self, call: InProcessCall, events: AsyncIterator[dict[str, Any]]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._call, self._events = call, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send(send))
        except ClientGone:
            pass
        finally:
            await self._call.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for event in self._events:
                await _send_event(send, event.get("type", ""), event)
        except Aborted as error:
            await _send_event(send, "error", from_status(error).body)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_event(send: Send, kind: str, data: dict[str, Any]) -> None:
    text = f"event: {kind}\ndata: {json.dumps(data)}\n\n" if kind else ": waiting\n\n"
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


class ClientGone(Exception):
    """The client has closed its connection."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes. The request must have been read.

    :raises ClientGone: it has gone
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def caller_of(request: Request) -> Caller:
    """Who calls."""
    client = request.client
    return Caller(
        request.headers.items(), grpc_peer(f"{client.host}:{client.port}" if client and client.host else None)
    )


def _limited(receive: Receive, max_bytes: int) -> Receive:
    """Receives a request of up to so many bytes. :raises ApiError: it has more"""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise ApiError(413, f"the request has more than {max_bytes:,} bytes", "request_too_large")
        return message

    return limited


def _answering_errors(
    endpoint: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def answering(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (ClientGone, ClientDisconnect):
            return Response(status_code=CLIENT_GONE)
        except Aborted as error:
            failure = from_status(error)
        except ApiError as error:
            failure = error.with_traceback(None)  # which has this frame
        except HTTPException as error:  # of the form's parser
            failure = ApiError(error.status_code, error.detail, "invalid_request")
        except Exception:
            log.exception("%s failed", request.url.path)
            failure = ApiError(500, "the server failed; its log says more", "internal")
        return JSONResponse(failure.body, failure.status, headers=failure.headers)

    return answering
