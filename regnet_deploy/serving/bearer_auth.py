"""The bearer token: who may ask for more than whether the server lives."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from regnet_deploy.errors import UsageError
from regnet_deploy.serving.protocol import dumps
from regnet_deploy.serving.responses import ClosingResponse

TOKEN_VARIABLE = "REGNET_DEPLOY_TOKEN"
_SHORTEST = 16

_HEALTH = ("/v2/health/live", "/v2/health/ready")


def read_token(path: str | None) -> str | None:
    """Return the token of a file, else of the environment's ``REGNET_DEPLOY_TOKEN``, else None.

    Raises:
        UsageError: the file cannot be read, or the token is shorter than 16 characters or not printable ASCII.
    """
    if path is not None:
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UsageError(f"the token's file {path} cannot be read: {reason}") from None
        where = f"in {path}"
    else:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        where = f"in {TOKEN_VARIABLE}"
        if TOKEN_VARIABLE not in os.environ:
            return None
    if len(token) < _SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"the token {where} must be {_SHORTEST} or more printable ASCII characters without spaces, "
            f"not {len(token)}: make one with `openssl rand -hex 32`"
        )
    return token


def is_bearer(header: bytes | None, token: str) -> bool:
    """Tell whether an ``Authorization`` header carries the token; takes as long whatever of it is right."""
    scheme, _, given = (header or b"").partition(b" ")
    return hmac.compare_digest(given.strip(), token.encode("ascii")) and scheme.lower() == b"bearer"


class BearerAuth:
    """An application that answers 401 to whoever does not show the token; health and the page are for everybody."""

    def __init__(self, app: ASGIApp, token: str, refused: Callable[[Scope], None] = lambda scope: None) -> None:
        """``refused`` is told of each request that is answered with 401."""
        self._app, self._token, self._refused = app, token, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have the application answer."""
        is_closed = scope["type"] == "http" and not _is_open(scope)
        if is_closed and not is_bearer(_first(scope, b"authorization"), self._token):
            self._refused(scope)
            await _UNAUTHORIZED(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    """Tell whether health is asked for, or the page, which is the same for everybody and asks for the token itself.

    What ``/`` answers to whoever does not take HTML says what is served.
    """
    path = scope["path"].removeprefix(scope.get("root_path", ""))  # of an application within another
    if scope["method"] not in ("GET", "HEAD"):
        return False
    return path in _HEALTH or (path == "/" and b"text/html" in (_first(scope, b"accept") or b""))


def _first(scope: Scope, header: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == header), None)


_UNAUTHORIZED = ClosingResponse(
    dumps({"error": "a bearer token is needed: Authorization: Bearer ..."}),
    401,
    {"www-authenticate": "Bearer"},
    media_type="application/json",
)
