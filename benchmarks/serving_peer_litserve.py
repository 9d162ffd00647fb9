"""LitServe for `serving_peers.py`.

Raw bytes come by a dependency of FastAPI, which spares it JSON, forms and base64. Its workers are processes, which
decode as well. Annotations are looked at by LitServe, so they may not be text.
"""

from typing import Annotated, Any

import litserve as ls
from fastapi import Depends, Request
from serving_peer_model import Model
from starlette.responses import Response

#: Seconds for which a batch waits. With none its workers look for requests without a pause, on cores that others need.
WINDOW_S = 0.002


async def raw(request: Request) -> bytes:
    return await request.body()


class One(ls.LitAPI):
    """Requests one by one."""

    def __init__(self, facts: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self.facts = facts

    def setup(self, device: str) -> None:
        """Open the network in a worker."""
        self.model = Model(self.facts, self.facts["threads"])

    def decode_request(self, request: Annotated[bytes, Depends(raw)]) -> Any:
        """Return the image of a request."""
        return self.model.read(request)

    def predict(self, x: Any) -> Any:
        """Return the answer."""
        return self.model.answer(x, self.model.run([x])[0])

    def encode_response(self, output: bytes) -> Response:
        """Return the answer as it is sent."""
        return Response(output, media_type="application/octet-stream")


class Several(One):
    """Requests in batches, of one kind or another."""

    def batch(self, inputs: Any) -> Any:
        """Leave a batch a list."""
        return inputs

    def predict(self, x: Any) -> Any:
        """Return the answers."""
        answers: list[bytes] = [b""] * len(x)
        for dtype in {image.dtype.name for image in x}:
            places = [i for i, image in enumerate(x) if image.dtype.name == dtype]
            for place, logits in zip(places, self.model.run([x[i] for i in places]), strict=True):
                answers[place] = self.model.answer(x[place], logits)
        return answers

    def unbatch(self, output: Any) -> Any:
        """Leave the answers a list."""
        return output


def serve(facts: dict[str, Any]) -> None:
    """Serve until the process ends."""
    api = Several(facts, max_batch_size=facts["batch"], batch_timeout=WINDOW_S) if facts["batch"] > 1 else One(facts)
    server = ls.LitServer(
        api, accelerator="cpu", workers_per_device=facts["callers"], fast_queue=facts["fast_queue"], timeout=60
    )
    server.run(host="127.0.0.1", port=facts["port"], log_level="error", generate_client_file=False)
