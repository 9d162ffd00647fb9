"""Ray on this machine or on a cluster: how this process is connected to it, and how its errors become one line."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from regnet_deploy.errors import UsageError

#: Address that starts Ray on this machine.
LOCAL = "local"
#: How often Ray repeats what a process was doing that died.
RETRIES = 3
_CONNECT_TIMEOUT_S = 5.0
_START_ERRORS = (OSError, ValueError, RuntimeError)  # TimeoutError and ConnectionError are of OSError


@contextlib.contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """Connect to Ray while the context is open; a local Ray ends with this process, however it ends.

    Ray's dashboard is not started, because it executes the code that it receives. Usage reports are off. Nothing is
    printed to standard output meanwhile.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # by default unlimited
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the default of the next version of Ray
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"address": "local", "include_dashboard": False}
    else:
        _check_address(address)
        options |= {"address": address}
    try:
        ray.init(**options)
    except Exception as error:
        # Ray raises a plain Exception where it does not start in time.
        if type(error) is not Exception and not isinstance(error, (*_START_ERRORS, ray.exceptions.RayError)):
            raise
        ray.shutdown()
        reason = " ".join(str(error).split()) or type(error).__name__
        if address == LOCAL:
            raise UsageError(
                f"cannot start Ray on this machine: {reason:.300}; where the machine is busy, run the same command "
                "again, or without --ray"
            ) from None
        raise UsageError(
            f"cannot connect to Ray at {address}: {reason:.300}; check that it runs, and whether it requires a token "
            "(RAY_AUTH_MODE=token); --ray without an address starts Ray on this machine"
        ) from None
    try:
        # Ray prints what its servers say of a worker that died, and standard output is for results.
        with open(os.devnull, "w", encoding="utf-8") as discarded, contextlib.redirect_stdout(discarded):
            yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Check that a host and port accept connections: Ray itself retries for minutes and then ends the process.

    Raises:
        UsageError: the connection is refused. Addresses of other forms are not checked.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot connect to Ray at {address}: {reason}; --ray without an address starts Ray on this machine"
        ) from None


def error_line(error: BaseException) -> str:
    """Return the type and the text of an error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
