"""Writes a network as a plain file beside its bundle, for programs that do not know bundles.

The file has its usual format and name. Beside it are a JSON file, which says what goes in and comes out, and a short
program that classifies images with it. The golden set of the bundle is replayed on the bytes that were written, before
the files get their names.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from regnet_deploy import __version__
from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.record import to_json
from regnet_deploy.bundle.variants import EngineVariant, OnnxVariant, OpenvinoVariant, Proof
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import UsageError, did_you_mean, require
from regnet_deploy.exporting.emulation import runs_as_typed
from regnet_deploy.exporting.precision import PRECISIONS, find_precision
from regnet_deploy.exporting.proof import open_for_proof, prove
from regnet_deploy.exporting.snippet import MARK, snippet
from regnet_deploy.images.preprocessing import image_shape
from regnet_deploy.output_file import check_output_file, check_regular, staged_files
from regnet_deploy.runtimes.default_variant import default_variant
from regnet_deploy.runtimes.gates import gate_to_serve
from regnet_deploy.runtimes.golden_set import FILE as GOLDEN
from regnet_deploy.runtimes.golden_set import load_golden
from regnet_deploy.runtimes.onnx_file import refuse_external_data, with_metadata
from regnet_deploy.runtimes.openvino_session import installed_openvino, onnx_to_ir, open_ir
from regnet_deploy.runtimes.predictions import labels_of
from regnet_deploy.runtimes.runtime import Session, find_variant

Target: TypeAlias = Literal["onnx", "torchscript", "pt2", "openvino"]
TARGETS: tuple[str, ...] = get_args(Target)

#: Format -> suffixes of its files.
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "onnx": (".onnx",),
    "torchscript": (".pt", ".torchscript"),
    "pt2": (".pt2",),
    "openvino": (".xml",),
}
_DESCRIPTION, _PROGRAM, _WEIGHTS = ".json", ".py", ".bin"

#: Value of ``written_by`` in the JSON file, before the version.
_WRITER = "regnet-deploy"


@dataclass(frozen=True)
class PlainFile:
    """A network that was written as a plain file.

    Attributes:
        path: of the file.
        files: all files that were written, this one first.
        target: its format.
        variant: the exported variant whose network it has; None for the formats of PyTorch.
        precision: name of its precision.
        proof: replay of the golden set on the file.
        notes: what a user of the file has to know, in words.
    """

    path: Path
    files: tuple[Path, ...]
    target: Target
    variant: str | None
    precision: str
    proof: Proof
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "files": [str(path) for path in self.files],
            "target": self.target,
            "variant": self.variant,
            "precision": self.precision,
            "proof": self.proof.to_json(),
            "notes": list(self.notes),
        }


def check_plain_file(bundle: Bundle, path: str | Path, variant: str | None, target: str | None) -> Target:
    """Check before long work that a plain file can be written, and return its format.

    Args:
        bundle: whose network is written.
        path: of the file; its suffix is the format where ``target`` is None.
        variant: the exported variant to write, or None.
        target: one of :data:`TARGETS`, or None.

    Raises:
        UsageError: there is no such format, the name does not fit it, the file or one beside it cannot be written, or
            is another's; or the variant cannot be written so.
        MissingExtra: a library that writes the format is not installed.
    """
    if target is not None and target not in TARGETS:
        raise UsageError(f"--to must be one of {', '.join(TARGETS)}, got {target!r}{did_you_mean(target, TARGETS)}")
    allowed = _SUFFIXES[target] if target else tuple(one for suffixes in _SUFFIXES.values() for one in suffixes)
    file = Path(path)
    check_output_file(file, allowed, f"a network for {target}" if target else "a network")
    if Path(os.path.realpath(bundle.path)) in Path(os.path.realpath(file)).parents:
        raise UsageError(f"{path} is inside the bundle, whose files have names of their own: give another folder")
    found = cast(Target, next(name for name, suffixes in _SUFFIXES.items() if file.suffix.lower() in suffixes))
    _check_beside(file, found)
    if found == "openvino":
        installed_openvino()
    if found != "onnx":
        if variant is not None:
            raise UsageError(
                f"--variant chooses an ONNX file, and {file.name} is written from the FP32 weights: leave out "
                "--variant, or give a name that ends in .onnx"
            )
        for module in ("torch", "safetensors", "onnx"):
            require(module, "export")
    return found


def is_exported(bundle: Bundle) -> bool:
    """Tell whether a bundle has what a plain file is made and proved from: an ONNX variant and the golden set."""
    has_onnx = any(isinstance(one, OnnxVariant) for one in bundle.manifest.variants.values())
    return has_onnx and GOLDEN in bundle.files


def write_plain_file(
    bundle: Bundle, path: str | Path, *, variant: str | None = None, target: str | None = None
) -> PlainFile:
    """Write the network of an exported bundle as a plain file, with its description and a program beside it.

    Args:
        bundle: with exported variants.
        path: of the file, such as ``model.onnx``; ``model.json`` and ``model.py`` are written beside it, or
            ``model.onnx.json`` and ``model.onnx.py`` where those are beside ``model.pt``.
        variant: the exported variant that ``onnx`` writes; None is the one that would be served.
        target: one of :data:`TARGETS`; None is the one of the suffix.

    Raises:
        UsageError: see :func:`check_plain_file`; or the variant does not exist.
        MissingPart: the bundle has no variants or no golden set.
        MissingExtra: a library that the format needs is not installed.
        BundleError: a file of the bundle is damaged.
        ProofError: the written file does not agree with the golden set; nothing is left.
    """
    found = check_plain_file(bundle, path, variant, target)
    network = _onnx_network(bundle, variant) if found == "onnx" else _fp32_network(bundle, found)
    file = Path(path)
    names = (file, file.with_suffix(_WEIGHTS)) if found == "openvino" else (file,)
    contents = dict(zip(names, network.data, strict=True))
    beside, program = _beside(file)
    golden = load_golden(bundle)
    with staged_files() as stage:
        written = [stage(name, data).read_bytes() for name, data in contents.items()]
        session = network.open(*written)
        gate = gate_to_serve(network.precision, network.proof)
        proof = prove(file.name, session, golden, bundle.preprocessing, gate, network.precision)
        description = {
            "written_by": f"{_WRITER} {__version__}",
            "files": {name.name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
            "format": found,
            **network.description,
            "proof": proof.to_json(),
        }
        stage(beside, (json.dumps(description, indent=2, ensure_ascii=False) + "\n").encode())
        if network.runs_elsewhere:
            pixels = session.input == "uint8"
            text = snippet(
                found,
                file.name,
                beside.name,
                pixels=pixels,
                exact=network.exact,
                antialias=bundle.preprocessing.antialias,
            )
            stage(program, text.encode())
    if not network.runs_elsewhere:
        program.unlink(missing_ok=True)  # of an earlier file of this name
    files = (*names, beside, *((program,) if network.runs_elsewhere else ()))
    return PlainFile(file, files, found, network.variant, network.precision, proof, network.notes)


@dataclass(frozen=True)
class _Network:
    """A network in a format, before it is written.

    Attributes:
        data: content of its files.
        open: opens them.
        variant: its name, if it is that of a variant.
        precision: its name.
        proof: of the variant.
        description: for the JSON file.
        notes: for the user.
        exact: whether ONNX Runtime has to compute it without graph optimizations.
        runs_elsewhere: whether a program without regnet-deploy gets these logits.
    """

    data: tuple[bytes, ...]
    open: Callable[..., Session]
    variant: str | None
    precision: str
    proof: Proof | None
    description: Mapping[str, Any]
    notes: tuple[str, ...]
    exact: bool = False
    runs_elsewhere: bool = True


def _onnx_network(bundle: Bundle, requested: str | None) -> _Network:
    name = requested or _served_variant(bundle)
    variant = find_variant(bundle, name)
    if isinstance(variant, OpenvinoVariant):
        raise UsageError(
            f"variant {name} is the file of {variant.source} in OpenVINO: choose --variant {variant.source}, or "
            "--to openvino without --variant for its own format in FP32"
        )
    if isinstance(variant, EngineVariant):
        raise UsageError(
            f"variant {name} is a TensorRT engine, which runs on one kind of GPU: choose --variant {variant.source}, "
            "the ONNX file that it is built from"
        )
    precision = find_precision(variant.precision)
    typed = runs_as_typed(precision)
    notes = [*_notes(bundle), *([variant.note] if variant.note else [])]
    if variant.exact and typed:
        notes.append(
            "it is for TensorRT; ONNX Runtime 1.30 or later computes it as written if graph optimizations are off, as "
            "in the program"
        )
    elif variant.exact:
        notes.append(
            "it is for TensorRT; the installed ONNX Runtime does not compute its types, so no program is written, and "
            "the proof emulates them"
        )
    if variant.weight_bits == 8 and not variant.note:  # which says the same, of newer bundles
        notes.append("it is for CPUs with VNNI or newer instructions; on others its 8-bit sums saturate")
    data = bundle.read(variant.file)
    refuse_external_data(data, str(bundle.stored_path(variant.file)))
    description = {
        **_description(bundle, variant.input),
        "variant": name,
        "precision": precision.name,
        "notes": notes,
    }
    inside = {**description, "proof": to_json(variant.proof)}
    return _Network(
        (with_metadata(data, _texts(inside)),),
        lambda written: open_for_proof(written, precision, "auto"),
        name,
        precision.name,
        variant.proof,
        description,
        tuple(notes),
        variant.exact,
        typed,
    )


def _served_variant(bundle: Bundle) -> str:
    """Return the ONNX variant that would be served here."""
    variants = {name: one for name, one in bundle.manifest.variants.items() if isinstance(one, OnnxVariant)}
    return default_variant(replace(bundle, manifest=bundle.manifest.replace(variants=variants)))


def _fp32_network(bundle: Bundle, target: Target) -> _Network:
    from regnet_deploy.exporting.model_source import load_model_source
    from regnet_deploy.exporting.torch_files import open_pt2, open_torchscript, to_pt2, to_torchscript

    source = load_model_source(bundle)
    notes = _notes(bundle)
    if target == "torchscript":
        notes = (*notes, "PyTorch 2.13 warns that TorchScript is deprecated: --to pt2 writes its successor")
    description = {**_description(bundle, "float32"), "precision": "fp32", "notes": notes}
    inside = json.dumps(description, ensure_ascii=False)
    data: tuple[bytes, ...]
    opener: Callable[..., Session]
    if target == "torchscript":
        data, opener = (to_torchscript(source.model, source.preprocessing, inside),), open_torchscript
    elif target == "pt2":
        data, opener = (to_pt2(source.model, source.preprocessing, inside),), open_pt2
    else:
        data = onnx_to_ir(source.onnx(PRECISIONS["fp32"]), _texts(description))
        opener = partial(open_ir, threads=available_cores())
    return _Network(data, opener, None, "fp32", None, description, notes)


def _description(bundle: Bundle, kind: str) -> dict[str, Any]:
    origin = bundle.manifest.imported
    shape = ["n", *image_shape(bundle.preprocessing, pixels=kind == "uint8")]
    return {
        "architecture": to_json(bundle.architecture),
        "preprocessing": {
            **to_json(bundle.preprocessing),
            "scaled_decoding": bundle.preprocessing.scaled_decoding,
            "antialias": bundle.preprocessing.antialias,
        },
        "labels": list(labels_of(bundle)),
        "input": {"name": "images", "type": kind, "shape": shape},
        "output": {"name": "logits", "type": "float32", "shape": ["n", bundle.architecture.classes]},
        "license": origin.license_text if origin else None,
        "bundle_sha256": bundle.digest,
    }


def _notes(bundle: Bundle) -> tuple[str, ...]:
    origin = bundle.manifest.imported
    notes = [f"license of the weights: {origin.license_text}"] if origin and origin.license else []
    if not bundle.is_trained:
        notes.append("the network is not trained: its logits have no meaning")
    return tuple(notes)


def _texts(description: Mapping[str, Any]) -> dict[str, str]:
    """Return a description as texts: what is not a text as JSON, and nothing for None."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in description.items()
        if value is not None
    }


def _beside(file: Path) -> tuple[Path, Path]:
    """Return the names of the JSON file and of the program beside a file, such as ``model.json`` and ``model.py``.

    They are ``model.pt2.json`` and ``model.pt2.py`` where the short names are those beside ``model.pt``.
    """
    short = file.with_suffix(_DESCRIPTION)
    others = [name for name in _described_files(short, file) if name not in _files_of(file)]
    if os.path.lexists(f"{file}{_DESCRIPTION}") or any((file.parent / name).exists() for name in others):
        return Path(f"{file}{_DESCRIPTION}"), Path(f"{file}{_PROGRAM}")
    return short, file.with_suffix(_PROGRAM)


def _files_of(file: Path) -> tuple[str, str]:
    return file.name, file.with_suffix(_WEIGHTS).name


def _check_beside(file: Path, target: Target) -> None:
    """Check that what is written beside a file replaces nothing but what was written with a file of this name before.

    Raises:
        UsageError: another file would be replaced, or one cannot be written.
    """
    (beside, program), weights = _beside(file), file.with_suffix(_WEIGHTS)
    described = _described_files(beside, file)
    others = [name for name in described if name not in _files_of(file)]
    if any((file.parent / name).exists() for name in others):
        raise UsageError(f"{beside} describes {others[0]} and would be replaced: give another name than {file.name}")
    text = _read(program, file)
    if text is not None and MARK not in text:
        raise _foreign(program, file)
    if target == "openvino" and check_regular(weights).exists() and weights.name not in described:
        raise _foreign(weights, file)


def _described_files(beside: Path, file: Path) -> tuple[str, ...]:
    """Return the names of the files that a JSON file of an earlier run describes; empty if there is none."""
    text = _read(beside, file)
    if text is None:
        return ()
    try:
        content = json.loads(text)
        if content["written_by"].startswith(_WRITER):
            return tuple(map(str, content["files"]))
    except (ValueError, KeyError, TypeError, AttributeError):  # other JSON, or none
        pass
    raise _foreign(beside, file)


def _read(path: Path, file: Path) -> str | None:
    """Return the text of a file that would be replaced; None if there is none."""
    try:
        return check_regular(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give another name than {file.name}") from None


def _foreign(path: Path, file: Path) -> UsageError:
    return UsageError(
        f"{path} exists, would be replaced with {file.name}, and is not of this command: move it, or give another name"
    )
