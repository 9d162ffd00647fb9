"""The server as an ASGI application, for another ASGI server, another application, or Ray Serve."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from regnet_deploy.serving.admission import ServerState
from regnet_deploy.serving.app import create_app
from regnet_deploy.serving.bearer_auth import check_token
from regnet_deploy.serving.core_settings import CoreSettings
from regnet_deploy.serving.server_core import ServerCore


class Application:
    """An ASGI application whose lifespan replays golden sets and starts and stops processes.

    An ASGI server runs the lifespan. An application that mounts this one does not: pass it :attr:`lifespan`, as in
    ``Starlette(lifespan=vision.lifespan, routes=[Mount("/vision", vision)])``.
    """

    def __init__(self, core: ServerCore, token: str | None) -> None:
        self._core = core
        self._app = create_app(core.service, token=token, metrics=core.metrics.scrape if token else None)

    @contextlib.asynccontextmanager
    async def lifespan(self, host: Any = None) -> AsyncIterator[None]:
        """Replay the golden sets, answer requests while the context lasts, then stop.

        Args:
            host: the application whose lifespan this is; not used.

        Raises:
            ProofError: a golden set disagrees.
            RegnetDeployError: the decoders do not start.
        """
        try:
            await self._core.start()
            self._core.service.admission.state = ServerState.READY
            yield
        finally:
            self._core.service.admission.state = ServerState.DRAINING
            await self._core.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or run the lifespan."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await receive()
        phase = "startup"
        try:
            async with self.lifespan():
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except Exception as error:
            await send({"type": f"lifespan.{phase}.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.shutdown.complete"})


def create_application(path: str | Path, *, token: str | None = None, **settings: Any) -> Application:
    """Open what is at a path as an ASGI application; its lifespan proves and serves it.

    Args:
        path: a bundle, or a folder of models and versions.
        token: bearer token that clients must send; None: requests need none. For that of the environment or of a file,
            pass what :func:`~regnet_deploy.serving.bearer_auth.read_token` returns.
        settings: keyword arguments of :class:`~regnet_deploy.serving.core_settings.CoreSettings`.

    Raises:
        UsageError: the token is shorter than 16 characters, or not printable ASCII without spaces.
        RegnetDeployError: nothing is there that can be served.
    """
    token = None if token is None else check_token(token)
    return Application(ServerCore(path, CoreSettings(**settings)), token)
