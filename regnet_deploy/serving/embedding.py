"""The server's application for a host of your own: another ASGI server, or Ray Serve."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from regnet_deploy.serving.admission import State
from regnet_deploy.serving.app import create_app
from regnet_deploy.serving.assembly import Assembly


def create_application(path: str | Path, *, token: str | None = None, **settings: Any) -> ASGIApp:
    """Return an ASGI application with a lifespan, in which the golden set is replayed and processes start and end.

    Args:
        path: a bundle, or a folder of models and versions.
        token: that clients must show; None where everybody may ask.
        settings: as :class:`Assembly` takes them.

    Raises:
        RegnetDeployError: nothing is there that can be served.
    """
    assembly = Assembly(path, **settings)
    app = create_app(assembly.service, token=token, metrics=assembly.metrics.scrape if token else None)

    @contextlib.asynccontextmanager
    async def life() -> AsyncIterator[None]:
        try:
            await assembly.start()
            assembly.service.admission.state = State.READY
            yield
        finally:
            assembly.service.admission.state = State.DRAINING
            await assembly.stop()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        await receive()
        phase = "startup"
        try:
            async with life():
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except Exception as error:
            await send({"type": f"lifespan.{phase}.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.shutdown.complete"})

    return application
