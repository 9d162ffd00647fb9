"""KServe's Python server for `serving_peers.py`: gRPC with raw tensors, its log of requests off."""

from __future__ import annotations

import asyncio
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from serving_peer_model import Model


def serve(facts: dict[str, Any]) -> None:
    """Serve until the process ends."""
    ports = ["--http_port", str(facts["other_port"]), "--grpc_port", str(facts["port"])]
    sys.argv = ["kserve", *ports, "--enable_latency_logging", "false", "--configure_logging", "false"]
    import kserve  # which reads the arguments when it is imported

    class Network(kserve.Model):
        def __init__(self) -> None:
            super().__init__("regnet")
            self.model = Model(facts, facts["threads"])
            self.pool = ThreadPoolExecutor(facts["callers"])
            self.ready = True

        async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            loop = asyncio.get_running_loop()
            output = await loop.run_in_executor(self.pool, work, self.model, payload.inputs[0])
            return kserve.InferResponse(payload.id or "", "regnet", [output])

    def work(model: Model, given: Any) -> Any:
        # In raw bytes of BYTES the length stands before each element.
        data = given._raw_data if given.datatype == "FP32" else given._raw_data[4:]
        image = model.read(data)
        logits = model.run([image])
        if given.datatype == "FP32":
            output = kserve.InferOutput("output", list(logits.shape), "FP32")
            output.set_data_from_numpy(logits)
        else:
            output = kserve.InferOutput("output", [1], "BYTES")
            output.set_data_from_numpy(np.array([model.answer(image, logits[0])], object))
        return output

    logging.disable(logging.WARNING)
    kserve.ModelServer().start([Network()])
