"""Serves ``GET /metrics`` on a port of its own, on the event loop of the main server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from regnet_deploy.serving.connection_limits import ConnectionLimits
from regnet_deploy.serving.limited_server import LimitedServer, ServerConfig
from regnet_deploy.serving.metrics import Metrics
from regnet_deploy.serving.protocol import dumps

#: Few programs read metrics.
LIMITS = ConnectionLimits(max_connections=32, timeout_s=10.0)

#: Seconds for which an idle connection is kept; Prometheus scrapes every 15 to 60 s.
KEEP_ALIVE_S = 75


def create_metrics_app(metrics: Metrics) -> ASGIApp:
    """Return an application that answers ``GET /metrics``."""

    async def read(request: Request) -> Response:
        content, content_type = await metrics.scrape(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type})

    async def refuse(request: Request, error: HTTPException) -> Response:
        message = f"{request.method[:20]} {request.scope['path'][:80]}: {error.detail}; GET /metrics is all there is"
        return _json(message, error.status_code, dict(error.headers or {}))

    async def fail(request: Request, error: Exception) -> Response:
        return _json("internal error; the server's log has the details", 500, {})

    handlers: dict[Any, Any] = {HTTPException: refuse, Exception: fail}
    app = Starlette(routes=[Route("/metrics", read)], exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


class MetricsServer:
    """A running metrics server."""

    def __init__(self, server: uvicorn.Server, task: asyncio.Task[None]) -> None:
        self._server = server
        self._task = task

    async def stop(self) -> None:
        """Close the socket and all connections; a scrape in progress has one second to end."""
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


async def start_metrics(metrics: Metrics, bound: socket.socket) -> MetricsServer:
    """Answer ``GET /metrics`` on a socket, from now until :meth:`MetricsServer.stop`.

    Args:
        metrics: what is answered.
        bound: as :func:`regnet_deploy.serving.listeners.bind` returns it; it is closed at the end.
    """
    config = ServerConfig(
        create_metrics_app(metrics),
        http="httptools",
        lifespan="off",
        ws="none",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    server = _MetricsServer(config, LIMITS)
    task = asyncio.get_running_loop().create_task(server.serve(sockets=[bound]))
    while not server.started and not task.done():
        await asyncio.sleep(0)
    if task.done():
        task.result()  # raises what went wrong
    return MetricsServer(server, task)


class _MetricsServer(LimitedServer):
    """A server that leaves signals to the main server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield


def _json(error: str, status: int, headers: dict[str, str]) -> Response:
    return Response(dumps({"error": error}), status, headers, media_type="application/json")
