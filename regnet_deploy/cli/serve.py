"""``regnet-deploy serve``: answer requests over HTTP."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.bundle import Bundle, open_bundle
from regnet_deploy.cli.options import bundle_argument, json_option
from regnet_deploy.cli.output import say
from regnet_deploy.errors import UsageError, require

if TYPE_CHECKING:
    from regnet_deploy.runtimes.golden import Agreement
    from regnet_deploy.runtimes.runtime import Session
    from regnet_deploy.serving.served import Served

#: Names that stand in a URL as they are.
_MODEL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")


class Positive(click.FloatRange):
    """A number above 0 and below 10^9: neither ``nan`` nor ``inf``."""

    def __init__(self) -> None:
        super().__init__(0, 1e9, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a number."""
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value!r} is not a number above 0", param, ctx)
        return number


@click.command()
@bundle_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    envvar="REGNET_DEPLOY_PORT",
    show_envvar=True,
    help="0 takes a free one.",
)
@click.option("--variant", metavar="NAME", help="Exported variant to run.  [default: the fastest that is proved]")
@click.option("--name", default="regnet", show_default=True, help="Name of the model in the protocol.")
@click.option("--threads", type=click.IntRange(1), help="Threads of an inference on the CPU.  [default: the cores]")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]),
    default="auto",
    show_default=True,
    help="auto is cuda where onnxruntime-gpu and a GPU are there; tensorrt is ONNX Runtime's provider of TensorRT.",
)
@click.option(
    "--build-engine",
    is_flag=True,
    help="Build the engine of --variant from its ONNX file where the bundle has none for this GPU; takes minutes.",
)
@click.option("--max-batch", type=click.IntRange(1), default=32, show_default=True, help="Images in one request.")
@click.option("--max-body-mb", type=Positive(), default=32, show_default=True, help="Size of one request.")
@click.option(
    "--max-bodies-mb", type=Positive(), default=256, show_default=True, help="Size of all requests in flight together."
)
@click.option(
    "--max-megapixels",
    type=Positive(),
    default=25,
    show_default=True,
    help="Size of one image, and of those decoded at a time.",
)
@click.option(
    "--max-in-flight",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Requests at a time; more get 503 and Retry-After.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Open connections; more get 503 and are closed.",
)
@click.option(
    "--read-timeout",
    "read_timeout_s",
    type=Positive(),
    default=30,
    show_default=True,
    help="Seconds in which the head of a request must have arrived, and then its body.",
)
@click.option(
    "--drain",
    "drain_s",
    type=Positive(),
    default=30,
    show_default=True,
    help="Seconds that requests have to finish after SIGTERM.",
)
@json_option
def command(
    bundle_path: str,
    host: str,
    port: int,
    variant: str | None,
    name: str,
    threads: int | None,
    device: Any,
    build_engine: bool,
    max_batch: int,
    max_body_mb: float,
    max_bodies_mb: float,
    max_megapixels: float,
    max_in_flight: int,
    max_connections: int,
    read_timeout_s: float,
    drain_s: float,
    as_json: bool,
) -> None:
    """Answer requests over HTTP: images to labels, tensors by the Open Inference Protocol v2.

    The golden set is replayed first: a variant that does not agree with the trained model on this machine is not served
    (exit code 3). When requests are answered, one line beginning with "ready:" is printed.

    \b
    Example:
      regnet-deploy serve
      curl --data-binary @cat.jpg http://127.0.0.1:8000/classify
      regnet-deploy serve --variant trt-fp16 --build-engine
    """
    require("starlette", "serve")
    require("uvicorn", "serve")
    from regnet_deploy.runtimes.rereading import read_bundle
    from regnet_deploy.serving.served import Limits, load_served
    from regnet_deploy.serving.server import bind, serve, url_of

    if not _MODEL_NAME.match(name):
        raise UsageError(
            f"--name {name!r} must be letters, digits, '.', '_' or '-', 128 at most, not beginning with '.'"
        )
    if max_bodies_mb < max_body_mb:
        raise UsageError(f"--max-bodies-mb {max_bodies_mb:g} leaves no room for one of --max-body-mb {max_body_mb:g}")
    if build_engine and variant is None:
        raise UsageError("--build-engine builds the engine of one variant: name it, such as --variant trt-fp16")
    limits = Limits(
        max_batch=max_batch,
        max_body_bytes=int(max_body_mb * 1e6),
        max_bodies_bytes=int(max_bodies_mb * 1e6),
        max_pixels=int(max_megapixels * 1e6),
        max_in_flight=max_in_flight,
        max_connections=max_connections,
        read_timeout_s=read_timeout_s,
    )

    def load(bundle: Bundle) -> tuple[Bundle, Served]:
        return bundle, load_served(
            bundle,
            variant=variant,
            model=name,
            threads=threads,
            device=device,
            limits=limits,
            build=_build if build_engine else None,
        )

    open_bundle(bundle_path)  # a wrong path is said before a port in use
    with bind(host, port) as bound:
        bundle, served = read_bundle(bundle_path, load)
        session, url = served.session, url_of(bound)

        def announce(agreement: Agreement) -> None:
            if not bundle.is_trained:
                say(f"{bundle_path} is not trained: its answers mean nothing yet")
            say(
                f"ready: {url} model {name}, variant {served.variant} by {session.runtime} on {session.device}; "
                f"golden set of {agreement.images} images agrees, max |error| {agreement.max_abs_error:.2g}"
            )
            if as_json:
                facts = {"url": url, "model": name, "variant": served.variant, "runtime": session.runtime}
                click.echo(json.dumps({**facts, "device": session.device, "golden": agreement.to_json()}))

        serve(served, bound, drain_s, announce)


def _build(bundle: Bundle, variant: str) -> Session:
    """Build the engine of a variant for this machine, for this run alone: the bundle may be read-only."""
    from regnet_deploy.engines.gpu import find_gpu
    from regnet_deploy.engines.making import remake_engine

    say(f"{variant}: building an engine for this machine")
    made = remake_engine(bundle, variant, find_gpu(), lambda steps, phase: None, say)
    if made.session is None:
        raise UsageError(f"{variant} cannot be served: {made.entry['note']}")
    return made.session
