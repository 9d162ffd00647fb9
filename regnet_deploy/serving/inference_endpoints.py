"""The HTTP endpoints that take images: infer and classify. Plain ASGI, because Starlette's layers cost time."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from regnet_deploy.errors import DataError, did_you_mean
from regnet_deploy.serving.admission import AdmissionSlot, ServerState
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.model_version import ModelVersion
from regnet_deploy.serving.multipart import FormPart, read_form
from regnet_deploy.serving.protocol import HEADER_LENGTH, JSON_HEADERS, dumps, infer_response, parse_infer
from regnet_deploy.serving.request_body import BODIES_FULL, Body, UnreadBody, read_body, unpack
from regnet_deploy.serving.request_log import request_id_of
from regnet_deploy.serving.responses import ClosingResponse, PlainResponse
from regnet_deploy.serving.service import CLIENT_GONE, CUT_OFF, Call, Service, request_error_of

T = TypeVar("T")

#: Bytes of JSON of an infer request up to which it is parsed on the event loop.
_INLINE_JSON_BYTES = 16 * 2**10
#: Bytes of a response up to which it is not compressed.
_MIN_COMPRESSED_BYTES = 1024
#: Seconds after which a request starts to watch for its client's disconnect; most requests are answered by then.
_WATCH_AFTER_S = 0.05

#: Content-Type of what ``curl`` sends with ``-d`` and ``--data-binary``, unless it is told another one.
_URL_ENCODED = "application/x-www-form-urlencoded"
_CURL_HINT = "with curl, send it by --data-binary @FILE: -d drops line ends, and without @ it sends the name"

#: Fields of a query string; three are defined.
_MAX_FIELDS = 20

_HEADER_LENGTH = HEADER_LENGTH.lower().encode("ascii")


class InferEndpoint:
    """``POST /v2/models/{model}[/versions/{version}]/infer``."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await _handle(self._service, "infer", self._infer, scope, receive, send)

    async def _infer(self, call: Call, headers: _Headers, scope: Scope, receive: Receive) -> PlainResponse:
        service, path = self._service, scope["path_params"]
        with service.models.lease(path["model"], path.get("version")) as model:
            call.model = model
            service.refuse_if_full(model)
            with service.admission.enter() as slot:
                length, encoding = _header(headers, _HEADER_LENGTH), _header(headers, b"content-encoding")
                inline = _inline_json_bytes(length)
                declared = _header(headers, b"content-length")
                body = await read_body(scope, declared, receive, slot, service.limits, inline or 0)
                call.body_read()
                # A length that is no such number is parsed or refused by the parser.
                if encoding is None and inline is not None:
                    request = parse_infer(body, length, model.interface, model.header_cache)
                else:
                    body = await _unpack(service, call, slot, body, encoding, receive)
                    work = service.run_in_executor(parse_infer, body, length, model.interface)
                    request = await _cancel_on_disconnect(service, service.before_deadline(call, work), receive)
                del body
                result = await _cancel_on_disconnect(service, service.submit(call, model, request), receive)
                call.add_result(result, len(request.images))
                content, response_headers = infer_response(request, result.logits, model.interface, model.header_cache)
        return _compress(content, response_headers, headers)


class ClassifyEndpoint:
    """``POST /classify?k=5``: the bytes of one image, or a form with several."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await _handle(self._service, "classify", self._classify, scope, receive, send)

    async def _classify(self, call: Call, headers: _Headers, scope: Scope, receive: Receive) -> PlainResponse:
        service = self._service
        query = read_query(scope, "k", "model", "version")
        given_k = _single(query, "k")
        k = 5 if given_k is None else _parse_k(given_k)
        with service.models.lease(_model(query, service), _single(query, "version")) as model:
            call.model = model
            service.refuse_if_full(model)
            with service.admission.enter() as slot:
                body = await read_body(scope, _header(headers, b"content-length"), receive, slot, service.limits)
                call.body_read()
                encoding, kind = _header(headers, b"content-encoding"), _header(headers, b"content-type") or ""
                body = await _unpack(service, call, slot, body, encoding, receive)
                if kind.lower().startswith("multipart/"):
                    reading = service.run_in_executor(read_form, body, kind, model.interface.max_batch)
                    parts = await _cancel_on_disconnect(service, service.before_deadline(call, reading), receive)
                    work = _classify_form(service, call, model, parts, k)
                else:
                    work = _classify_image(service, call, model, body, k, kind)
                answer = await _cancel_on_disconnect(service, work, receive)
        status = 400 if "error" in answer else 200
        answer = {"model": model.name, "version": model.version, **answer, "timing_ms": call.timing_ms()}
        return _compress(dumps(answer), JSON_HEADERS, headers, status)


async def _classify_image(
    service: Service, call: Call, model: ModelVersion, image: Body, k: int, kind: str
) -> dict[str, Any]:
    try:
        predictions = await service.classify(call, model, image, k)
    except DataError as error:
        if kind.lower().startswith(_URL_ENCODED) and _is_of_curl_d(image):  # both of curl's options send this type
            raise RequestError(f"{error}; {_CURL_HINT}") from None
        raise
    return {"predictions": [prediction.to_json() for prediction in predictions]}


def _is_of_curl_d(body: Body) -> bool:
    """Return whether a body that is no image may be what ``curl -d`` sends: a name, or a file without its line ends."""
    data = bytes(body)
    return not (b"\n" in data or b"\r" in data or data.startswith(b"GIF8"))  # GIF is not accepted, however it is sent


async def _classify_form(
    service: Service, call: Call, model: ModelVersion, parts: list[FormPart], k: int
) -> dict[str, Any]:
    """Classify the images of a form concurrently; the result of an unusable one is its error."""

    async def one(part: FormPart) -> dict[str, Any]:
        try:
            predictions = await service.classify(call, model, part.data, k)
        except DataError as error:
            return {"image": part.name, "error": str(error)}
        return {"image": part.name, "predictions": [prediction.to_json() for prediction in predictions]}

    # No more at a time than the queue holds, so that a form alone does not fill it.
    slots = asyncio.Semaphore(model.batching.max_queue)

    async def limited(part: FormPart) -> dict[str, Any]:
        async with slots:
            return await one(part)

    tasks = [asyncio.ensure_future(limited(part)) for part in parts]
    try:
        results = list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
    if all("error" in result for result in results):
        return {"error": f"none of the {len(results)} files is a usable image", "results": results}
    return {"results": results}


_Headers = dict[bytes, bytes]
_Work = Callable[[Call, _Headers, Scope, Receive], Awaitable[PlainResponse]]
_Raw = list[tuple[bytes, bytes]]


async def _handle(service: Service, operation: str, work: _Work, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request and record it."""
    headers: _Headers = dict(scope["headers"])
    line: str | None = None
    call = Call("http", operation, request_id_of(headers.get(b"x-request-id")), _header(headers, b"traceparent"))
    response: PlainResponse | Response
    cut_off: asyncio.CancelledError | None = None
    try:
        response = await work(call, headers, scope, receive)
    except ClientDisconnect:
        service.finish(call, CLIENT_GONE, "the client is gone")
        return
    except asyncio.CancelledError as error:
        if service.admission.state is not ServerState.DRAINING:  # the client's connection has ended
            service.finish(call, CLIENT_GONE, "the client is gone")
            raise
        cut_off = error
        status, line = CUT_OFF.status, str(CUT_OFF)
        response = error_response(CUT_OFF)
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
        service.finish(call, status, line)
    if cut_off is not None:
        raise cut_off


def error_response(error: RequestError) -> Response:
    """Return the response to an error; where the request is still being sent, one that closes the connection."""
    content = dumps({"error": str(error)})
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    if isinstance(error, UnreadBody):
        return ClosingResponse(content, error.status, headers, media_type="application/json")
    return Response(content, error.status, headers, media_type="application/json")


async def _cancel_on_disconnect(service: Service, work: Awaitable[T], receive: Receive) -> T:
    """Wait for work, and cancel it when the client disconnects.

    Raises:
        ClientDisconnect: it did.
    """
    task = asyncio.ensure_future(work)
    watch: list[asyncio.Task[None]] = []

    async def watch_client() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    key = service.timeouts.add(_WATCH_AFTER_S, lambda: watch.append(asyncio.ensure_future(watch_client())))
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


async def _unpack(
    service: Service,
    call: Call,
    slot: AdmissionSlot,
    body: Body,
    encoding: str | None,
    receive: Receive,
) -> Body:
    """Undo the Content-Encoding of a body; the decompressed bytes count as if they had been sent.

    Raises:
        RequestError: broken data (400), too large (413), an unknown encoding (415), no memory left beside other bodies
            (503), or the deadline passed (504).
        ClientDisconnect: the client is gone.
    """
    if encoding is None:
        return body
    work = service.run_in_executor(unpack, body, encoding, service.limits.max_body_bytes)
    plain = await _cancel_on_disconnect(service, service.before_deadline(call, work), receive)
    if not slot.take(max(0, len(plain) - len(body))):
        raise RequestError(BODIES_FULL, 503)
    return plain


def _inline_json_bytes(length: str | None) -> int | None:
    """Return the bytes of a request's JSON, or None where they are too many to parse on the event loop."""
    if length is None or len(length) > 5 or not (length.isascii() and length.isdigit()):
        return None
    return int(length) if int(length) <= _INLINE_JSON_BYTES else None


def _header(headers: _Headers, name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def _compress(content: bytes, headers: _Raw, request_headers: _Headers, status: int = 200) -> PlainResponse:
    """Return the response, compressed where the client accepts that and it is long enough."""
    accepted = _header(request_headers, b"accept-encoding")
    if accepted is not None and len(content) > _MIN_COMPRESSED_BYTES:
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


def _single(query: dict[str, list[str]], name: str) -> str | None:
    values = query.get(name, [])
    if len(values) > 1:
        raise RequestError(f"the URL has the parameter {name} {len(values)} times")
    return values[0] if values else None


def _model(query: dict[str, list[str]], service: Service) -> str:
    """Return the name of the requested model; a server with one model needs none."""
    given, names = _single(query, "model"), service.models.names()
    if given is None and len(names) > 1:
        raise RequestError(f"this server has {', '.join(names)}: name one, such as ?model={names[0]}")
    return given if given is not None else "".join(names)


def read_query(scope: Scope, *known: str) -> dict[str, list[str]]:
    """Return the parameters of a request's URL, each with its values.

    Args:
        scope: of ASGI.
        known: the parameters that there are.

    Raises:
        RequestError: there is another one, or there are too many.
    """
    if not scope["query_string"]:
        return {}
    try:
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise RequestError(f"the URL has more than {_MAX_FIELDS} parameters") from None
    for name in query:
        if name not in known:
            there = f"{scope['path'][:80]} has {', '.join(known)}" if known else f"{scope['path'][:80]} has none"
            raise RequestError(f"unknown parameter {name[:40]!r} of the URL{did_you_mean(name, known)}; {there}")
    return query


def _parse_k(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        raise RequestError(f"k must be a whole number from 1 to 999999999, not {text[:40]!r}")
    return int(text)
