"""One of two servers that compute nothing, for `benchmarks/serving.py`; prints its URL and answers until it is ended.

    python benchmarks/serving_noop.py ours --side 224     # the server, its session replaced by one that answers at once
    python benchmarks/serving_noop.py echo                # Starlette alone, which sends back what it got
    python benchmarks/serving_noop.py sink --answer 4200  # the same, which sends back so many bytes

All three stand behind uvicorn with the settings of :func:`regnet_deploy.serving.server.serve`; the latter two without
its limits, which are what ours is asked to afford.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from typing import Any, cast

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from regnet_deploy.bundle.variants import Gate
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.serving.admission import Admission, ServerState
from regnet_deploy.serving.batching import Batching
from regnet_deploy.serving.connection_places import ConnectionCounts
from regnet_deploy.serving.decode_pool import DecodePool
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.listeners import Listeners, bind, url_of
from regnet_deploy.serving.metrics import Metrics
from regnet_deploy.serving.model_interface import ModelInterface
from regnet_deploy.serving.model_registry import ModelRegistry
from regnet_deploy.serving.model_version import ModelVersion
from regnet_deploy.serving.request_record import notify_all
from regnet_deploy.serving.server import KEEP_ALIVE_S, serve
from regnet_deploy.serving.server_core import ServerCore
from regnet_deploy.serving.service import Service

CLASSES = 1000


class NoOp:
    """A session that answers zeros at once."""

    runtime, device, input, input_name, output_name = "nothing 0", "cpu", "float32", "images", "logits"

    def __init__(self) -> None:
        self._answers = np.zeros((64, CLASSES), np.float32)

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return zeros, ``(n, 1000)``."""
        return self._answers[: len(images)]


class NoOpCore:
    """What :func:`regnet_deploy.serving.server.serve` uses of a :class:`ServerCore`, without a bundle."""

    def __init__(self, side: int) -> None:
        limits = Limits()
        labels = tuple(f"class {i}" for i in range(CLASSES))
        interface = ModelInterface(
            "regnet", "1", "images", "float32", (3, side, side), "logits", labels, limits.max_batch
        )
        self._model = ModelVersion(
            variant="none",
            sessions=(NoOp(),),
            interface=interface,
            preprocessing=default_preprocessing(side),
            golden=cast(Any, None),
            gate=Gate(),
            batching=Batching(max_queue=limits.max_queue),
            threads=1,
            limits=limits,
            card={},
            digest="",
            content="",
            bundle=cast(Any, None),
        )
        self._models = ModelRegistry()
        pool = DecodePool(1, limits.max_pixels, limits.deadline_s)
        admission = Admission(limits.max_in_flight, ServerState.STARTING, limits.max_bodies_bytes)
        self.connections = ConnectionCounts()
        self.metrics = Metrics(self._models, admission, pool)
        self.service = Service(self._models, admission, limits, pool, notify_all((self.metrics.observe,)))

    async def start(self) -> None:
        """Start the executor; there is nothing to prove."""
        self._model.start()
        self._models.put(self._model)

    async def stop(self) -> None:
        """End the executor."""
        self.service.close()

    def log_event(self, event: str, **facts: Any) -> None:
        """Say nothing."""


def bare(answer: int | None) -> Starlette:
    """Return an application that reads a request and sends back its body, or ``answer`` bytes."""
    fixed = None if answer is None else bytes(answer)

    async def post(request: Request) -> Response:
        body = await request.body()
        return Response(body if fixed is None else fixed, media_type="application/octet-stream")

    return Starlette(routes=[Route("/v2/models/{model}/infer", post, methods=["POST"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ours", "echo", "sink"])
    parser.add_argument("--side", type=int, default=224, help="of the images that ours takes")
    parser.add_argument("--answer", type=int, default=4200, help="bytes that the sink sends back")
    options = parser.parse_args()
    door = bind("127.0.0.1", 0)
    if options.what == "ours":
        core = cast(ServerCore, NoOpCore(options.side))
        serve(core, Listeners(door), 1.0, lambda ready: print(url_of(door), flush=True))
        return
    config = uvicorn.Config(
        bare(options.answer if options.what == "sink" else None),
        lifespan="off",
        ws="none",
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            asyncio.get_running_loop().call_soon(lambda: print(url_of(door), flush=True))

    Server(config).run(sockets=[door])


if __name__ == "__main__":
    main()
