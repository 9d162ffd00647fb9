"""The server's application for a host of your own: another ASGI server, another application, or Ray Serve."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from regnet_deploy.serving.admission import ServerState
from regnet_deploy.serving.app import create_app
from regnet_deploy.serving.server_core import ServerCore


class Application:
    """An ASGI application with a lifespan, in which golden sets are replayed and processes start and end.

    A host that is a server runs the lifespan. One that is an application runs none but its own: give it
    :attr:`lifespan`, as in ``Starlette(lifespan=vision.lifespan, routes=[Mount("/vision", vision)])``.
    """

    def __init__(self, assembly: ServerCore, token: str | None) -> None:
        self._assembly = assembly
        self._app = create_app(assembly.service, token=token, metrics=assembly.metrics.scrape if token else None)

    @contextlib.asynccontextmanager
    async def lifespan(self, host: Any = None) -> AsyncIterator[None]:
        """Prove what is served, answer for as long as the context lasts, and end.

        Args:
            host: the application that this is the lifespan of; it is not looked at.

        Raises:
            ProofError: a golden set disagrees.
            RegnetDeployError: the decoders do not start.
        """
        try:
            await self._assembly.start()
            self._assembly.service.admission.state = ServerState.READY
            yield
        finally:
            self._assembly.service.admission.state = ServerState.DRAINING
            await self._assembly.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or live through the lifespan."""
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
    """Open what is at a path, for a host of your own; nothing of it is proved or answers yet.

    Args:
        path: a bundle, or a folder of models and versions.
        token: that clients must show; None where everybody may ask.
        settings: as :class:`Assembly` takes them.

    Raises:
        RegnetDeployError: nothing is there that can be served.
    """
    return Application(ServerCore(path, **settings), token)
