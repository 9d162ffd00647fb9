"""Accepts the connections of a listening socket, and no more of them than files may be open."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from regnet_deploy.serving.connection_places import ConnectionCounts

#: Connections that wait in the operating system to be accepted; it may allow fewer.
BACKLOG = 2048
#: Connections that are accepted at a time, before others are read again.
_AT_A_TIME = 64
#: Seconds after which accepting is tried again where the machine has no more open files.
_RETRY_S = 0.1
#: Seconds that a TLS handshake has while other connections wait to be accepted.
_HANDSHAKE_GRACE_S = 1.0

_LOG = logging.getLogger(__name__)

#: Makes the protocol of a connection; it calls what it is given when the connection is lost.
CreateProtocol = Callable[[Callable[[], None]], asyncio.BaseProtocol]


class Acceptor:
    """Accepts connections while there is room for them; others wait in the operating system.

    An event loop's own server accepts all that come, and resets those for which the process has no more files.
    """

    def __init__(
        self,
        bound: socket.socket,
        create_protocol: CreateProtocol,
        counts: ConnectionCounts,
        max_open: int,
        make_room: Callable[[], None],
        tls: ssl.SSLContext | None = None,
        handshake_s: float | None = None,
    ) -> None:
        """Listen on a bound socket of the running event loop.

        Args:
            bound: a bound socket.
            create_protocol: makes the protocol of a connection.
            counts: of connections; they are updated.
            max_open: connections that may be open, those in their TLS handshake among them.
            make_room: closes a connection that can be spared; it is called where so many are open.
            tls: None: no TLS.
            handshake_s: seconds for a TLS handshake.

        Raises:
            OSError: the socket cannot listen.
        """
        self._socket, self._create_protocol, self._counts, self._max_open = bound, create_protocol, counts, max_open
        self._make_room, self._tls, self._handshake_s = make_room, tls, handshake_s
        self._loop = asyncio.get_running_loop()
        self._opening: dict[asyncio.Task[None], float] = {}  # since when
        self._retry: asyncio.TimerHandle | None = None
        self._is_reading = self._is_closed = self._is_short_of_files = False
        bound.listen(BACKLOG)
        bound.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Accept no more connections; those that are open stay open."""
        self._is_closed = True
        self._pause()

    async def wait_closed(self) -> None:
        """Return when no connection is between its acceptance and its first byte."""
        while self._opening:
            await asyncio.wait(self._opening)

    def _resume(self) -> None:
        if not (self._is_reading or self._is_closed):
            self._is_reading = True
            self._loop.add_reader(self._socket, self._accept)

    def _pause(self, retry_s: float | None = None) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._socket)
        if self._retry is not None:
            self._retry.cancel()
        self._retry = None if retry_s is None else self._loop.call_later(retry_s, self._resume)

    def _accept(self) -> None:
        for _ in range(_AT_A_TIME):
            if self._counts.open >= self._max_open:
                self._wait_for_room()
                return
            try:
                connection, _address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no more files or memory; the connection still waits
                if not self._is_short_of_files:  # it is tried again and again, and said once
                    self._is_short_of_files = True
                    self._counts.aborted["files"] += 1
                    _LOG.warning("connections cannot be accepted, and wait: %s", error.strerror)
                self._pause(_RETRY_S)
                return
            if self._is_short_of_files:
                self._is_short_of_files = False
                _LOG.warning("connections are accepted again")
            connection.setblocking(False)
            self._counts.open += 1
            task = self._loop.create_task(self._open(connection))
            self._opening[task] = self._loop.time()
            task.add_done_callback(self._opening.pop)

    def _wait_for_room(self) -> None:
        """Accept no more until a connection is closed; a TLS handshake that takes long is ended for that."""
        self._make_room()
        oldest = next(iter(self._opening.items()), None) if self._tls is not None else None
        if oldest is None:
            self._pause()
            return
        task, since = oldest
        left = _HANDSHAKE_GRACE_S - (self._loop.time() - since)
        if left <= 0:
            task.cancel()
        self._pause(max(left, _RETRY_S))

    async def _open(self, connection: socket.socket) -> None:
        is_open = True

        def lost() -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                self._counts.open -= 1
                self._resume()

        try:
            await self._loop.connect_accepted_socket(
                lambda: self._create_protocol(lost),
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_s if self._tls is not None else None,
            )
        except (OSError, asyncio.CancelledError):  # ssl.SSLError and TimeoutError are OSErrors
            self._counts.aborted["handshake"] += 1
            connection.close()
            lost()
        except Exception:  # a defect, which the event loop logs: without this, its place would be lost for good
            connection.close()
            lost()
            raise
