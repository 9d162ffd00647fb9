"""The server with one part of its connection layer switched off, for `serving_ablation.py`.

    python benchmarks/serving_without.py body_receiver serve BUNDLE --port 0 --json
    python benchmarks/serving_without.py body_receiver noop ours --side 224

Runs `regnet-deploy` or `serving_noop.py` with the rest of the arguments. The part `nothing` switches nothing off.
"""

from __future__ import annotations

import contextlib
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from regnet_deploy.serving import allocator, connection_limits, listeners, server


def adapt_protocol(adapt: Callable[[Any], None]) -> None:
    """Have a function change the connection class of every server that is started from now on."""
    original = connection_limits.limited_protocol

    def limited_protocol(*arguments: Any) -> Any:
        protocol = original(*arguments)
        adapt(protocol)
        return protocol

    server.limited_protocol = limited_protocol


def replace_methods(**methods: Any) -> Callable[[], None]:
    """Return a function that replaces methods of the connection class."""

    def adapt(protocol: Any) -> None:
        for name, method in methods.items():
            setattr(protocol, name, method)

    return lambda: adapt_protocol(adapt)


def without_body_receiver() -> None:
    listeners.BodyReceiver = lambda connection, memory: connection


def start_without_coalescing(self: Any, cycle: Any, app: Any) -> None:
    self._running = cycle
    HttpToolsProtocol._start_asgi_task(self, cycle, app)


def without_scheduling() -> None:
    @contextlib.contextmanager
    def default_scheduling() -> Iterator[bool]:
        yield False

    server.batch_scheduling = default_scheduling


def without_allocator() -> None:
    allocator.keep_freed_memory = lambda: False


class PlainParser(httptools.HttpRequestParser):
    is_offered = False


def without_http_parser() -> None:
    def plain(protocol: Any, head: Any) -> PlainParser:
        parser = PlainParser(protocol)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    connection_limits.Parser = plain


class NeverAdded(dict[Any, None]):
    def __setitem__(self, key: Any, value: None) -> None:
        pass


def without_idle_eviction() -> None:
    adapt_protocol(lambda protocol: setattr(protocol, "_idle", NeverAdded()))


def without_head_size_limit() -> None:
    connection_limits.MAX_HEAD_BYTES = 2**62


def without_pipelining_limit() -> None:
    connection_limits.MAX_PIPELINED = 2**62


def without_health_connections() -> None:
    connection_limits.HEALTH_CONNECTIONS = 0


def without_any() -> None:
    """uvicorn's own protocol and listener, and nothing around them."""
    server.limited_protocol = lambda *arguments: HttpToolsProtocol
    listeners.BodyReceiver = lambda connection, memory: connection
    without_scheduling()
    without_allocator()


def nothing(self: Any) -> None:
    pass


PARTS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "body_receiver": without_body_receiver,
    "response_coalescing": replace_methods(_start_asgi_task=start_without_coalescing),
    "scheduling": without_scheduling,
    "allocator": without_allocator,
    "http_parser": without_http_parser,
    "head_deadline": replace_methods(_await_head=nothing),
    "write_stall_deadline": replace_methods(pause_writing=HttpToolsProtocol.pause_writing),
    "idle_eviction": without_idle_eviction,
    "head_size_limit": without_head_size_limit,
    "pipelining_limit": without_pipelining_limit,
    "health_connections": without_health_connections,
    "all of them": without_any,
}


def main() -> None:
    part, program, *arguments = sys.argv[1:]
    PARTS[part]()
    if program == "noop":
        script = Path(__file__).parent / "serving_noop.py"
        sys.argv = [str(script), *arguments]
        runpy.run_path(str(script), run_name="__main__")
    else:
        from regnet_deploy.cli.main import run

        sys.argv = ["regnet-deploy", program, *arguments]
        run()


if __name__ == "__main__":
    main()
