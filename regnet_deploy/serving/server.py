"""The server process: socket, start, proof, signals, end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from regnet_deploy.errors import RegnetDeployError, ServerError
from regnet_deploy.runtimes.golden import Agreement
from regnet_deploy.serving.admission import Admission, State
from regnet_deploy.serving.app import admission_for, create_app
from regnet_deploy.serving.heads import guarded
from regnet_deploy.serving.served import Served

#: Seconds for which an idle connection is kept; longer than the proxies in front keep theirs.
KEEP_ALIVE_S = 75


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to ``host`` and ``port``; port 0 takes a free one.

    Raises:
        ServerError: the address is in use, not of this machine, or not allowed.
    """
    if not host:  # which the system would take for every address
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
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host and --port, "
            "--port 0 takes a free one"
        ) from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the base URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(served: Served, bound: socket.socket, drain_s: float, announce: Callable[[Agreement], None]) -> None:
    """Answer requests until a signal comes.

    The golden set is replayed while the server already answers probes; ``announce`` is called when it has passed and
    requests are let in. SIGTERM or SIGINT: not ready any more, requests inside are finished, for at most ``drain_s``
    seconds; a second signal ends at once.

    Raises:
        ProofError: the golden set disagrees; no request was answered.
        ServerError: requests had to be cut off, or the golden set could not be replayed.
    """
    admission = admission_for(served.limits, State.STARTING)
    config = uvicorn.Config(
        create_app(served, admission),
        http=guarded(served.limits.read_timeout_s, served.limits.max_connections),
        lifespan="off",
        ws="none",
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,  # when it comes to that, the requests are answered or have had their time
    )
    server = _Server(config, served, admission, drain_s, announce)
    server.run(sockets=[bound])
    if server.failure is not None:
        raise server.failure


class _Server(uvicorn.Server):
    """uvicorn's server with a proof at its start and a drain at its end."""

    def __init__(
        self,
        config: uvicorn.Config,
        served: Served,
        admission: Admission,
        drain_s: float,
        announce: Callable[[Agreement], None],
    ) -> None:
        super().__init__(config)
        self.failure: RegnetDeployError | None = None
        self._served = served
        self._admission = admission
        self._drain_s = drain_s
        self._announce = announce
        self._proof: asyncio.Future[Agreement] | None = None
        self._drain_until: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and begin to replay the golden set."""
        await super().startup(sockets)
        self._proof = asyncio.get_running_loop().run_in_executor(None, self._served.prove)

    async def on_tick(self, counter: int) -> bool:
        """Move from one state to the next; called ten times a second, True ends the server."""
        if self._proof is not None and self._proof.done():
            try:
                agreement = self._proof.result()
            except RegnetDeployError as error:
                self.failure = error
                return True
            except Exception as error:  # out of memory, say: whatever it is, a server that is not proved ends
                self.failure = ServerError(f"the golden set could not be replayed: {type(error).__name__} {error}")
                return True
            self._proof = None
            if self._admission.state is State.STARTING:
                self._admission.state = State.READY
                self._announce(agreement)
        if self._drain_until is not None:
            if not self._admission.in_flight:
                return True
            if time.monotonic() > self._drain_until:
                return self._cut_off(f"after {self._drain_s:g} s of draining")
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first one drains, the second one ends."""
        self._admission.state = State.DRAINING
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self._drain_s
        else:
            self._cut_off(f"by a second {signal.Signals(sig).name}")
            self.should_exit = self.force_exit = True

    def _cut_off(self, why: str) -> bool:
        if self._admission.in_flight:
            self.failure = ServerError(f"{self._admission.in_flight} requests were cut off {why}")
            logging.getLogger("uvicorn.error").disabled = True  # it has a traceback for each of them
        return True
