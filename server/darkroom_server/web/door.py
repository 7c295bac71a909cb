"""HTTP's door: uvicorn in this process and on its event loop, with Connect, gRPC-Web and the OpenAI images API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Mount

from darkroom_server.api.door import SERVICES, receive_bytes
from darkroom_server.api.listening import Listener
from darkroom_server.api.reflection import SERVICE as REFLECTION
from darkroom_server.config.address import TcpAddress, parse_address
from darkroom_server.web.connect import ConnectDoor
from darkroom_server.web.images_api import ImagesApi
from darkroom_server.web.images_masks import Masks
from darkroom_server.web.sockets import Sockets
from darkroom_server.web.tls import server_context

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from darkroom_server.api.in_process import InProcessCalls
    from darkroom_server.config.settings import Settings
    from darkroom_server.pictures.uploads import Uploads
    from darkroom_server.web.images_masks import Read

CLOSE_SECONDS = 1  # for answers that are on their way
EXPOSED = ("Grpc-Status", "Grpc-Message", "Grpc-Status-Details-Bin", "Retry-After")  # headers that scripts may read
MAX_AGE = 7200  # seconds: as long as browsers keep a preflight's answer


class HttpDoor:
    """Opened with gRPC's door: until there is something to serve, calls are refused with STARTING."""

    def __init__(self, settings: Settings, calls: InProcessCalls) -> None:
        assert settings.http is not None
        self._listener, self._sockets = Listener(settings.http), Sockets()
        max_bytes = receive_bytes(settings.limits)
        self._images = ImagesApi(calls, max_bytes)
        services = (*SERVICES, health.SERVICE_NAME, REFLECTION, reflection.SERVICE_NAME)
        connect = ConnectDoor(services, calls, max_bytes)
        app = Starlette(
            routes=[*self._images.routes, *(Mount(f"/{service}", connect) for service in services)],
            middleware=[
                Middleware(
                    CORSMiddleware,
                    allow_origins=settings.cors_origins,
                    allow_methods=["GET", "POST"],
                    allow_headers=["*"],
                    expose_headers=EXPOSED,
                    max_age=MAX_AGE,
                ),
                Middleware(OriginCheck, origins=settings.cors_origins),
                Middleware(NoHttp2),
            ],
            exception_handlers={404: _nothing_here, 405: _nothing_here},
        )
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=CLOSE_SECONDS,
            ssl_context_factory=_tls(settings),
        )
        self._encrypted = config.is_ssl
        self._server = Uvicorn(config)
        self._serving: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens, with the port that was found for port 0."""
        return self._listener.address

    @property
    def url(self) -> str:
        """The same for those who are to read it: ``https://127.0.0.1:8080``, ``unix:PATH``."""
        scheme = "https://" if self._encrypted else "http://"
        return self.address if self.address.startswith("unix") else scheme + self.address

    async def open(self) -> None:
        """Bind to the address, and answer.

        :raises CannotListen: with the system's reason
        """
        await self._listener.bind(self._sockets)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # it tells that it starts and stops, as we do
        self._serving = asyncio.create_task(self._server.serve(self._sockets.found))

    def serve(self, read: Read, uploads: Uploads) -> None:
        """Called when the services are there, with what decodes masks of the OpenAI images API: `JobManager.read`."""
        self._images.masks = Masks(read, uploads)

    async def close(self) -> None:
        """Take no more calls, give running ones a second to end, and let go of the address."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        self._sockets.close()
        self._listener.close()


class Uvicorn(uvicorn.Server):
    """A server in a process that has its own signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class OriginCheck:
    """Refuses requests of web pages that are not among `cors_origins`.

    Browsers let any page send simple requests, such as forms, to any server, and only keep the answer from it: without
    this, each page that one visits could have a server on one's own machine make pictures.
    """

    def __init__(self, app: ASGIApp, origins: list[str]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = _header(scope, b"origin")
        if not origin or "*" in self._origins or origin in self._origins:
            await self._app(scope, receive, send)
            return
        refusal = {"code": "permission_denied", "message": "pages of this origin are not among cors_origins"}
        await JSONResponse(refusal, 403)(scope, receive, send)


class NoHttp2:
    """Refuses gRPC itself, which wants HTTP/2."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = _header(scope, b"content-type")
        if kind == "application/grpc" or kind.startswith("application/grpc+"):
            words = "this port takes Connect and gRPC-Web; gRPC has a port of its own"
            await JSONResponse({"code": "unimplemented", "message": words}, 415)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _tls(settings: Settings) -> Callable[[Any, Any], ssl.SSLContext] | None:
    """What uvicorn calls for its TLS; None without, as on unix sockets.

    :raises TlsError: a file cannot be used
    """
    if settings.tls is None or not isinstance(parse_address(settings.http or ""), TcpAddress):
        return None
    context = server_context(settings.tls)
    return lambda config, default: context


def _header(scope: Scope, name: bytes) -> str:
    found = (value for key, value in scope.get("headers", ()) if key == name)
    return str(next(found, b"").decode("latin-1"))


async def _nothing_here(request: Request, error: Exception) -> JSONResponse:
    status: Any = getattr(error, "status_code", 404)
    words = f"there is nothing for {request.method} at {request.url.path}"
    error_body = {"message": words, "type": "invalid_request_error", "param": None, "code": "unknown_url"}
    return JSONResponse({"error": error_body, "code": "unimplemented", "message": words}, status)
