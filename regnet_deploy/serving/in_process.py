"""The server in a thread of this process."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from regnet_deploy.errors import ServerError
from regnet_deploy.serving.draining_server import ServerReady
from regnet_deploy.serving.server import ServerSettings, run_server


class RunningServer:
    """A server that answers requests in a thread of this process until it is closed.

    Attributes:
        url: base URL, such as ``http://127.0.0.1:8000``.
        grpc_port: port on which gRPC is answered; None without gRPC.
    """

    url: str
    grpc_port: int | None

    def __init__(self, path: str | Path, settings: ServerSettings) -> None:
        """Start the thread and wait until the golden sets agree and requests are answered.

        Raises:
            RegnetDeployError: the server does not start.
        """
        self._stop = threading.Event()
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._failure_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, args=(path, settings), name="regnet-deploy", daemon=True)
        self._thread.start()
        try:
            self._started.wait()
        except BaseException:  # for example KeyboardInterrupt: nobody could close the server any more
            self._stop.set()
            self._thread.join()
            raise
        self._raise_failure()

    def close(self) -> None:
        """Refuse new requests, finish those in flight and stop; a closed server stays closed.

        Requests in flight have ``ServerSettings.drain_s`` seconds. ``linger_s`` applies to signals only.

        Raises:
            ServerError: requests had to be cut off; raised once.
        """
        self._stop.set()
        self._thread.join()
        self._raise_failure()

    def __enter__(self) -> RunningServer:
        """Return the server."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the server."""
        self.close()

    def _run(self, path: str | Path, settings: ServerSettings) -> None:
        try:
            run_server(path, settings, self._announce, self._stop)
            if not self._started.is_set():
                raise ServerError("the server stopped before it was ready")
        except BaseException as error:  # raised again in the thread that waits
            self._failure = error
        finally:
            self._started.set()

    def _raise_failure(self) -> None:
        with self._failure_lock:
            failure, self._failure = self._failure, None
        if failure is not None:
            self._thread.join()
            raise failure

    def _announce(self, ready: ServerReady) -> None:
        self.url, self.grpc_port = ready.url, ready.grpc_port
        self._started.set()
