"""``python -m regnet_deploy.serving.probe``: exits with 0 if the server of this container is ready, else with 1.

It runs every few seconds, so it imports almost nothing. With ``--stop-hung`` it asks for liveness as well, and where
the server reports that it hangs, it sends SIGTERM to the container's first process; the restart policy does the rest.
"""

from __future__ import annotations

import http.client
import os
import signal
import sys
from collections.abc import Sequence

READY, LIVE = "/v2/health/ready", "/v2/health/live"
STOP_HUNG = "--stop-hung"
#: Environment variable of the port, and the default of ``serve``.
PORT_VARIABLE, DEFAULT_PORT = "REGNET_DEPLOY_PORT", "8000"
#: Seconds for one attempt: two fit into the five seconds of a health check.
_TIMEOUT_S = 2.0


def main(words: Sequence[str], server_process: int = 1) -> int:
    """Return 0 if the server is ready; else print the reason to stderr and return 1.

    Args:
        words: arguments of the command line: none or :data:`STOP_HUNG`.
        server_process: gets SIGTERM where the server hangs; a container's first process has pid 1.
    """
    if list(words) not in ([], [STOP_HUNG]):
        return _failed(f"unknown arguments {' '.join(words)!r}: the only one is {STOP_HUNG}")
    named = os.environ.get(PORT_VARIABLE, DEFAULT_PORT)
    if not named.isdecimal() or not 0 < int(named) < 65536:
        return _failed(f"{PORT_VARIABLE} is {named!r}, which is not a port number")
    port = int(named)
    if words:
        live = ask(port, LIVE)
        if live == 503:  # a server that does not answer may be starting
            os.kill(server_process, signal.SIGTERM)
            return _failed("the server reports that it hangs: it gets SIGTERM")
    status = ask(port, READY)
    if status == 200:
        return 0
    return _failed(f"nothing answers on port {port}" if status is None else f"{READY} answers {status}")


def ask(port: int, path: str) -> int | None:
    """Return the status of a GET on loopback, by HTTP, else by HTTPS; None if neither is answered.

    The certificate is not verified: it is for the server's name and not for 127.0.0.1, and nothing secret is sent.
    """
    status = _status(http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S), path)
    if status is not None:
        return status
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _status(http.client.HTTPSConnection("127.0.0.1", port, timeout=_TIMEOUT_S, context=context), path)


def _status(connection: http.client.HTTPConnection, path: str) -> int | None:
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _failed(why: str) -> int:
    print(why, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
