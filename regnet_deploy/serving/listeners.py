"""The sockets on which a server listens."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from regnet_deploy.errors import ServerError, UsageError


@dataclass(frozen=True)
class Listeners:
    """Where a server listens, and what it asks of clients.

    Attributes:
        http: bound socket.
        grpc: host and port for gRPC; None: no gRPC.
        metrics: bound socket for metrics only; None: metrics are served on ``http`` where ``metrics_at_http`` is set.
        metrics_at_http: answer ``GET /metrics`` on ``http``.
        token: bearer token that clients must send; None: requests need none.
        tls: files of the certificate chain and its private key (PEM); None: no TLS.
    """

    http: socket.socket
    grpc: tuple[str, int] | None = None
    metrics: socket.socket | None = None
    metrics_at_http: bool = False
    token: str | None = None
    tls: tuple[Path, Path] | None = None


def bind(host: str, port: int, option: str = "--port") -> socket.socket:
    """Return a socket bound to a host and port.

    Args:
        host: name or address.
        port: 0 takes a free one.
        option: command-line option of the port, which error messages name.

    Raises:
        ServerError: the address is in use, not of this machine, or not allowed.
    """
    if not host:  # the system would take it for every address
        raise ServerError("cannot listen on an empty host: 127.0.0.1 is this machine alone, 0.0.0.0 every address")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(1)  # says now, not later, that another server listens here
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ServerError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host and {option}, "
            f"{option} 0 takes a free one"
        ) from None
    return bound


def check_tls(certificate: Path, key: Path) -> None:
    """Check that files can be used for TLS, by loading them.

    Raises:
        UsageError: a file cannot be read, or they are not a certificate chain and its private key.
    """
    try:
        # Without a password, the library would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except OSError as error:  # SSLError is one
        reason = error.strerror if not isinstance(error, ssl.SSLError) else (error.reason or "not PEM")
        raise UsageError(f"the TLS certificate {certificate} and the key {key} cannot be used: {reason}") from None


def url_of(bound: socket.socket, scheme: str = "http") -> str:
    """Return the base URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach an address."""
    return ipaddress.ip_address(address.split("%")[0]).is_loopback
