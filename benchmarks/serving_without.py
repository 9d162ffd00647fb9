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

from regnet_deploy.serving import limited_protocol, limited_server, server
from regnet_deploy.serving.connection_limits import ConnectionLimits
from regnet_deploy.serving.connection_places import ConnectionPlaces
from regnet_deploy.serving.limited_protocol import LimitedProtocol


def without_body_receiver() -> None:
    class Told(LimitedProtocol):
        """Says itself that its connection is lost, as a body receiver does."""

        def connection_lost(self, error: Exception | None) -> None:
            self.lost()
            super().connection_lost(error)

    def plain(protocol: Any, buffer: memoryview, lost: Callable[[], None]) -> Any:
        protocol.__class__, protocol.lost = Told, lost
        return protocol

    limited_server.BodyReceiver = plain


def without_scheduling() -> None:
    @contextlib.contextmanager
    def default_scheduling() -> Iterator[bool]:
        yield False

    server.batch_scheduling = default_scheduling


class PlainParser(httptools.HttpRequestParser):
    """httptools' parser, as uvicorn uses it."""

    is_upgrade_offered = False


def without_http_parser() -> None:
    def plain(protocol: Any, head: Any) -> PlainParser:
        parser = PlainParser(protocol)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    limited_protocol.Parser = plain


def without_limit(**fields: int) -> Callable[[], None]:
    """Return a function that gives limits another value, whatever was asked for."""

    def replace() -> None:
        for name, value in fields.items():
            setattr(ConnectionLimits, name, property(lambda self, value=value: value, lambda self, value: None))

    return replace


def nothing(self: Any, *arguments: Any) -> None:
    pass


PARTS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "body_receiver": without_body_receiver,
    "scheduling": without_scheduling,
    "http_parser": without_http_parser,
    "head_deadline": lambda: setattr(LimitedProtocol, "_start_head_timer", nothing),
    "write_stall_deadline": lambda: setattr(LimitedProtocol, "pause_writing", HttpToolsProtocol.pause_writing),
    "idle_eviction": lambda: setattr(ConnectionPlaces, "add_idle", nothing),
    "head_size_limit": without_limit(max_head_bytes=2**62),
    "pipelining_limit": without_limit(max_pipelined=2**62),
    "health_connections": without_limit(health_connections=0),
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
