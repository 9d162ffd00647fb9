"""``regnet-deploy engines``: which engines does a bundle have, and which of them run on this machine?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.cli.options import bundle_argument, json_option
from regnet_deploy.cli.output import combined_error, print_json, print_message, print_table, terminal_progress

if TYPE_CHECKING:
    from regnet_deploy.engines.bundle_engines import StoredEngine


@click.command()
@bundle_argument
@click.option(
    "--build", is_flag=True, help="Build and prove those that are missing for this machine's GPU from the ONNX files."
)
@json_option
def command(bundle_path: str, build: bool, as_json: bool) -> None:
    """List the TensorRT engines of a bundle: what each was built for, whether it is proved, whether it runs here.

    \b
    Example:
      regnet-deploy engines
      regnet-deploy engines my-bundle --json
      regnet-deploy engines my-bundle --build
    """
    if build:
        _build(bundle_path)
    from regnet_deploy.bundle import open_bundle
    from regnet_deploy.engines.bundle_engines import engine_variants, fits, library_here, missing_engine_error
    from regnet_deploy.engines.gpu import find_gpu

    bundle, gpu = open_bundle(bundle_path), find_gpu()
    variants = engine_variants(bundle)
    libraries = {variant.runtime: library_here(variant.runtime) for variant in variants.values()}
    engines = [
        (name, replace(one, unsupported_reason=missing_engine_error(bundle, one.file) or one.unsupported_reason))
        for name, variant in variants.items()
        for one in fits(bundle, name, libraries[variant.runtime], gpu)
    ]
    if as_json:
        print_json(
            {
                "bundle": bundle_path,
                "gpu": vars(gpu) if gpu else None,
                "libraries": {name: str(library) for name, library in libraries.items()},
                "engines": [_json(name, engine) for name, engine in engines],
            }
        )
        return
    here = f"{gpu.name} (compute capability {gpu.compute_capability})" if gpu else "no NVIDIA GPU"
    if not engines:
        click.echo(f"{bundle_path} has no engines: `regnet-deploy export --trt{bundle.argument}` builds them")
        return
    columns = ("engine", "precision", "built by", "for", "proved", "runs here", "batches", "MiB")
    rows = [_row(name, engine) for name, engine in engines]
    print_table(f"{bundle_path}: {len(rows)} engines; this machine has {here}", columns, rows, left=6)


def _build(bundle_path: str) -> None:
    """Add what is missing for this machine.

    Raises:
        RegnetDeployError: there is no GPU, or an engine could not be built or does not agree; the others are added.
    """
    from regnet_deploy.bundle import ensure_writable, open_bundle
    from regnet_deploy.engines.gpu import find_gpu
    from regnet_deploy.errors import UsageError
    from regnet_deploy.exporting.engine_rebuild import rebuild_engines

    ensure_writable(open_bundle(bundle_path))
    if find_gpu() is None:
        raise UsageError("--build builds engines for the GPU of this machine, and the NVIDIA driver shows none")
    with terminal_progress() as progress:
        rebuilt = rebuild_engines(bundle_path, progress)
    for name in rebuilt.built:
        print_message(f"{name}: built for this machine")
    if rebuilt.rejected:
        raise combined_error(rebuilt.rejected)


def _row(name: str, engine: StoredEngine) -> tuple[str, ...]:
    identity, options = engine.identity, engine.identity.options
    return (
        f"{name} {identity.key[:12]}",
        identity.precision,
        identity.builder,
        identity.built_for,
        "yes" if engine.is_proved else "no",
        engine.unsupported_reason or "yes",
        f"{options.min_batch} to {options.max_batch}, tuned for {options.tuned_batch}",
        f"{engine.engine.bytes / 2**20:.1f}",
    )


def _json(name: str, engine: StoredEngine) -> dict[str, Any]:
    reason = engine.unsupported_reason
    return {"variant": name, **engine.engine.to_json(), "fits": reason is None, "why_not": reason}
