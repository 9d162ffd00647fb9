"""``regnet-deploy serve``: serve models over HTTP and gRPC."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.bundle import Bundle, open_bundle
from regnet_deploy.cli.options import (
    FiniteFloat,
    PositiveFloat,
    SectionedCommand,
    Whole,
    bundle_argument,
    default_option,
    device_option,
    json_option,
    runtime_option,
    threads_type,
)
from regnet_deploy.cli.output import print_message, terminal_progress
from regnet_deploy.cli.streams import discard
from regnet_deploy.errors import UsageError, require

if TYPE_CHECKING:
    from regnet_deploy.runtimes.runtime import Session
    from regnet_deploy.serving.draining_server import ServerReady

#: Options of the command line that are fields of ``ServerSettings`` as they are.
_PASSED_ON = (
    *("host", "port", "grpc_port", "metrics_port", "decoders", "poll_s", "versions", "ready", "linger_s", "drain_s"),
    *("keep_alive_s", "log_format", "log_requests", "trace_url"),
)

#: Headings of the help and their options.
_SECTIONS = {
    "Network": ("host", "port", "grpc_port", "metrics_port", "token_file", "tls_cert", "tls_key"),
    "Model": ("name", "variant", "runtime", "device", "build_engine", "poll_s", "versions", "ready"),
    "Performance (see `regnet-deploy tune`)": ("executors", "threads", "batch", "max_delay_ms", "decoders"),
    "Limits of a request": ("max_batch", "max_body_mb", "max_megapixels", "deadline_ms", "read_timeout_s"),
    "Limits of all requests together": ("max_queue", "max_in_flight", "max_bodies_mb"),
    "Limits of connections": ("max_connections", "keep_alive_s"),
    "Operation": ("linger_s", "drain_s", "hung_s", "log_format", "log_requests", "trace_url"),
}


@click.command(cls=SectionedCommand, sections=_SECTIONS)
@bundle_argument
@default_option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0: all, IPv4 and IPv6.")
@default_option(
    "--port",
    type=Whole(0, 65535),
    default=8000,
    envvar="REGNET_DEPLOY_PORT",
    show_envvar=True,
    help="HTTP port; 0 takes a free one.",
)
@click.option("--grpc-port", type=Whole(0, 65535), help="Port for gRPC.  [default: no gRPC]")
@click.option(
    "--metrics-port",
    type=Whole(0, 65535),
    envvar="REGNET_DEPLOY_METRICS_PORT",
    show_envvar=True,
    help="Port for /metrics only.  [default: --port, if it is on loopback or requires a token]",
)
@default_option("--name", default="regnet", help="Name of the model, if BUNDLE is a bundle.")
@click.option(
    "--variant", metavar="NAME", help="Exported variant to run.  [default: as tuned on this machine, else the fastest]"
)
@runtime_option("Runtime: tensorrt runs engines, the others run ONNX files.")
@device_option("auto is cuda if onnxruntime-gpu and a GPU are present; tensorrt is ONNX Runtime's TensorRT provider.")
@click.option(
    "--build-engine",
    is_flag=True,
    help="Build the engine of --variant from its ONNX file if the bundle has none for this GPU; takes minutes.",
)
@default_option(
    "--poll",
    "poll_s",
    type=FiniteFloat(0, 1e6),
    default=5,
    help="Seconds between two checks for new versions; 0: no checks.",
)
@click.option(
    "--versions",
    multiple=True,
    metavar="[MODEL=]POLICY",
    help="Versions to serve in a folder of models: all, latest:N (the newest N that pass) or 3,5; can be repeated.  "
    "[default: all]",
)
@default_option(
    "--ready",
    metavar="all|any|MODEL",
    default="any",
    help="Models that must answer for /v2/health/ready to be 200.",
)
@click.option("--executors", type=Whole(1, 256), help="Concurrent inferences.  [default: as tuned, else 1]")
@click.option(
    "--threads", type=threads_type(), help="CPU threads of an inference.  [default: as tuned, else cores/executors]"
)
@click.option(
    "--batch", type=Whole(1, 4096), help="Maximum batch of an inference, in images.  [default: as tuned, else 8]"
)
@click.option(
    "--max-delay",
    "max_delay_ms",
    type=FiniteFloat(0, 10_000),
    help="ms for which an incomplete batch waits for more requests.  [default: as tuned, else 0]",
)
@click.option("--decoders", type=Whole(1, 256), help="Processes that decode images.  [default: number of cores]")
@default_option("--max-batch", type=Whole(1, 4096), default=32, help="Maximum number of images in a request.")
@default_option(
    "--deadline",
    "deadline_ms",
    type=PositiveFloat(),
    default=30_000,
    help="ms from a request's arrival until it gets 504 if its inference is not done; a request may ask for less.",
)
@default_option("--max-body-mb", type=PositiveFloat(), default=32, help="Maximum size of a request, MB.")
@default_option(
    "--max-queue",
    type=Whole(1, 1_000_000),
    default=128,
    help="Maximum number of images that wait for an inference; more get 503 and Retry-After.",
)
@default_option(
    "--max-bodies-mb", type=PositiveFloat(), default=256, help="Maximum size of all requests in flight together, MB."
)
@default_option("--max-megapixels", type=PositiveFloat(), default=25, help="Maximum size of an image, megapixels.")
@default_option(
    "--max-in-flight",
    type=Whole(1, 1_000_000),
    default=256,
    help="Maximum number of requests in flight; more get 503 and Retry-After.",
)
@default_option(
    "--max-connections",
    type=Whole(1, 1_000_000),
    default=512,
    help="Maximum number of open connections; for more, idle ones are closed; if none is idle, 503.",
)
@default_option(
    "--keep-alive",
    "keep_alive_s",
    type=PositiveFloat(),
    default=75,
    help="Seconds for which an idle HTTP connection is kept: longer than proxies in front of the server keep theirs.",
)
@default_option(
    "--read-timeout",
    "read_timeout_s",
    type=PositiveFloat(),
    default=30,
    help="Seconds in which the head of a request must arrive, then its body, and in which a client must read.",
)
@default_option(
    "--hung-after",
    "hung_s",
    type=PositiveFloat(),
    default=60,
    help="Seconds of an inference after which /v2/health/live reports that the server hangs.",
)
@default_option(
    "--linger",
    "linger_s",
    type=FiniteFloat(0, 3600),
    default=0,
    help="Seconds after SIGTERM in which /v2/health/ready is 503 but requests are answered, for load balancers.",
)
@default_option(
    "--drain",
    "drain_s",
    type=PositiveFloat(),
    default=30,
    help="Seconds that requests in flight have to finish after SIGTERM.",
)
@click.option(
    "--token-file",
    type=click.Path(),
    help="File with the bearer token that clients must send.  [default: REGNET_DEPLOY_TOKEN, if set]",
)
@click.option("--tls-cert", type=click.Path(), help="Certificate chain (PEM) for TLS; with --tls-key.")
@click.option("--tls-key", type=click.Path(), help="Private key (PEM) of --tls-cert.")
@default_option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", help="Format of the log on stderr."
)
@click.option("--log-requests", is_flag=True, help="Log every request, not only failed ones.")
@click.option(
    "--trace",
    "trace_url",
    metavar="URL",
    help="Send OpenTelemetry spans to this collector, such as http://localhost:4318.",
)
@json_option
def command(bundle_path: str, name: str, build_engine: bool, as_json: bool, **options: Any) -> None:
    """Serve a model: classify images, and run tensors by the Open Inference Protocol v2, over HTTP and gRPC.

    BUNDLE is a bundle or a folder of models: MODEL/VERSION/bundle.json. Golden sets are replayed first: a variant that
    does not agree with the trained model on this machine is not served (exit code 3). When requests are accepted, a
    line that starts with "ready:" is written to stderr (an event with --log-format json; with --json, also an object to
    stdout). A bundle that changes, or a new version beside it, is checked on its golden set and replaces the old one
    without losing a request; if it fails, it is refused and the old one continues to serve.

    \b
    Example:
      regnet-deploy serve
      curl --data-binary @cat.jpg http://127.0.0.1:8000/classify
      regnet-deploy serve models --grpc-port 8001 --token-file token
      regnet-deploy serve --variant trt-fp16 --build-engine
    """
    require("starlette", "serve")
    require("uvicorn", "serve")
    from regnet_deploy.serving.bearer_auth import read_token
    from regnet_deploy.serving.limits import Limits
    from regnet_deploy.serving.model_repository import is_repository
    from regnet_deploy.serving.model_version import ServeOptions
    from regnet_deploy.serving.server import ServerSettings, run_server

    delay_ms = options["max_delay_ms"]
    settings = ServerSettings(
        name=name,
        model=ServeOptions(
            variant=options["variant"],
            runtime=options["runtime"],
            device=options["device"],
            threads=options["threads"],
            executors=options["executors"],
            batch=options["batch"],
            max_delay_s=None if delay_ms is None else delay_ms / 1000,
            build=_build if build_engine else None,
        ),
        limits=Limits(
            max_batch=options["max_batch"],
            max_body_bytes=int(options["max_body_mb"] * 1e6),
            max_bodies_bytes=int(options["max_bodies_mb"] * 1e6),
            max_pixels=int(options["max_megapixels"] * 1e6),
            max_in_flight=options["max_in_flight"],
            max_queue=options["max_queue"],
            max_connections=options["max_connections"],
            read_timeout_s=options["read_timeout_s"],
            deadline_s=options["deadline_ms"] / 1000,
            hung_s=options["hung_s"],
        ),
        token=read_token(options["token_file"]),
        tls=_tls_files(options["tls_cert"], options["tls_key"]),
        **{option: options[option] for option in _PASSED_ON},
    )
    if is_repository(bundle_path):
        if click.get_current_context().get_parameter_source("name") is not click.core.ParameterSource.DEFAULT:
            raise UsageError(
                f"--name is for a bundle; {bundle_path} is a folder of models, whose names are those of their folders"
            )
    else:
        open_bundle(bundle_path)  # a wrong path is reported before a port in use

    def announce(ready: ServerReady) -> None:
        if settings.log_format == "text":
            _print_ready(ready, bundle_path)
        if as_json:
            try:
                click.echo(json.dumps(ready.to_json()))
            except OSError as error:  # a server whose stdout nobody can take serves all the same
                print_message(f"cannot write the output: {error.strerror}")
                discard(sys.stdout)

    run_server(bundle_path, settings, announce)


def _print_ready(ready: ServerReady, bundle_path: str) -> None:
    for model, agreement in ready.models:
        if not model.card["trained"]:
            print_message(f"{bundle_path} is not trained: predictions are meaningless")
        if model.card["restriction"]:
            print_message(f"{model.name}: {model.card['restriction']}")
        if model.note:
            print_message(f"{model.name}: {model.note}")
        print_message(
            f"ready: {ready.url} model {model.name} version {model.version}, variant {model.variant} by "
            f"{model.session.runtime} on {model.session.device}; {model.batching.executors} x batch "
            f"{model.batching.batch}; golden set of {agreement.images} images agrees, max |error| "
            f"{agreement.max_abs_error:.2g}"
        )
    if ready.grpc_port is not None:
        print_message(f"gRPC on port {ready.grpc_port}")
    if ready.metrics_url is not None:
        print_message(f"metrics: {ready.metrics_url}")


def _tls_files(certificate: str | None, key: str | None) -> tuple[Path, Path] | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("--tls-cert and --tls-key need each other")
    return Path(certificate), Path(key)


def _build(bundle: Bundle, variant: str) -> Session:
    """Build the engine of a variant for this machine and this run only: the bundle may be read-only."""
    from regnet_deploy.engines.engine_builder import rebuild_engine
    from regnet_deploy.engines.gpu import find_gpu

    print_message(f"{variant}: building an engine for this machine")
    with terminal_progress() as progress:
        progress.step(f"{variant}: building")
        built = rebuild_engine(bundle, variant, find_gpu(), progress)
    if built.session is None:
        raise UsageError(f"{variant} cannot be served: {built.engine.note}")
    return built.session
