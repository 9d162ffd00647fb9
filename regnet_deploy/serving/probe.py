"""``python -m regnet_deploy.serving.probe``: asks the server of this container whether it is ready; exit status 0 or 1.

It is run every few seconds, so it imports next to nothing. With ``--stop-hung`` it asks whether the server is alive as
well, and where the server itself says that it hangs, it tells the container's process to end: the restart policy does
the rest.
"""

from __future__ import annotations

import http.client
import os
import signal
import sys
from collections.abc import Sequence

READY, LIVE = "/v2/health/ready", "/v2/health/live"
STOP_HUNG = "--stop-hung"
#: Variable that names the port, and what ``serve`` takes without it.
PORT_VARIABLE, DEFAULT_PORT = "REGNET_DEPLOY_PORT", "8000"
#: Seconds for one attempt: both of them fit into the five that a health check has.
_TIMEOUT_S = 2.0


def main(words: Sequence[str], server_process: int = 1) -> int:
    """Return 0 where the server is ready, else 1 behind a line on stderr that says why.

    Args:
        words: of the command line: nothing or :data:`STOP_HUNG`.
        server_process: that gets SIGTERM where the server hangs; a container's first process is number 1.
    """
    if list(words) not in ([], [STOP_HUNG]):
        return _failed(f"unknown words {' '.join(words)!r}: {STOP_HUNG} is all there is")
    named = os.environ.get(PORT_VARIABLE, DEFAULT_PORT)
    if not named.isdecimal() or not 0 < int(named) < 65536:
        return _failed(f"{PORT_VARIABLE} is {named!r}, which is no port")
    port = int(named)
    if words:
        live = ask(port, LIVE)
        if live == 503:  # only the server's own word counts: one that does not answer may be starting
            os.kill(server_process, signal.SIGTERM)
            return _failed("the server says that it hangs: it was told to end")
    status = ask(port, READY)
    if status == 200:
        return 0
    return _failed(f"nothing answers on port {port}" if status is None else f"{READY} answers {status}")


def ask(port: int, path: str) -> int | None:
    """Return the status of a GET on this machine's loopback by HTTP, else by HTTPS; None where neither is answered.

    The certificate is for the server's name and not for 127.0.0.1, so it is not verified: nothing is sent.
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
