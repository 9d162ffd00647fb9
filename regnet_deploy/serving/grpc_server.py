"""The Open Inference Protocol and the health check over gRPC, on the event loop of the HTTP server.

Every call is handled as a stream of one message, which looks the same to a client as a call of one message. So a call
can be refused before its message is read, and the message's bytes can be checked before they are parsed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from regnet_deploy import __version__
from regnet_deploy.errors import ServerError, UsageError, require
from regnet_deploy.protobuf import messages
from regnet_deploy.serving.admission import AdmissionSlot, ServerState
from regnet_deploy.serving.app import SERVER
from regnet_deploy.serving.bearer_auth import check_token, is_bearer
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.grpc_messages import parse, read_message, read_request, write_response
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.listeners import shut_down_listeners
from regnet_deploy.serving.message_limits import MessageLimits
from regnet_deploy.serving.protocol import EXTENSIONS, read_document, respond
from regnet_deploy.serving.request_body import BODIES_FULL
from regnet_deploy.serving.request_log import request_id_of
from regnet_deploy.serving.service import CLIENT_GONE, CUT_OFF, Call, Service, request_error_of

EXTRA = "grpc"

PROTOCOL = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

#: HTTP status -> gRPC status; others are INVALID_ARGUMENT below 500 and INTERNAL above.
_CODES = {
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

#: Share of the lingering after which a connection is replaced; the library adds or takes off a tenth. In the first half
#: of the lingering new connections are accepted, in the second half all that are there reach that age.
_AGE_SHARE = 0.4
#: Seconds that running calls have, where somebody else sets their end.
_FOR_EVER_S = 1e6

#: Keys of metadata of which a call has one: a proxy may have checked the other one.
_SINGLE_KEYS = frozenset(("authorization", "x-request-id", "traceparent"))

#: Calls at a time beside those that :class:`Limits` counts: queries of the server and its models.
_QUERIES = 64
#: Bytes of a query, and seconds in which it must arrive.
_QUERY_BYTES, _QUERY_S = 64 * 2**10, 5.0
#: Seconds that a message has to arrive while other calls wait.
_GRACE_S = 1.0
#: Health checks that are read at a time; one more ends the oldest. Seconds for each to arrive.
_CHECKS, _CHECK_S = 16, 2.0


class GrpcServer:
    """A running gRPC server.

    Attributes:
        port: on which it listens.
        url: host and port, as gRPC clients take them.
    """

    def __init__(self, port: int, url: str, server: Any, calls: _Calls) -> None:
        self.port, self.url, self._server, self._calls = port, url, server, calls
        self._draining: asyncio.Task[None] | None = None
        self._is_listening = True

    def stop_listening(self) -> None:
        """Refuse new connections; those that are open are answered until they are replaced for their age.

        The library does this only where it ends the server, which cancels calls that arrive before the client knows. So
        the listening socket is shut down below the library, on Linux.
        """
        if self._is_listening:
            self._is_listening = False
            shut_down_listeners(self.port)

    def drain(self) -> None:
        """Refuse new connections and calls, and tell clients so (GOAWAY); running calls go on."""
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._server.stop(_FOR_EVER_S))

    async def stop(self, drain_s: float = 1.0) -> None:
        """Refuse new calls, and give running ones ``drain_s`` seconds to end.

        Those that are cut off get UNAVAILABLE. Returns when all have ended. The last answers may still be on their way
        to the clients.
        """
        self._calls.stopping = True
        await self._server.stop(drain_s)
        if self._draining is not None:
            await self._draining


async def start_grpc(
    service: Service,
    host: str,
    port: int,
    *,
    token: str | None = None,
    tls: tuple[Path, Path] | None = None,
    linger_s: float = 0.0,
) -> GrpcServer:
    """Listen for gRPC on the running event loop.

    Args:
        service: answers the requests.
        host: name or address to listen on.
        port: 0 takes a free one.
        token: bearer token that calls must send, except health checks; None: calls need none.
        tls: files of the certificate chain and its private key (PEM); None: no TLS.
        linger_s: seconds between the decision to end and :meth:`GrpcServer.drain`. Each connection is replaced before
            it is so old (GOAWAY, without losing a call); below 1 s none is.

    Raises:
        MissingExtra: grpcio is not installed.
        ServerError: the port is taken, or the host is not this machine's.
        UsageError: the token is not valid, or the certificate or its key cannot be used.
    """
    # Else each client without TLS is a line of the log, and so is the end of the listening socket.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    aio = require("grpc.aio", EXTRA)
    limits = service.limits
    server = aio.server(options=_options(limits, linger_s), maximum_concurrent_rpcs=limits.max_in_flight + _QUERIES)
    calls = _Calls(service, token)
    server.add_generic_rpc_handlers((_handlers(PROTOCOL, calls.protocol()), _handlers(HEALTH, calls.health())))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    credentials = None if tls is None else _credentials(*tls)
    try:
        if credentials is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        reason = "the port is taken, or the host is not this machine's"
        if tls is not None:
            reason += f", or {tls[0]} and {tls[1]} are no certificate and its key"
        raise ServerError(f"cannot listen for gRPC on {address}: {reason}") from None
    await server.start()
    return GrpcServer(bound, f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}", server, calls)


def _options(limits: Limits, linger_s: float) -> list[tuple[str, int]]:
    age = [("grpc.max_connection_age_ms", int(linger_s * 1000 * _AGE_SHARE))] if linger_s >= 1 else []
    return [
        *age,
        ("grpc.max_receive_message_length", limits.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", 16 * 2**10),
        ("grpc.absolute_max_metadata_size", 32 * 2**10),
        ("grpc.max_concurrent_streams", limits.max_in_flight + _QUERIES),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.so_reuseport", 0),  # a port in use is an error
        # Detects clients that vanished, so that their requests leave the queue.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Clients may ask so often whether an idle connection is still there; both options are needed for that.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _credentials(certificate: Path, key: Path) -> Any:
    parts = []
    for path in (key, certificate):
        try:
            parts.append(path.read_bytes())
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
    return require("grpc", EXTRA).ssl_server_credentials([tuple(parts)])


def _handlers(name: str, calls: dict[str, Callable[[Any], Awaitable[bytes]]]) -> Any:
    grpc = require("grpc", EXTRA)

    def handler(call: Callable[[Any], Awaitable[bytes]]) -> Any:
        async def answer(_: Any, context: Any) -> bytes:
            try:
                return await call(context)
            except Exception as error:
                refusal = request_error_of(error)
            code = _CODES.get(refusal.status, "INVALID_ARGUMENT" if refusal.status < 500 else "INTERNAL")
            after: tuple[tuple[str, str], ...] = ()
            if refusal.retry_after_s:  # clients with a retry policy wait for this long
                after = (("grpc-retry-pushback-ms", str(refusal.retry_after_s * 1000)),)
            if context.done():  # the library has answered it, for example a message that was too large
                raise asyncio.CancelledError
            await context.abort(getattr(grpc.StatusCode, code), str(refusal), after)
            raise AssertionError("abort raises")

        return grpc.stream_unary_rpc_method_handler(answer)

    return grpc.method_handlers_generic_handler(name, {method: handler(call) for method, call in calls.items()})


class _Calls:
    """The calls: each takes its context and returns the bytes of its response.

    Attributes:
        stopping: calls that are cancelled from now on are cut off by the server.
    """

    def __init__(self, service: Service, token: str | None) -> None:
        self._service = service
        self._token = None if token is None else check_token(token)
        self.stopping = False
        limits = service.limits
        # The size of a message is known when it has arrived: as many are read at a time as fit if all are large.
        messages_at_a_time = max(4, limits.max_bodies_bytes // max(1, limits.max_body_bytes))
        waiting = max(1, limits.max_in_flight // 2)
        self._infer_limits = MessageLimits(
            messages_at_a_time,
            _GRACE_S,
            per_peer=messages_at_a_time - messages_at_a_time // 4,
            waiting_per_peer=waiting,
        )
        self._query_limits = MessageLimits(8, _GRACE_S, per_peer=6, waiting_per_peer=_QUERIES)
        self._check_limits = MessageLimits(_CHECKS, 0.0, per_peer=_CHECKS, waiting_per_peer=1)

    def protocol(self) -> dict[str, Callable[[Any], Awaitable[bytes]]]:
        """Return the calls of the Open Inference Protocol by name."""
        return {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._query("ModelReady", self._model_ready),
            "ServerMetadata": self._query("ServerMetadata", self._server_metadata),
            "ModelMetadata": self._query("ModelMetadata", self._model_metadata),
            "ModelConfig": self._query("ModelConfig", self._model_config),
            "ModelStatistics": self._query("ModelStatistics", self._model_statistics),
            "RepositoryIndex": self._query("RepositoryIndex", self._repository_index),
            "RepositoryModelLoad": self._query("RepositoryModelLoad", self._model_control),
            "RepositoryModelUnload": self._query("RepositoryModelUnload", self._model_control),
            "ModelInfer": self._infer,
        }

    def health(self) -> dict[str, Callable[[Any], Awaitable[bytes]]]:
        """Return the call of the health check."""
        return {"Check": self._check}

    async def _infer(self, context: Any) -> bytes:
        left = context.time_remaining()
        metadata = _metadata(context)
        call = Call("grpc", "infer", request_id_of(metadata.get("x-request-id")), metadata.get("traceparent"))
        status, error = CLIENT_GONE, None
        try:
            answer = await self._answer(context, call, left)
            status = 200
            return answer
        except asyncio.CancelledError:
            if left is not None and context.time_remaining() <= 0:
                status, error = 504, "the call's deadline passed"
            elif self.stopping:
                status, error = CUT_OFF.status, str(CUT_OFF)
            raise
        except Exception as raised:
            refusal = request_error_of(raised)
            status, error = refusal.status, str(refusal)
            raise refusal from None
        finally:
            self._service.finish(call, status, error)

    async def _answer(self, context: Any, call: Call, left: float | None) -> bytes:
        self._authorize(context)
        service = self._service
        with service.admission.enter() as slot:
            data = await self._read(context, slot)
            call.body_read()
            message, raw = read_message(data)
            with service.models.lease(message.model_name, message.model_version or None) as model:
                call.model = model
                if raw:
                    document, rest = read_request(message, raw, model.interface)
                else:  # each number becomes a Python object
                    document, rest = await service.run_in_executor(read_request, message, raw, model.interface)
                request = read_document(document, rest, model.interface)
                if left is not None:
                    request = request._replace(timeout_s=min(left, request.timeout_s or left))
                logits = await service.infer(call, model, request)
            response = respond(request, logits, model.interface)
            return write_response(response.document, [response.raw])

    async def _read(self, context: Any, slot: AdmissionSlot) -> bytes:
        data = await _read_message(context, self._infer_limits, self._service.limits.read_timeout_s)
        if not slot.take(len(data)):
            raise RequestError(BODIES_FULL, 503)
        return data

    def _query(self, name: str, answer: Callable[[Any], dict[str, Any]]) -> Callable[[Any], Awaitable[bytes]]:
        """Return the call ``name``: parses its message and writes the response that ``answer`` returns."""

        async def call(context: Any) -> bytes:
            self._authorize(context)
            data = await _read_message(context, self._query_limits, _QUERY_S)
            return _serialize(f"inference.{name}Response", answer(_parse(data, f"inference.{name}Request")))

        return call

    async def _server_live(self, context: Any) -> bytes:
        return _serialize("inference.ServerLiveResponse", {"live": not self._service.models.hung()})

    async def _server_ready(self, context: Any) -> bytes:
        return _serialize("inference.ServerReadyResponse", {"ready": self._ready()})

    async def _check(self, context: Any) -> bytes:
        data = await _read_message(context, self._check_limits, _CHECK_S)
        name = _parse(data, "grpc.health.v1.HealthCheckRequest").service
        if name in ("", PROTOCOL, HEALTH):
            ready = self._ready()
        else:
            self._authorize(context)
            if name not in self._service.models.names():
                raise RequestError(f"unknown service {name[:80]!r}; there are {PROTOCOL} and the models' names", 404)
            ready = self._model_is_ready(name, None)
        return _serialize("grpc.health.v1.HealthCheckResponse", {"status": "SERVING" if ready else "NOT_SERVING"})

    def _model_ready(self, request: Any) -> dict[str, Any]:
        return {"ready": self._model_is_ready(request.name, request.version or None)}

    def _server_metadata(self, request: Any) -> dict[str, Any]:
        return {"name": SERVER, "version": __version__, "extensions": list(EXTENSIONS)}

    def _model_metadata(self, request: Any) -> dict[str, Any]:
        models = self._service.models
        return models.get(request.name, request.version or None).metadata(models.versions(request.name))

    def _model_config(self, request: Any) -> dict[str, Any]:
        return {"config": self._service.models.get(request.name, request.version or None).config()}

    def _model_statistics(self, request: Any) -> dict[str, Any]:
        models = self._service.models
        if request.version:
            return {"model_stats": [models.get(request.name, request.version).stats()]}
        if request.name:
            models.get(request.name)  # raises for an unknown name
        chosen = [model for model in models.all() if request.name in ("", model.name)]
        return {"model_stats": [model.stats() for model in chosen]}

    def _repository_index(self, request: Any) -> dict[str, Any]:
        index = self._service.models.index()
        return {"models": [entry for entry in index if entry["state"] == "READY" or not request.ready]}

    def _model_control(self, request: Any) -> dict[str, Any]:
        raise RequestError("explicit model load / unload is not allowed: models are loaded from their folder", 503, 0)

    def _ready(self) -> bool:
        return self._service.admission.state is ServerState.READY and self._service.models.ready()

    def _model_is_ready(self, name: str, version: str | None) -> bool:
        try:
            self._service.models.get(name, version)
        except RequestError:
            return False
        return self._service.admission.state is ServerState.READY

    def _authorize(self, context: Any) -> None:
        if self._token is None:
            return
        if not is_bearer(_metadata(context).get("authorization", "").encode(), self._token):
            raise RequestError("a bearer token is needed: metadata authorization: Bearer ...", 401)


async def _read_message(context: Any, limits: MessageLimits, timeout_s: float) -> bytes:
    data = await limits.read(context.peer(), context.read, timeout_s)
    if not isinstance(data, bytes):
        raise RequestError("the client is gone, or its message is too large", CLIENT_GONE)
    return data


def _parse(data: bytes, name: str) -> Any:
    if len(data) > _QUERY_BYTES:
        raise RequestError(f"a {name} may have {_QUERY_BYTES} bytes, not {len(data)}", 413)
    return parse(data, name)


def _metadata(context: Any) -> dict[str, str]:
    """Return the text metadata of a call; a key of which there is one and that has two values is an error (400)."""
    found: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str) and found.setdefault(key, value) != value and key in _SINGLE_KEYS:
            raise RequestError(f"the call has the metadata {key} twice, with two values")
    return found


def _serialize(name: str, values: dict[str, Any]) -> bytes:
    data: bytes = messages.message(name, values, ignore_unknown=True).SerializeToString()
    return data
