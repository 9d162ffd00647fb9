"""The plain answer is what starlette's would be on the wire."""

import asyncio
from typing import Any

from starlette.responses import Response

from regnet_deploy.serving.responses import PlainResponse


def sent_by(response: Any) -> list[Any]:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    asyncio.run(response({"type": "http"}, receive, send))
    return messages


def test_it_sends_what_starlettes_response_sends():
    plain = sent_by(PlainResponse(200, [(b"x-a", b"1")], b"body"))
    theirs = sent_by(Response(b"body", 200, {"x-a": "1"}))
    assert [message["type"] for message in plain] == [message["type"] for message in theirs]
    assert plain[0]["status"] == theirs[0]["status"]
    assert sorted(plain[0]["headers"]) == sorted(theirs[0]["headers"])
    assert plain[1]["body"] == theirs[1]["body"]
