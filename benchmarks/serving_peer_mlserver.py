"""MLServer for `serving_peers.py`.

gRPC with tensors as BYTES, because of one of FP32, which it takes too, it makes a Python object for each number. It
batches only with a fixed window, and merges such requests as Python's lists: requests run one by one, in as many
threads as are asked for. Its worker processes (``parallel_workers``) do not start with the uvloop that it installs.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from serving_peer_model import Model


class Network(MLModel):
    """The network, its facts in the settings' parameters."""

    async def load(self) -> bool:
        """Open the network."""
        facts = self.settings.parameters.extra
        self._model = Model(facts, facts["threads"])
        self._pool = ThreadPoolExecutor(facts["callers"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request."""
        given = payload.inputs[0].data
        data = getattr(given, "root", given)
        data = np.array(data, np.float32).tobytes() if payload.inputs[0].datatype == "FP32" else data[0]
        answer = await asyncio.get_running_loop().run_in_executor(self._pool, self._model.classify, data)
        output = ResponseOutput(name="output", shape=[1], datatype="BYTES", data=[answer])
        return InferenceResponse(model_name=self.name, outputs=[output])


def serve(facts: dict[str, Any]) -> None:
    """Serve until the process ends."""
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=facts["other_port"],
        grpc_port=facts["port"],
        metrics_endpoint=None,
        parallel_workers=0,
        grpc_max_message_length=64 * 2**20,
        gzip_enabled=False,
    )
    logging.disable(logging.WARNING)
    # By its name: under the class itself workers would look for it in this program's main module.
    model = ModelSettings(name="regnet", implementation="serving_peer_mlserver.Network", parameters={"extra": facts})

    async def run() -> None:
        await MLServer(settings).start([model])

    asyncio.run(run())
