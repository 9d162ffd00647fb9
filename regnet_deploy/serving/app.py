"""The ASGI application: routes, and every error as JSON that clients of the protocol understand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from regnet_deploy import __version__
from regnet_deploy.errors import DataError
from regnet_deploy.serving.admission import Admission, Place, State
from regnet_deploy.serving.body import Unread, read_body, unpack
from regnet_deploy.serving.closing import ClosingResponse
from regnet_deploy.serving.protocol import EXTENSIONS, HEADER_LENGTH, RequestError, dumps
from regnet_deploy.serving.served import Limits, Served

T = TypeVar("T")

SERVER = "regnet-deploy"
PLATFORM = "onnxruntime_onnx"

#: Threads that unpack, decode and convert while another one's inference runs.
WORKERS = 4


def create_app(served: Served, admission: Admission | None = None) -> ASGIApp:
    """Return an application that answers for one network; it can be mounted in another.

    Args:
        served: the network.
        admission: state of the server; by default ready at once, with the limit of ``served``.
    """
    endpoints = _Endpoints(served, admission or admission_for(served.limits))
    model = "/v2/models/{model}"
    routes = [
        Route("/", endpoints.welcome),
        Route("/classify", endpoints.classify, methods=["POST"]),
        Route("/v2", endpoints.server),
        Route("/v2/", endpoints.server),
        Route("/v2/health/live", endpoints.live),
        Route("/v2/health/ready", endpoints.ready),
    ]
    for path in (model, model + "/versions/{version}"):
        routes += [
            Route(path, endpoints.model),
            Route(path + "/ready", endpoints.model_ready),
            Route(path + "/infer", endpoints.infer, methods=["POST"]),
        ]
    handlers: dict[Any, Callable[[Request, Any], Any]] = {
        RequestError: _refused,
        Unread: _refused_unread,
        DataError: _not_an_image,
        HTTPException: _no_such_route,
        ClientDisconnect: _gone,
        Exception: _failed,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


def admission_for(limits: Limits, state: State = State.READY) -> Admission:
    """Return the state of a server with these limits and nobody inside."""
    return Admission(limits.max_in_flight, state, limits.max_bodies_bytes)


class _Endpoints:
    """The endpoints of one network."""

    def __init__(self, served: Served, admission: Admission) -> None:
        self._served = served
        self._admission = admission
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="serve")

    async def welcome(self, request: Request) -> Response:
        host, port = request.scope.get("server") or ("127.0.0.1", 8000)
        interface = self._served.interface
        path = f"/v2/models/{interface.model}"
        return _json(
            {
                "server": f"{SERVER} {__version__}",
                "model": interface.model,
                "variant": self._served.variant,
                "classes": len(interface.labels),
                "endpoints": {
                    "POST /classify?k=5": "bytes of an image file; answers with labels and probabilities",
                    f"POST {path}/infer": "tensors, Open Inference Protocol v2 (JSON or binary)",
                    f"GET {path}": "names, types and shapes of the tensors",
                    "GET /v2/health/ready": "200 when requests are answered",
                },
                "example": f"curl --data-binary @image.jpg http://{host}:{port}/classify",
            }
        )

    async def server(self, request: Request) -> Response:
        return _json({"name": SERVER, "version": __version__, "extensions": list(EXTENSIONS)})

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        return self._readiness({})

    async def model(self, request: Request) -> Response:
        self._find(request, 404)
        return _json(self._served.interface.metadata(PLATFORM))

    async def model_ready(self, request: Request) -> Response:
        self._find(request, 400)  # as Triton answers here
        return self._readiness({"name": self._served.interface.model})

    async def infer(self, request: Request) -> Response:
        self._find(request, 404)
        with self._admission.enter() as place:
            body = await self._body(request, place)
            header = request.headers.get(HEADER_LENGTH)
            content, headers = await self._work(self._infer, body, request.headers.get("content-encoding"), header)
        return Response(content, headers=headers)

    async def classify(self, request: Request) -> Response:
        k = request.query_params.get("k", "5")
        if not (k.isascii() and k.isdigit() and len(k) <= 9 and int(k) >= 1):
            raise RequestError(f"k must be a whole number above 0, not {k[:40]!r}")
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            raise RequestError("send the bytes of the image as the body (curl --data-binary @FILE), not a form", 415)
        with self._admission.enter() as place:
            body = await self._body(request, place)
            answer = await self._work(self._classify, body, request.headers.get("content-encoding"), int(k))
        return _json(answer)

    def _infer(self, body: bytes, encoding: str | None, header_length: str | None) -> tuple[bytes, dict[str, str]]:
        return self._served.infer(unpack(body, encoding, self._served.limits.max_body_bytes), header_length)

    def _classify(self, body: bytes, encoding: str | None, k: int) -> dict[str, Any]:
        return self._served.classify(unpack(body, encoding, self._served.limits.max_body_bytes), k)

    async def _body(self, request: Request, place: Place) -> bytes:
        limits = self._served.limits
        return await read_body(request, place, limits.max_body_bytes, limits.read_timeout_s)

    async def _work(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what takes time off the event loop, which goes on answering probes."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, partial(function, *arguments))

    def _find(self, request: Request, status: int) -> None:
        interface = self._served.interface
        model, version = request.path_params["model"], request.path_params.get("version", interface.version)
        if model != interface.model:
            raise RequestError(f"unknown model {model[:80]!r}; this server has {interface.model}", status)
        if version != interface.version:
            raise RequestError(f"unknown version {version[:80]!r}; {model} has version {interface.version}", status)

    def _readiness(self, body: dict[str, Any]) -> Response:
        state = self._admission.state
        if state is State.READY:
            return _json({**body, "ready": True})
        return _json({**body, "ready": False, "error": state.value}, 503)


def _json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dumps(data), status, headers, media_type="application/json")


async def _refused(request: Request, error: RequestError) -> Response:
    return _json({"error": str(error)}, error.status, _retry(error))


async def _refused_unread(request: Request, error: Unread) -> Response:
    content, headers = dumps({"error": str(error)}), _retry(error)
    if error.status in (413, 503):  # the client is still sending
        return ClosingResponse(content, error.status, headers, media_type="application/json")
    return Response(content, error.status, {"connection": "close"}, media_type="application/json")


def _retry(error: RequestError) -> dict[str, str]:
    return {"retry-after": "1"} if error.status == 503 else {}


async def _not_an_image(request: Request, error: DataError) -> Response:
    return _json({"error": str(error)}, 400)


async def _no_such_route(request: Request, error: HTTPException) -> Response:
    where = f"{request.method[:20]} {request.scope['path'][:80]}"
    message = f"{where}: {error.detail}; GET / says what there is"
    return _json({"error": message}, error.status_code, dict(error.headers or {}))


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _failed(request: Request, error: Exception) -> Response:
    return _json({"error": "internal error; the server's log has the details"}, 500)
