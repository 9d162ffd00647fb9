"""Inference: in this process, or by a server in one of its threads."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

from regnet_deploy.api.arguments import PATH, expect
from regnet_deploy.api.bundles import bundle_path
from regnet_deploy.api.variants import open_weights
from regnet_deploy.bundle import DEFAULT_PATH, Bundle
from regnet_deploy.errors import MissingExtra, MissingPart, require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from regnet_deploy.runtimes.classifier import Classifier, ImageLike
    from regnet_deploy.runtimes.predictions import Prediction
    from regnet_deploy.runtimes.runtime import Device, Runtime, Session
    from regnet_deploy.serving.in_process import RunningServer
    from regnet_deploy.serving.server import ServerSettings


def open_classifier(
    bundle: str | Path | Bundle = DEFAULT_PATH,
    *,
    variant: str | None = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    threads: int | None = None,
) -> Classifier:
    """Open a network of a bundle for inference in this process.

    The golden set of a variant is replayed when it is opened for the first time with this runtime on this machine.

    Args:
        bundle: the bundle, or its folder.
        variant: name of an exported variant; None is the fastest that is proved, or the weights in PyTorch where
            nothing has been exported.
        device: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``.
        runtime: ``auto``, ``onnxruntime``, ``tensorrt`` or ``openvino``.
        threads: CPU threads; None is every core that this process may use.

    Raises:
        BundleError: the bundle is missing or damaged.
        UsageError: the variant does not exist or cannot be run on this machine.
        ProofError: the variant does not agree with its golden set on this machine.
        MissingExtra: the runtime is not installed.
    """
    expect("threads", threads, (Integral, NoneType), "a number of CPU threads or None")
    expect("variant", variant, (str, NoneType), "the name of a variant or None")
    from regnet_deploy.bundle import read_bundle
    from regnet_deploy.runtimes.classifier import Classifier
    from regnet_deploy.runtimes.default_variant import fallback_note
    from regnet_deploy.runtimes.predictions import labels_of

    def load(opened: Bundle) -> Classifier:
        name, session = _open_session(opened, variant, threads, device, runtime)
        note = fallback_note(opened, name, device, runtime) if name and variant is None else None
        return Classifier(session, opened.preprocessing, labels_of(opened), name, opened.is_trained, note)

    return read_bundle(bundle_path(bundle), load)


def predict(
    bundle: str | Path | Bundle,
    images: ImageLike | Sequence[ImageLike] | NDArray[np.uint8],
    *,
    k: int = 5,
    variant: str | None = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
) -> list[list[Prediction]]:
    """Return the most probable classes of images: paths, arrays of uint8, or PIL images.

    The network is opened for this call alone; :func:`open_classifier` keeps it open.

    Args:
        bundle: the bundle, or its folder.
        images: one image or a sequence of them; arrays are ``(h, w, 3)`` RGB or ``(h, w, 1)`` gray.
        k: classes to return for each image.
        variant: name of an exported variant; see :func:`open_classifier`.
        device: where to run it.
        runtime: what runs it.

    Returns:
        For each image a list of predictions, the most probable class first.

    Raises:
        DataError: an image cannot be read.
        RegnetDeployError: see :func:`open_classifier`.
    """
    expect("k", k, Integral, "a whole number")
    return open_classifier(bundle, variant=variant, device=device, runtime=runtime).predict(images, k=k)


def serve(path: str | Path = DEFAULT_PATH, settings: ServerSettings | None = None) -> RunningServer:
    """Start a server in a thread of this process and return it when it answers requests.

    Use it as a context manager: ``with rd.serve("regnet-bundle") as server: ... server.url``. Its log goes to stderr.
    To close it drains at once: ``linger_s`` applies to signals, which a server in a thread does not handle.

    Args:
        path: a bundle, or a folder of models (``MODEL/VERSION/bundle.json``).
        settings: the options of ``regnet-deploy serve``; by default a free port of this machine.

    Raises:
        ProofError: a golden set disagrees on this machine.
        ServerError: the address is in use or not allowed.
        UsageError: the TLS files cannot be used.
        RegnetDeployError: nothing at ``path`` can be served.
    """
    require("starlette", "serve")
    require("uvicorn", "serve")
    from regnet_deploy.serving.in_process import RunningServer
    from regnet_deploy.serving.server import ServerSettings

    expect("path", path, PATH, "a bundle's folder or a folder of models")
    settings = ServerSettings(port=0) if settings is None else settings
    expect("settings", settings, ServerSettings, "ServerSettings such as rd.ServerSettings(port=8000)")
    return RunningServer(path, settings)


def _open_session(
    bundle: Bundle, variant: str | None, threads: int | None, device: Device, runtime: Runtime
) -> tuple[str | None, Session]:
    """Open a variant, or the weights in PyTorch where nothing has been exported; returns the variant's name too."""
    from regnet_deploy.runtimes.checked_variant import open_checked_variant
    from regnet_deploy.runtimes.default_variant import default_variant
    from regnet_deploy.runtimes.runtime import check_runtime

    if variant is not None or bundle.manifest.variants:
        name = default_variant(bundle, variant, device, runtime)
        return name, open_checked_variant(bundle, name, threads=threads, device=device, runtime=runtime)
    check_runtime(runtime, device)
    if runtime != "auto":
        raise MissingPart(
            f"--runtime {runtime} runs an exported variant, and {bundle.path} has none: run `regnet-deploy export "
            f"--onnx{bundle.argument}` first"
        )
    if device not in ("auto", "cpu"):
        raise MissingPart(
            f"--device {device} runs an exported variant, and {bundle.path} has none: run "
            f"`regnet-deploy export --onnx{bundle.argument}` first, or choose --device cpu"
        )
    try:
        return None, open_weights(bundle)
    except MissingExtra as error:
        raise MissingPart(f"{bundle.path} has nothing exported, and its weights need PyTorch - {error}") from None
