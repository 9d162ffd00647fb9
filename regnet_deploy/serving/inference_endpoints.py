"""The two requests that carry images over HTTP, as plain ASGI: they are what the server is there for."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from regnet_deploy.errors import DataError
from regnet_deploy.serving.admission import AdmissionSlot
from regnet_deploy.serving.closing_response import ClosingResponse
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.model_version import ModelVersion
from regnet_deploy.serving.multipart import FormPart, read_form
from regnet_deploy.serving.plain_response import PlainResponse
from regnet_deploy.serving.protocol import HEADER_LENGTH, JSON_HEADERS, dumps, infer_response, parse_infer
from regnet_deploy.serving.request_body import Body, UnreadBody, read_body, unpack
from regnet_deploy.serving.request_log import request_id_of
from regnet_deploy.serving.service import CLIENT_GONE, Call, Service, request_error_of

T = TypeVar("T")

#: Header of an infer request up to which its JSON is read on the event loop.
_SMALL_JSON = 16 * 2**10
#: Answers up to this size are not worth compressing.
_SMALL_ANSWER = 1024
#: Seconds after which it is looked whether the client is still there: most answers are made by then.
_WATCH_AFTER_S = 0.05

#: Fields of a URL; there are three.
_MAX_FIELDS = 20

#: What a request is told that a server does not finish, because it ends and has waited for as long as it may.
_CUT_OFF = RequestError("the server is stopping, and this request was cut off", 503)

_HEADER_LENGTH = HEADER_LENGTH.lower().encode("ascii")


class InferEndpoint:
    """``POST /v2/models/{model}[/versions/{version}]/infer``."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await _answer(self._service, "infer", self._infer, scope, receive, send)

    async def _infer(self, call: Call, headers: _Headers, scope: Scope, receive: Receive) -> PlainResponse:
        service, path = self._service, scope["path_params"]
        with service.models.lease(path["model"], path.get("version")) as served:
            call.served = served
            service.refuse_if_full(served)
            with service.admission.enter() as place:
                length, encoding = _text(headers, _HEADER_LENGTH), _text(headers, b"content-encoding")
                small = _small(length)
                declared = _text(headers, b"content-length")
                body = await read_body(scope, declared, receive, place, service.limits, small or 0)
                call.has_read()
                # What is not a number of such a size, the parser takes or refuses.
                if encoding is None and small is not None:
                    request = parse_infer(body, length, served.interface, served.heads)
                else:
                    body = await _unpacked(service, call, place, body, encoding, receive)
                    work = service.apart(parse_infer, body, length, served.interface)
                    request = await _while_there(service, service.in_time(call, work), receive)
                del body
                ran = await _while_there(service, service.queued(call, served, request), receive)
                call.ran(ran, len(request.images))
                content, made = infer_response(request, ran.logits, served.interface, served.heads)
        return _compressed(content, made, headers)


class ClassifyEndpoint:
    """``POST /classify?k=5``: the bytes of one image, or a form with several."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await _answer(self._service, "classify", self._classify, scope, receive, send)

    async def _classify(self, call: Call, headers: _Headers, scope: Scope, receive: Receive) -> PlainResponse:
        service = self._service
        query = _query(scope)
        asked = _once(query, "k")
        k = 5 if asked is None else _whole(asked)
        with service.models.lease(_model(query, service), _once(query, "version")) as served:
            call.served = served
            service.refuse_if_full(served)
            with service.admission.enter() as place:
                body = await read_body(scope, _text(headers, b"content-length"), receive, place, service.limits)
                call.has_read()
                encoding, kind = _text(headers, b"content-encoding"), _text(headers, b"content-type") or ""
                body = await _unpacked(service, call, place, body, encoding, receive)
                if kind.lower().startswith("multipart/"):
                    reading = service.apart(read_form, body, kind, served.interface.max_batch)
                    parts = await _while_there(service, service.in_time(call, reading), receive)
                    work = _several(service, call, served, parts, k)
                else:
                    work = _one(service, call, served, body, k)
                answer = await _while_there(service, work, receive)
        status = 400 if "error" in answer else 200
        answer = {"model": served.name, "version": served.version, **answer, "timing_ms": call.timing_ms()}
        return _compressed(dumps(answer), JSON_HEADERS, headers, status)


async def _one(service: Service, call: Call, served: ModelVersion, image: Body, k: int) -> dict[str, Any]:
    predictions = await service.classify(call, served, image, k)
    return {"predictions": [prediction.to_json() for prediction in predictions]}


async def _several(service: Service, call: Call, served: ModelVersion, parts: list[FormPart], k: int) -> dict[str, Any]:
    """Classify the images of a form at the same time; a bad one has its error in its place."""

    async def one(part: FormPart) -> dict[str, Any]:
        try:
            predictions = await service.classify(call, served, part.data, k)
        except DataError as error:
            return {"image": part.name, "error": str(error)}
        return {"image": part.name, "predictions": [prediction.to_json() for prediction in predictions]}

    # No more at a time than may wait: a form by itself is not refused for what it brings.
    room = asyncio.Semaphore(served.batching.max_queue)

    async def in_turn(part: FormPart) -> dict[str, Any]:
        async with room:
            return await one(part)

    tasks = [asyncio.ensure_future(in_turn(part)) for part in parts]
    try:
        results = list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
    if all("error" in result for result in results):
        return {"error": f"none of the {len(results)} files is an image that can be used", "results": results}
    return {"results": results}


_Headers = dict[bytes, bytes]
_Work = Callable[[Call, _Headers, Scope, Receive], Awaitable[PlainResponse]]
_Raw = list[tuple[bytes, bytes]]


async def _answer(service: Service, operation: str, work: _Work, scope: Scope, receive: Receive, send: Send) -> None:
    """Do the work of one request, send what came of it, and tell it once."""
    headers: _Headers = dict(scope["headers"])
    line: str | None = None
    call = Call("http", operation, request_id_of(headers.get(b"x-request-id")), _text(headers, b"traceparent"))
    response: PlainResponse | Response
    cut_off: asyncio.CancelledError | None = None
    try:
        response = await work(call, headers, scope, receive)
    except ClientDisconnect:
        service.ended(call, CLIENT_GONE, "the client is gone")
        return
    except asyncio.CancelledError as error:
        cut_off = error
        status, line = _CUT_OFF.status, str(_CUT_OFF)
        response = error_response(_CUT_OFF)
        response.raw_headers.append((b"connection", b"close"))
    except Exception as error:
        refusal = request_error_of(error)
        status, line = refusal.status, str(refusal)
        response = error_response(refusal)
    else:
        status = response.status_code
    response.raw_headers.append((b"x-request-id", call.request_id.encode("ascii")))
    try:
        await response(scope, receive, send)
    finally:
        service.ended(call, status, line)
    if cut_off is not None:
        raise cut_off


def error_response(error: RequestError) -> Response:
    """Return the answer to a request that is refused; to one still being sent, one that closes the connection."""
    content = dumps({"error": str(error)})
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    if isinstance(error, UnreadBody):
        return ClosingResponse(content, error.status, headers, media_type="application/json")
    return Response(content, error.status, headers, media_type="application/json")


async def _while_there(service: Service, work: Awaitable[T], receive: Receive) -> T:
    """Wait for work, and cancel it when the client has gone.

    Raises:
        ClientDisconnect: it has.
    """
    task = asyncio.ensure_future(work)
    watch: list[asyncio.Task[None]] = []

    async def look() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    key = service.timeouts.add(_WATCH_AFTER_S, lambda: watch.append(asyncio.ensure_future(look())))
    try:
        return await task
    except asyncio.CancelledError:
        if watch and watch[0].done() and not watch[0].cancelled():
            raise ClientDisconnect from None
        task.cancel()
        raise
    finally:
        service.timeouts.discard(key)
        for one in watch:
            one.cancel()


async def _unpacked(
    service: Service,
    call: Call,
    place: AdmissionSlot,
    body: Body,
    encoding: str | None,
    receive: Receive,
) -> Body:
    """Undo the Content-Encoding of a body; what it unpacks to counts as if it had been sent.

    Raises:
        RequestError: broken data (400), too large (413), an unknown encoding (415), no room beside other bodies (503),
            or the deadline passed (504).
        ClientDisconnect: the client went away.
    """
    if encoding is None:
        return body
    work = service.apart(unpack, body, encoding, service.limits.max_body_bytes)
    plain = await _while_there(service, service.in_time(call, work), receive)
    if not place.take(max(0, len(plain) - len(body))):
        raise RequestError("the bodies of the requests in flight take all the room there is, try again", 503)
    return plain


def _small(length: str | None) -> int | None:
    """Return the bytes of a request's JSON where that is so little that it is read on the event loop."""
    if length is None or len(length) > 5 or not (length.isascii() and length.isdigit()):
        return None
    return int(length) if int(length) <= _SMALL_JSON else None


def _text(headers: _Headers, name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def _compressed(content: bytes, headers: _Raw, asked: _Headers, status: int = 200) -> PlainResponse:
    """Make the answer, compressed where the client takes that and it is worth it."""
    accepted = _text(asked, b"accept-encoding")
    if accepted is not None and len(content) > _SMALL_ANSWER:
        for name, wbits in (("gzip", 31), ("deflate", 15)):
            if _accepts(accepted, name):
                packer = zlib.compressobj(1, zlib.DEFLATED, wbits)
                content = packer.compress(content) + packer.flush()
                headers = [*headers, (b"content-encoding", name.encode("ascii"))]
                break
        headers = [*headers, (b"vary", b"accept-encoding")]
    return PlainResponse(status, headers, content)


def _accepts(header: str, encoding: str) -> bool:
    for item in header.lower().split(","):
        name, _, parameters = item.partition(";")
        if name.strip() == encoding:
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _once(query: dict[str, list[str]], name: str) -> str | None:
    values = query.get(name, [])
    if len(values) > 1:
        raise RequestError(f"the URL has {name} {len(values)} times")
    return values[0] if values else None


def _model(query: dict[str, list[str]], service: Service) -> str:
    """Return the model that is asked for; where there is one alone it need not be named."""
    given, names = _once(query, "model"), service.models.names()
    if given is None and len(names) > 1:
        raise RequestError(f"this server has {', '.join(names)}: name one, such as ?model={names[0]}")
    return given if given is not None else "".join(names)


def _query(scope: Scope) -> dict[str, list[str]]:
    try:
        return parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise RequestError(f"the URL has more than {_MAX_FIELDS} fields") from None


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        raise RequestError(f"k must be a whole number from 1 to 999999999, not {text[:40]!r}")
    return int(text)
