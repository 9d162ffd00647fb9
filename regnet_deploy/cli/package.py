"""``regnet-deploy package``: the bundle for Triton, KServe, Ray Serve or docker compose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from regnet_deploy.cli.options import FiniteFloat, Whole, bundle_argument, json_option, threads_type
from regnet_deploy.cli.output import print_json, print_message


@click.command()
@bundle_argument
@click.option(
    "--triton", is_flag=True, help="Triton model repository: the network, and an ensemble that takes image files."
)
@click.option("--kserve", is_flag=True, help="KServe manifests: one for this server, one for Triton.")
@click.option("--ray", is_flag=True, help="Ray Serve application that runs this server in each replica.")
@click.option("--compose", is_flag=True, help="Docker compose project: this server, Prometheus with alerts, Grafana.")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(),
    help="Folder to write; with several targets, the parent of their folders.  [default: regnet-<target>]",
)
@click.option("--force", is_flag=True, help="Replace a folder that an earlier run of this command wrote.")
@click.option("--name", default="regnet", show_default=True, help="Name of the model in the protocol.")
@click.option("--variant", metavar="NAME", help="Exported variant to run.  [default: the fastest proved one]")
@click.option("--gpu", is_flag=True, help="Run it on an NVIDIA GPU.")
@click.option(
    "--image", default="regnet-deploy", show_default=True, help="Container image of the server, for KServe and compose."
)
@click.option(
    "--triton-image",
    default="regnet-triton",
    show_default=True,
    help="Container image of Triton with Pillow, for KServe; the Dockerfile of --triton builds it.",
)
@click.option(
    "--storage",
    metavar="URI",
    help="Where KServe finds the bundle, such as pvc://claim/path.  [default: /bundle of the image]",
)
@click.option(
    "--replicas", type=Whole(1, 1000), default=1, show_default=True, help="Replicas for KServe and Ray Serve."
)
@click.option(
    "--executors",
    type=Whole(1, 256),
    help="Inferences that run at the same time.  [default: as tuned, else 1]",
)
@click.option(
    "--threads", type=threads_type(), help="CPU threads for an inference.  [default: as tuned, else all cores]"
)
@click.option(
    "--decoders",
    type=Whole(1, 256),
    help="Processes that decode images.  [default: one for each core; Triton: 2]",
)
@click.option(
    "--batch",
    type=Whole(1, 4096),
    help="Largest batch of an inference, images.  [default: as tuned, else that of serve; Triton: 32]",
)
@click.option("--max-delay", "max_delay_ms", type=FiniteFloat(0, 10_000), help="Longest wait for a fuller batch, ms.")
@click.option("--max-queue", type=Whole(1, 10**6), help="Images (on Triton: requests) that may wait; more are refused.")
@click.option(
    "--deadline", "deadline_ms", type=FiniteFloat(1, 1e7), help="Longest wait of a request, ms.  [default: 30000]"
)
@json_option
def command(
    bundle_path: str,
    triton: bool,
    kserve: bool,
    ray: bool,
    compose: bool,
    output: str | None,
    force: bool,
    as_json: bool,
    batch: int | None,
    **options: Any,
) -> None:
    """Write folders that run the bundle on other servers, each with a README that says how to start it.

    \b
    Example:
      regnet-deploy package --triton
      regnet-deploy package mine --kserve -o deploy --image example/regnet:1.0
      regnet-deploy package --triton --gpu --variant trt-fp16
    """
    from regnet_deploy.bundle import open_bundle
    from regnet_deploy.targets.package import package
    from regnet_deploy.targets.settings import DeploymentSettings

    chosen = [
        target
        for target, wanted in (("triton", triton), ("kserve", kserve), ("ray", ray), ("compose", compose))
        if wanted
    ]
    settings = DeploymentSettings(max_batch=batch, **options)
    bundle = open_bundle(bundle_path)
    variant, packages = package(bundle, chosen, settings, Path(output) if output else None, force=force)
    if not bundle.is_trained:
        print_message(f"{bundle_path} is not trained: predictions are meaningless")
    if bundle.manifest.imported and bundle.manifest.imported.restriction:
        print_message(bundle.manifest.imported.restriction)
    if as_json:
        print_json(
            {
                "bundle": bundle_path,
                "variant": variant,
                "packages": [
                    {"target": one.target, "folder": str(one.folder), "files": list(one.files)} for one in packages
                ],
            }
        )
        return
    for one in packages:
        click.echo(f"{one.target}: {one.folder} runs {variant} as {settings.name}; see {one.folder}/README.md")
