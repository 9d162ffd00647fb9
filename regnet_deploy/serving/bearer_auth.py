"""Authentication by a bearer token."""

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
_MIN_LENGTH = 16

_HEALTH = ("/v2/health/live", "/v2/health/ready")


def read_token(path: str | None) -> str | None:
    """Return the token of a file, else of the environment's ``REGNET_DEPLOY_TOKEN``, else None.

    Raises:
        UsageError: the file cannot be read; or see :func:`check_token`.
    """
    if path is not None:
        try:
            token = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UsageError(f"the token's file {path} cannot be read: {reason}") from None
        where = f"in {path}"
    else:
        if TOKEN_VARIABLE not in os.environ:
            return None
        token = os.environ[TOKEN_VARIABLE]
        where = f"in {TOKEN_VARIABLE}"
    return check_token(token, f"the token {where}")


def check_token(token: str, name: str = "the token") -> str:
    """Return a token without the space around it, such as a line end, if clients can send it and nobody can guess it.

    Args:
        token: bearer token.
        name: what the error message calls it; the token itself is secret.

    Raises:
        UsageError: it is shorter than 16 characters, or not printable ASCII without spaces.
    """
    plain = token.strip() if isinstance(token, str) else ""
    allowed = sum(character.isascii() and character.isprintable() and character != " " for character in plain)
    if len(plain) < _MIN_LENGTH or allowed < len(plain):
        found = f"{len(plain)} characters" if isinstance(token, str) else f"a {type(token).__name__}"
        if allowed < len(plain):
            found += f", {len(plain) - allowed} of which are others"
        raise UsageError(
            f"{name} must be {_MIN_LENGTH} or more printable ASCII characters without spaces, not {found}: make one "
            "with `openssl rand -hex 32`"
        )
    return plain


def is_bearer(header: bytes | None, token: str) -> bool:
    """Return whether an ``Authorization`` header has a token that :func:`check_token` returned; in constant time."""
    scheme, _, given = (header or b"").partition(b" ")
    return hmac.compare_digest(given.strip(), token.encode("ascii")) and scheme.lower() == b"bearer"


class BearerAuth:
    """An ASGI application that answers 401 to requests without the token, except for health and the page."""

    def __init__(self, app: ASGIApp, token: str, on_refused: Callable[[Scope], None] = lambda scope: None) -> None:
        """Wrap an application; ``on_refused`` is called for each request that gets 401.

        Raises:
            UsageError: see :func:`check_token`.
        """
        self._app, self._token, self._on_refused = app, check_token(token), on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        needs_token = scope["type"] == "http" and not _is_public(scope)
        if needs_token and not is_bearer(_first(scope, b"authorization"), self._token):
            self._on_refused(scope)
            await _UNAUTHORIZED(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_public(scope: Scope) -> bool:
    """Return whether a request is for health, or for the page, which is static and asks its user for the token.

    What ``/`` answers to clients that do not accept HTML names the models, so it needs the token.
    """
    path = scope["path"].removeprefix(scope.get("root_path", ""))  # of a mounted application
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
