"""Fits the connections of a server to the files that its process may open: each connection is one."""

from __future__ import annotations

import bisect
import os
import resource
from dataclasses import dataclass

from regnet_deploy.errors import ServerError
from regnet_deploy.serving.connection_limits import ConnectionLimits

#: Files of a running server beside its connections: event loops, models that are opened, the log.
_RESERVE = 20
#: Open files of a process that has just started, where the system does not tell them.
_OPEN_AT_START = 16
#: Files of each process that decodes images.
_PER_DECODER = 3
#: Files of gRPC beside its connections.
_GRPC_RESERVE = 16


@dataclass(frozen=True)
class FittedConnections:
    """How many connections fit.

    Attributes:
        connections: that may be open, of HTTP and of gRPC each.
        open_files: that the process may have; None: any number.
        needed: files for as many connections as are wanted.
    """

    connections: int
    open_files: int | None
    needed: int


def fit_connections(
    wanted: int, *, decoders: int, grpc: bool, tls: bool, others: int = 0, may_raise: bool = False
) -> FittedConnections:
    """Return how many connections fit into the files that the process may open.

    Args:
        wanted: connections that may be open, of HTTP and of gRPC each.
        decoders: processes that decode images.
        grpc: gRPC is served.
        tls: HTTP is served over TLS.
        others: files of other listening sockets.
        may_raise: raise the soft limit of the process as far as needed and allowed. Child processes inherit it.

    Raises:
        ServerError: not a single connection fits.
    """
    fixed = _open_now() + _RESERVE + decoders * _PER_DECODER + others + (_GRPC_RESERVE if grpc else 0)

    def files(connections: int) -> int:
        http = ConnectionLimits(connections, 1.0).max_open(tls=tls)
        return fixed + http + (connections if grpc else 0)

    needed = files(wanted)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if may_raise and soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return FittedConnections(wanted, None, needed)
    if files(1) > soft:
        raise ServerError(
            f"the process may open {soft} files, too few for a server, which needs {needed} for {wanted} connections "
            f"and {files(1)} at least: raise the limit (`ulimit -n {needed}`, LimitNOFILE of systemd)"
        )
    # Of 1 to the number that is wanted, those that fit come first.
    fitting = bisect.bisect_right(range(1, wanted + 1), soft, key=files)
    return FittedConnections(fitting, soft, needed)


def _open_now() -> int:
    try:
        return len(os.listdir("/dev/fd"))  # a link to /proc/self/fd on Linux
    except OSError:  # for example in a chroot without /proc
        return _OPEN_AT_START
