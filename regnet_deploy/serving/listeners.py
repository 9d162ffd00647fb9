"""The sockets on which a server listens."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from regnet_deploy.errors import ServerError, UsageError

_ALL_IPV4, _ALL = "0.0.0.0", "::"

#: Errors of a socket on a machine without IPv6.
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT, errno.ENOPROTOOPT)


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
        host: name or address; 0.0.0.0 and :: are every address of this machine, of IPv4 and IPv6.
        port: 0 takes a free one.
        option: command-line option of the port, which error messages name.

    Raises:
        ServerError: the address is in use, not of this machine, or not allowed.
    """
    if not host:  # the system would take it for every address
        raise ServerError("cannot listen on an empty host: 127.0.0.1 is this machine alone, 0.0.0.0 every address")
    try:
        if host != _ALL_IPV4:
            return _bind(host, port)
        try:  # as gRPC understands it: every address, those of IPv6 as well
            return _bind(_ALL, port)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
            return _bind(host, port)
    except OSError as error:
        raise ServerError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host and {option}, "
            f"{option} 0 takes a free one"
        ) from None


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address[0] == _ALL:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(address)
        bound.listen(1)  # says now, not later, that another server listens here
    except OSError:
        bound.close()
        raise
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
    """Return the base URL of a bound socket; one that is bound to every address has the host 0.0.0.0."""
    host, port = bound.getsockname()[:2]
    if host == _ALL:
        host = _ALL_IPV4
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach an address."""
    return ipaddress.ip_address(address.split("%")[0]).is_loopback


def shut_down_listeners(port: int) -> None:
    """Have the listening sockets of this process on a port refuse connections, also those of libraries (Linux)."""
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            one = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # closed meanwhile
            continue
        with one:
            is_ip = one.family in (socket.AF_INET, socket.AF_INET6)
            if is_ip and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and one.getsockname()[1] == port:
                one.shutdown(socket.SHUT_RD)
