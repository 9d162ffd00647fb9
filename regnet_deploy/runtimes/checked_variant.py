"""Opens variants that agree with the golden set on this machine.

A proof holds for the release of the runtime and the kind of CPU or GPU that it was made with. With others, the same
file can give other answers: releases of ONNX Runtime before 1.30 truncate where a file quantizes FP16, and sums of
8-bit products saturate on CPUs without VNNI. So the golden set is replayed when a variant is opened for the first time,
and a success is remembered in the cache folder of the user: one small file for each network, runtime and machine. A
failure is not remembered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import replace
from typing import Any

from regnet_deploy import __version__
from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.variants import EngineVariant, Gate, OnnxVariant, OpenvinoVariant
from regnet_deploy.cpu import cpu_model
from regnet_deploy.engines.bundle_engines import fitting_engine, library_here
from regnet_deploy.engines.gpu import find_gpu
from regnet_deploy.errors import BundleError, ProofError, UsageError
from regnet_deploy.runtimes.default_variant import default_variant, proof_of
from regnet_deploy.runtimes.gates import gate_to_serve
from regnet_deploy.runtimes.golden_set import FILE, Agreement, load_golden, replay
from regnet_deploy.runtimes.runtime import (
    Device,
    Runtime,
    Session,
    find_variant,
    installed_onnxruntime,
    open_variant,
)
from regnet_deploy.runtimes.tuned_settings import cpu_instructions
from regnet_deploy.user_cache import cache_folder

_RELEASE = re.compile(r"(\S+) (\d+(?:\.\d+)*)")


def open_checked_variant(
    bundle: Bundle, name: str, *, threads: int | None = None, device: Device = "auto", runtime: Runtime = "auto"
) -> Session:
    """Open a variant as :func:`regnet_deploy.runtimes.runtime.open_variant` does, if it agrees with the golden set.

    Raises:
        ProofError: it does not agree here; the message says what to run instead.
        MissingPart: the bundle has no variants, or no golden set.
        UsageError: no variant has this name, or this machine cannot run it.
        BundleError: a file is damaged, or its input is not the one the manifest states.
        RegnetDeployError: an engine cannot be loaded.
    """
    session = open_variant(bundle, name, threads=threads, device=device, runtime=runtime)
    gate = gate_to_serve(find_variant(bundle, name).precision, proof_of(bundle, name))
    facts = _facts(bundle, name, session, gate)
    marker = _marker(facts)
    if not os.path.isfile(marker):  # False also where Path would raise: a folder that may not be read
        agreement = replay(session, load_golden(bundle), bundle.preprocessing, gate)
        if not agreement.passed:
            raise disagreement(bundle, name, session, agreement, device)
        _remember(marker, facts)
    return session


def disagreement(
    bundle: Bundle, name: str, session: Session, agreement: Agreement, device: Device = "auto"
) -> ProofError:
    """Return the error for a variant that does not agree with the golden set here: the figures, and what to do."""
    return ProofError(
        f"variant {name} of {bundle.path} does not agree with its golden set: {'; '.join(agreement.failures)}, by "
        f"{session.runtime} on {session.device} - {_remedy(bundle, name, session, device)}"
    )


def _remedy(bundle: Bundle, name: str, session: Session, device: Device) -> str:
    ways = []
    variants = {other: one for other, one in bundle.manifest.variants.items() if other != name}
    others = replace(bundle, manifest=bundle.manifest.replace(variants=variants))
    with contextlib.suppress(UsageError, BundleError):  # there is none that runs here
        ways.append(f"choose --variant {default_variant(others, None, device)}")
    proof = proof_of(bundle, name)
    here, there = (_RELEASE.match(text or "") for text in (session.runtime, proof.runtime if proof else None))
    if here and there and here[1] == there[1] == "onnxruntime" and _numbers(here[2]) < _numbers(there[2]):
        ways.append(f"pip install --upgrade {installed_onnxruntime()[0]} (it was proved by {there[0]})")
    elif here and there and here[1] != there[1]:
        ways.append(f"choose --runtime {there[1].removesuffix('-rtx')} (it was proved by {there[0]})")
    else:
        options = "--trt" if isinstance(find_variant(bundle, name), EngineVariant) else "--data DIR"
        ways.append(f"export it again on this machine: `regnet-deploy export {options}{bundle.argument}`")
    return ", or ".join(ways)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


def _facts(bundle: Bundle, name: str, session: Session, gate: Gate) -> dict[str, Any]:
    """Return everything that the logits of the golden set and their limits depend on."""
    variant = find_variant(bundle, name)
    if isinstance(variant, EngineVariant):
        engine = fitting_engine(bundle, name, library_here(variant.runtime), find_gpu())
        assert engine is not None  # it was opened
        file, exact, compute = engine.file, False, None
    elif isinstance(variant, OpenvinoVariant):
        source = find_variant(bundle, variant.source)
        assert isinstance(source, OnnxVariant)  # it was opened
        file, exact, compute = source.file, False, variant.compute
    else:
        file, exact, compute = variant.file, variant.exact, None
    gpu = None if session.device == "cpu" else find_gpu()
    return {
        "network": bundle.files[file].sha256,
        "golden_set": bundle.files[FILE].sha256 if FILE in bundle.files else None,
        "preprocessing": bundle.preprocessing.to_json(),
        "gate": gate.to_json(),
        "exact": exact,
        "compute": compute,
        "runtime": session.runtime,
        "device": session.device,
        "cpu": [cpu_model(), *cpu_instructions()],
        "gpu": [gpu.name, gpu.driver] if gpu else None,
        "regnet_deploy": __version__,
    }


def _marker(facts: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return str(cache_folder("golden-sets") / f"{digest}.json")


def _remember(marker: str, facts: dict[str, Any]) -> None:
    """Write the marker: that it exists says that the golden set agreed, its content is for people.

    Programs that run at the same time write the same. Where the folder cannot be written, such as in a container with a
    read-only file system, the next program replays the golden set again.
    """
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(marker), mode=0o700, exist_ok=True)
        with open(marker, "w", encoding="utf-8") as file:
            file.write(json.dumps(facts, indent=2) + "\n")
