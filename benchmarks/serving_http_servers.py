"""The limited connections of the server beside other HTTP servers: the same Starlette application behind each.

    pip install --target servers granian hypercorn
    PYTHONPATH=servers python benchmarks/serving_http_servers.py      # 1 minute; writes results/

The application reads the request's body and answers 4,200 bytes. 16 requests are in flight; every server has one
process, and is measured once in each round, in a new order. The limited server gives the body in one piece where the
application asks for it, as ours does. Figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from serving_ablation import FIGURES, measure
from serving_figures import RESULTS
from serving_noop import bare
from serving_processes import HERE, Request, started
from starlette.types import Receive, Scope, Send

from regnet_deploy.profiling.machine import describe_machine
from regnet_deploy.serving.admission import Admission
from regnet_deploy.serving.connection_limits import ConnectionLimits
from regnet_deploy.serving.limited_server import LimitedServer
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.request_body import read_body
from regnet_deploy.serving.responses import PlainResponse

RESULT = RESULTS / "serving_http_servers.json"
SERVERS = ("limited", "limited, body in one piece", "uvicorn", "granian", "hypercorn")
SIZES = (1_623, 602_287)
ANSWER = 4200

app = bare(ANSWER)


async def app_in_one_piece(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body as the server does, and answer."""
    with ADMISSION.enter() as slot:
        await read_body(scope, dict(scope["headers"])[b"content-length"].decode(), receive, slot, Limits())
    await PlainResponse(200, [], bytes(ANSWER))(scope, receive, send)


ADMISSION = Admission(256)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def announce(port: int) -> None:
    """Print the URL when somebody listens there."""

    def wait() -> None:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        print(f"http://127.0.0.1:{port}", flush=True)

    threading.Thread(target=wait, daemon=True).start()


def serve(name: str) -> None:
    """Serve the application."""
    port = free_port()
    announce(port)
    if name == "granian":
        from granian import Granian
        from granian.constants import Interfaces

        Granian(
            "serving_http_servers:app", port=port, interface=Interfaces.ASGINL, websockets=False, log_enabled=False
        ).serve()
    elif name == "hypercorn":
        import uvloop
        from hypercorn.asyncio import serve as run
        from hypercorn.config import Config

        config = Config()
        config.bind, config.keep_alive_max_requests = [f"127.0.0.1:{port}"], 10**9
        uvloop.run(run(app, config))
    else:
        target = app_in_one_piece if name.endswith("piece") else app
        settings: dict[str, Any] = {"lifespan": "off", "ws": "none", "log_level": logging.WARNING, "access_log": False}
        config = uvicorn.Config(target, http="httptools", port=port, **settings)
        limited = name.startswith("limited")
        server = LimitedServer(config, ConnectionLimits(512, 30.0)) if limited else uvicorn.Server(config)
        server.run(sockets=[socket.create_server(("127.0.0.1", port))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=SERVERS, help="be one of the servers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE")
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        program = [sys.executable, str(HERE / "serving_http_servers.py"), "--serve"]
        running = {name: stack.enter_context(started([*program, name])) for name in SERVERS}
        for size in SIZES:
            body = Path(folder) / f"{size}.body"
            body.write_bytes(bytes(size))
            request = Request("/v2/models/regnet/infer", {}, [body])
            rows: dict[str, list[dict[str, float]]] = {name: [] for name in SERVERS}
            for _ in range(options.rounds):
                for name in random.sample(SERVERS, len(SERVERS)):
                    rows[name].append(measure(running[name], request, 16, options.seconds))
            found[str(size)] = {
                name: {figure: round(statistics.median(row[figure] for row in several), 4) for figure in FIGURES}
                for name, several in rows.items()
            }
    result = {"machine": describe_machine().to_json(), "rounds": options.rounds, "bytes": found}
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for size, servers in found.items():
        for name, row in servers.items():
            print(f"{int(size):>9,} bytes  {name:<28}" + "  ".join(f"{figure} {row[figure]:g}" for figure in FIGURES))


if __name__ == "__main__":
    main()
