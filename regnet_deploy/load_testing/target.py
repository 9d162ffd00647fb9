"""The server under load: its address, requests to it as bytes, and single requests before the load."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from regnet_deploy.errors import ServerError, UsageError


@dataclass(frozen=True)
class Target:
    """The address of a server.

    Attributes:
        host: host name or IP address.
        port: TCP port.
        tls: whether to use HTTPS; the certificate is checked (``SSL_CERT_FILE`` names a certificate authority).
        prefix: start of every path, empty or such as ``/vision``.
        token: sent as ``Authorization: Bearer``, or None.
    """

    host: str
    port: int
    tls: bool = False
    prefix: str = ""
    token: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"

    @property
    def authority(self) -> str:
        """Host and port as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def context(self) -> ssl.SSLContext | None:
        """Return the TLS context for HTTPS, None for HTTP."""
        return ssl.create_default_context() if self.tls else None


def parse_target(url: str, token: str | None = None) -> Target:
    """Parse the base URL of a server.

    Raises:
        UsageError: it is not one.
    """
    invalid = UsageError(f"--url {url!r} is not the address of a server such as http://127.0.0.1:8000")
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError:
        raise invalid from None
    has_extra = parts.query or parts.fragment or parts.username is not None
    if parts.scheme not in ("http", "https") or not parts.hostname or has_extra or not url.isascii() or " " in url:
        raise invalid
    tls = parts.scheme == "https"
    return Target(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"), token)


def client_token(path: str | Path) -> str:
    """Return the bearer token in a file.

    Raises:
        UsageError: the file cannot be read or has no valid token.
    """
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UsageError(f"cannot read the token file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"the token file {path} must contain one token: a line of printable ASCII without spaces")
    return token


def post(target: Target, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Return a POST request, headers and body, as bytes to send."""
    fields = {"host": target.authority, **headers, "content-length": str(len(body))}
    if target.token:
        fields["authorization"] = f"Bearer {target.token}"
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {target.prefix}{path} HTTP/1.1\r\n{head}\r\n".encode("ascii") + body


def get(target: Target, path: str, timeout_s: float = 10.0) -> tuple[int, Any]:
    """Send a GET request and return the status and the JSON of the answer (None where it is not JSON).

    Raises:
        ServerError: there is no answer.
    """
    connection = http.client.HTTPConnection(target.host, target.port, timeout=timeout_s)
    if target.tls:
        connection = http.client.HTTPSConnection(target.host, target.port, timeout=timeout_s, context=target.context())
    headers = {"authorization": f"Bearer {target.token}"} if target.token else {}
    try:
        with contextlib.closing(connection):
            connection.request("GET", f"{target.prefix}{path}", headers=headers)
            answer = connection.getresponse()
            body = answer.read(10_000_000)
    except ssl.SSLCertVerificationError as error:
        raise ServerError(
            f"the certificate of {target.url} is not trusted ({error.verify_message}): set SSL_CERT_FILE to the "
            "certificate of the authority that signed it"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ServerError(
            f"no server answers at {target.url} ({reason}): start one with `regnet-deploy serve BUNDLE`, or give its "
            "--url"
        ) from None
    try:
        return answer.status, json.loads(body)
    except ValueError:
        return answer.status, None


def error_of(document: Any) -> str:
    """Return the error message of an answer in one line; empty where it has none."""
    text = document.get("error", "") if isinstance(document, dict) else ""
    return " ".join(str(text).split())[:300]
