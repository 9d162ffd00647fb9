"""Packages a bundle for deployment targets, one folder each. Everything is checked before a folder is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from regnet_deploy import __version__
from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import UsageError
from regnet_deploy.targets.compose import compose_files
from regnet_deploy.targets.kserve import kserve_files
from regnet_deploy.targets.output_folder import MARK, ensure_free, write_folders
from regnet_deploy.targets.packaged_variant import PackagedVariant, choose_packaged_variant
from regnet_deploy.targets.ray_serve import ray_files
from regnet_deploy.targets.settings import DeploymentSettings
from regnet_deploy.targets.triton import triton_files

Files = Callable[[PackagedVariant, DeploymentSettings], dict[str, bytes]]

#: Name of a target -> the function that returns its files.
TARGETS: dict[str, Files] = {
    "triton": triton_files,
    "kserve": kserve_files,
    "ray": ray_files,
    "compose": compose_files,
}


#: Setting -> its option and the targets that use it.
_ONLY_FOR = {
    "image": ("--image", ("kserve", "compose")),
    "storage": ("--storage", ("kserve",)),
    "triton_image": ("--triton-image", ("kserve",)),
    "replicas": ("--replicas", ("kserve", "ray")),
}


@dataclass(frozen=True)
class Package:
    """A packaged target: its name, its folder and the paths of its files."""

    target: str
    folder: Path
    files: tuple[str, ...]


def package(
    bundle: Bundle,
    targets: Sequence[str],
    settings: DeploymentSettings,
    output: Path | None = None,
    *,
    force: bool = False,
) -> tuple[str, list[Package]]:
    """Write a folder for each target and return the variant that was packaged, and the packages.

    Args:
        bundle: has a proved variant.
        targets: one or several names of :data:`TARGETS`.
        settings: of the deployment.
        output: the folder; for several targets, its parent, in which each has a folder of its name. By default
            ``regnet-<target>`` in the working directory.
        force: replace folders of an earlier call.

    Raises:
        MissingPart: nothing has been exported.
        MissingExtra: PyYAML, protobuf, Pillow or safetensors is not installed.
        UsageError: there is no target, no target uses one of the settings, the variant is not proved, or a folder is
            not empty.
        BundleError: a file of the bundle is damaged.
    """
    if not targets:
        raise UsageError(f"name a target, one or several: {', '.join(f'--{name}' for name in TARGETS)}")
    _refuse_unused(targets, settings)
    folders = {target: _folder(target, output, alone=len(targets) == 1) for target in targets}
    for folder in folders.values():
        _refuse_inside(bundle, folder)
        ensure_free(folder, force=force)
    subject = choose_packaged_variant(bundle, settings.variant, gpu=settings.gpu)
    contents = {target: TARGETS[target](subject, settings) for target in targets}
    written = {}
    for target, files in contents.items():
        mark = {"target": target, "variant": subject.variant, "bundle_sha256": bundle.digest, "version": __version__}
        written[folders[target]] = {**files, MARK: (json.dumps(mark, indent=2) + "\n").encode()}
    write_folders(written, force=force)
    return subject.variant, [Package(target, folders[target], tuple(files)) for target, files in contents.items()]


def _folder(target: str, output: Path | None, *, alone: bool) -> Path:
    if output is None:
        return Path(f"regnet-{target}")
    return output if alone else output / target


def _refuse_unused(targets: Sequence[str], settings: DeploymentSettings) -> None:
    for name, (option, users) in _ONLY_FOR.items():
        if getattr(settings, name) != getattr(DeploymentSettings(), name) and not set(users) & set(targets):
            listed = " or ".join(f"--{user}" for user in users)
            end = "and neither was requested" if len(users) > 1 else "which was not requested"
            raise UsageError(f"{option} is for {listed}, {end}")


def _refuse_inside(bundle: Bundle, folder: Path) -> None:
    inside = bundle.path.resolve()
    if inside in (folder.resolve(), *folder.resolve().parents):
        raise UsageError(f"{folder} is inside the bundle {bundle.path}: choose another folder with --output")
