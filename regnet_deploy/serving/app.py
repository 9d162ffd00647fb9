"""The ASGI application: routes, and errors as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from regnet_deploy import __version__
from regnet_deploy.serving.admission import Admission, ServerState
from regnet_deploy.serving.bearer_auth import BearerAuth
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.inference_endpoints import ClassifyEndpoint, InferEndpoint, error_response, read_query
from regnet_deploy.serving.model_version import ModelVersion
from regnet_deploy.serving.protocol import EXTENSIONS, HEADER_LENGTH, dumps
from regnet_deploy.serving.request_body import Body, UnreadBody, read_body, unpack
from regnet_deploy.serving.request_log import request_id_of
from regnet_deploy.serving.service import CLIENT_GONE, Call, Service, request_error_of
from regnet_deploy.serving.web_page import render_page

SERVER = "regnet-deploy"

#: Bytes of a repository index request, which has one flag.
_INDEX_BYTES = 64 * 2**10

#: Renders metrics: the ``Accept`` header to bytes and their Content-Type.
RenderMetrics = Callable[[str], Awaitable[tuple[bytes, str]]]


def create_app(service: Service, *, token: str | None = None, metrics: RenderMetrics | None = None) -> ASGIApp:
    """Return an application that answers for a service.

    Args:
        service: answers the requests; its owner starts and stops it.
        token: bearer token that clients must send; None: requests need none.
        metrics: renders ``GET /metrics``; None: there is no such route.

    Raises:
        UsageError: the token is shorter than 16 characters, or not printable ASCII without spaces.
    """
    endpoints = _Endpoints(service, metrics)
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    infer = InferEndpoint(service)
    routes = [
        Route(model + "/infer", infer, methods=["POST"]),
        Route(version + "/infer", infer, methods=["POST"]),
        Route("/classify", ClassifyEndpoint(service), methods=["POST"]),
        Route("/", endpoints.welcome),
        Route("/card", endpoints.card),
        Route("/v2", endpoints.server),
        Route("/v2/", endpoints.server),
        Route("/v2/health/live", endpoints.live),
        Route("/v2/health/ready", endpoints.ready),
        Route("/v2/models/stats", endpoints.all_stats),
        Route("/v2/repository/index", endpoints.index, methods=["POST"]),
        Route("/v2/repository/models/{model}/load", endpoints.model_control, methods=["POST"]),
        Route("/v2/repository/models/{model}/unload", endpoints.model_control, methods=["POST"]),
    ]
    for path in (model, version):
        routes += [
            Route(path, endpoints.model),
            Route(path + "/ready", endpoints.model_ready),
            Route(path + "/config", endpoints.config),
            Route(path + "/stats", endpoints.stats),
        ]
    if metrics is not None:
        routes.append(Route("/metrics", endpoints.metrics))
    handlers: dict[Any, Callable[[Request, Any], Any]] = {
        RequestError: _handle_request_error,
        HTTPException: _handle_http_exception,
        ClientDisconnect: _handle_disconnect,
        Exception: _handle_exception,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    guarded: ASGIApp = _InferRouter(infer, app)
    if token is not None:
        guarded = BearerAuth(guarded, token, partial(_record_refused, service, 401, "a bearer token is needed"))
    return _SingleHeaders(guarded, partial(_record_refused, service, 400))


def _record_refused(service: Service, status: int, error: str, scope: Scope) -> None:
    """Record an infer or classify request that is refused for its headers."""
    if scope["method"] == "POST":
        given = dict(scope["headers"]).get(b"x-request-id")
        call = Call("http", "classify" if scope["path"].endswith("/classify") else "infer", request_id_of(given))
        service.finish(call, status, error)


#: Headers of which a request has one: they decide who is let in, where a body ends and what its bytes are.
_SINGLE_HEADERS = frozenset(
    (
        *(b"host", b"authorization", b"content-length", b"transfer-encoding", b"content-type", b"content-encoding"),
        *(HEADER_LENGTH.lower().encode("ascii"), b"x-request-id", b"traceparent"),
    )
)


class _SingleHeaders:
    """Refuses requests with two values of a header of which there is one: a proxy may have checked the other one."""

    def __init__(self, app: ASGIApp, on_refused: Callable[[str, Scope], None]) -> None:
        """Wrap an application; ``on_refused`` is called with the error of each request that is refused."""
        self._app, self._on_refused = app, on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] == "http":
            seen: dict[bytes, bytes] = {}
            for name, value in scope["headers"]:
                if name in _SINGLE_HEADERS and seen.setdefault(name, value) != value:
                    error = f"the request has the header {name.decode('ascii')} twice, with two values"
                    self._on_refused(error, scope)
                    await error_response(UnreadBody(error))(scope, receive, send)
                    return
        await self._app(scope, receive, send)


_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


class _InferRouter:
    """Routes infer requests, which are nearly all, before Starlette's router compares all its routes."""

    def __init__(self, infer: ASGIApp, rest: ASGIApp) -> None:
        self._infer, self._rest = infer, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and b"%2f" in scope.get("raw_path", b"").lower():
            # A proxy that does not decode the slash would apply the wrong path rules.
            await error_response(RequestError("the path has an encoded slash, which no model name has", 404))(
                scope, receive, send
            )
            return
        if scope["type"] == "http" and scope["method"] == "POST":
            found = _INFER.fullmatch(scope["path"].removeprefix(scope.get("root_path", "")))
            if found is not None:
                scope["path_params"] = {"model": found[1], "version": found[2]}
                await self._infer(scope, receive, send)
                return
        await self._rest(scope, receive, send)


class _Endpoints:
    """The endpoints that carry no images."""

    def __init__(self, service: Service, metrics: RenderMetrics | None) -> None:
        self._service, self._models, self._metrics = service, service.models, metrics
        self._index_limits = replace(service.limits, max_body_bytes=_INDEX_BYTES)
        self._page = render_page()

    async def welcome(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return Response(*_page(self._page))
        read_query(request.scope)
        url = f"{request.url.scheme}://{request.url.netloc}{request.scope.get('root_path', '')}"
        name = next((model.name for model in self._models.all()), "MODEL")
        path = f"/v2/models/{name}"
        return _json(
            {
                "server": f"{SERVER} {__version__}",
                "models": [_summary(model) for model in self._models.all()],
                "endpoints": {
                    "POST /classify?k=5": "bytes of an image file, or a form of several; answers with labels",
                    f"POST {path}/infer": "tensors, Open Inference Protocol v2 (JSON or binary)",
                    f"GET {path}": "names, types and shapes of the tensors; /config and /stats say more",
                    "GET /v2/health/ready": "200 when requests are answered",
                    "GET /": "for a browser: a page to drop images on",
                },
                "example": f"curl --data-binary @image.jpg {url}/classify",
            },
            headers={"vary": "accept"},
        )

    async def card(self, request: Request) -> Response:
        read_query(request.scope)
        newest = {name: self._models.get(name) for name in self._models.names() if self._models.versions(name)}
        cards = [
            {
                **model.card,
                "name": model.name,
                "version": model.version,
                "default": newest[model.name] is model,
                "runtime": model.session.runtime,
                "device": model.session.device,
            }
            for model in self._models.all()
        ]
        return _json({"server": f"{SERVER} {__version__}", "models": cards})

    async def server(self, request: Request) -> Response:
        return _json({"name": SERVER, "version": __version__, "extensions": list(EXTENSIONS)})

    async def live(self, request: Request) -> Response:
        hung = self._models.hung()
        return _json({"live": False, "error": "; ".join(hung)}, 503) if hung else _json({"live": True})

    async def ready(self, request: Request) -> Response:
        return self._readiness({}, self._models.unready_reason())

    async def model(self, request: Request) -> Response:
        model = self._find(request)
        return _json(model.metadata(self._models.versions(model.name)))

    async def model_ready(self, request: Request) -> Response:
        model = self._find(request, 400)  # as Triton answers here
        return self._readiness({"name": model.name}, None)

    async def config(self, request: Request) -> Response:
        return _json(self._find(request).config())

    async def stats(self, request: Request) -> Response:
        model = self._find(request)
        if "version" in request.path_params:
            return _json({"model_stats": [model.stats()]})
        return _json({"model_stats": [one.stats() for one in self._models.all() if one.name == model.name]})

    async def all_stats(self, request: Request) -> Response:
        return _json({"model_stats": [model.stats() for model in self._models.all()]})

    async def index(self, request: Request) -> Response:
        with Admission(1, max_bytes=_INDEX_BYTES).enter() as slot:  # answered by a server that is full or starting, too
            declared = request.headers.get("content-length")
            body = await read_body(request.scope, declared, request.receive, slot, self._index_limits)
        ready = _only_ready(unpack(body, request.headers.get("content-encoding"), _INDEX_BYTES))
        return _json([entry for entry in self._models.index() if not ready or entry["state"] == "READY"])

    async def model_control(self, request: Request) -> Response:
        raise RequestError(
            "explicit model load / unload is not allowed: models are loaded from their folder, not by requests", 503
        )

    async def metrics(self, request: Request) -> Response:
        assert self._metrics is not None
        content, kind = await self._metrics(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": kind})

    def _find(self, request: Request, status: int = 404) -> ModelVersion:
        return self._models.get(request.path_params["model"], request.path_params.get("version"), status)

    def _readiness(self, body: dict[str, Any], reason: str | None) -> Response:
        state = self._service.admission.state
        if state is not ServerState.READY:
            reason = state.value
        if reason is not None:
            return _json({**body, "ready": False, "error": reason}, 503)
        return _json({**body, "ready": True})


def _page(rendered: tuple[bytes, dict[str, str]]) -> tuple[bytes, int, dict[str, str]]:
    content, headers = rendered
    return content, 200, headers


def _summary(model: ModelVersion) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "variant": model.variant,
        "runtime": model.session.runtime,
        "device": model.session.device,
        "classes": len(model.interface.labels),
    }


def _json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dumps(data), status, headers, media_type="application/json")


def _only_ready(body: Body) -> bool:
    """Parse an index request: ``{"ready": true}`` leaves out versions that do not answer."""
    text = bytes(body)
    if not text.strip():
        return False
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("the request is not JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("ready", False), bool):
        raise RequestError('the request must be a JSON object, {"ready": true} or {"ready": false}')
    return bool(document.get("ready", False))


async def _handle_request_error(request: Request, error: RequestError) -> Response:
    return error_response(error)


async def _handle_disconnect(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _handle_http_exception(request: Request, error: HTTPException) -> Response:
    where = f"{request.method[:20]} {request.scope['path'][:80]}"
    message = f"{where}: {error.detail}; GET / lists the endpoints"
    return _json({"error": message}, error.status_code, dict(error.headers or {}))


async def _handle_exception(request: Request, error: Exception) -> Response:
    return error_response(request_error_of(error))
