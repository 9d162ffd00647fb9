"""One version of a model, ready to run: its sessions, queue and golden set. Knows nothing of HTTP."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import WEIGHTS, Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.variants import Gate
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import UsageError
from regnet_deploy.field_types import check_field_types
from regnet_deploy.images.preprocessing import image_shape, normalize
from regnet_deploy.runtimes.checked_variant import disagreement
from regnet_deploy.runtimes.default_variant import default_variant, fallback_note, needs_engine_build, proof_of
from regnet_deploy.runtimes.gates import gate_to_serve
from regnet_deploy.runtimes.golden_set import FILE, Agreement, GoldenSet, load_golden, replay
from regnet_deploy.runtimes.predictions import labels_of
from regnet_deploy.runtimes.runtime import Device, Runtime, Session, classify_pixels, find_variant, open_variant
from regnet_deploy.runtimes.tuned_settings import tuned_settings
from regnet_deploy.serving.batching import Batcher, Batching
from regnet_deploy.serving.daemon_thread import run_in_daemon_thread
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.model_interface import ModelInterface
from regnet_deploy.serving.protocol import HeaderCache
from regnet_deploy.serving.statistics import Statistics
from regnet_deploy.serving.version_policy import ALL_VERSIONS, VersionPolicy
from regnet_deploy.serving.web_page import card_of

#: Opens the engine of a variant, built for this machine.
BuildEngine = Callable[[Bundle, str], Session]


@dataclass(frozen=True)
class ServeOptions:
    """How to run a bundle; None: as ``tune`` found on this machine, else the default.

    Attributes:
        variant: name of the exported variant; by default the fastest proved one.
        runtime: that runs it.
        device: that runs it.
        threads: CPU threads of an inference; by default cores / executors.
        executors: inferences at a time; by default 1.
        batch: images in an inference at most; by default 8.
        max_delay_s: seconds for which an incomplete batch waits for more requests; by default 0.
        build: builds the engine of a variant that has none for this machine; None: none is built.
    """

    variant: str | None = None
    runtime: Runtime = "auto"
    device: Device = "auto"
    threads: int | None = None
    executors: int | None = None
    batch: int | None = None
    max_delay_s: float | None = None
    build: BuildEngine | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UsageError: an engine is to be built, but no variant is named.
        """
        check_field_types(self)
        if self.build is not None and self.variant is None:
            raise UsageError("an engine is built for one variant: name it with --variant, such as --variant trt-fp16")


@dataclass(frozen=True, eq=False)
class ModelVersion:
    """An opened variant with all that its requests need.

    Attributes:
        bundle: has the variant.
        variant: its name in the bundle.
        sessions: one for each executor, or one for all.
        interface: names, types and shapes.
        preprocessing: of the bundle.
        golden: images and reference logits.
        gate: that it must pass on its golden set.
        batching: how requests are batched.
        threads: CPU threads of an inference.
        limits: what clients may ask for.
        card: description for people, JSON data.
        digest: of the bundle's manifest.
        content: see :func:`served_content`.
        note: for the operator; None: nothing to say.
        statistics: counts and durations of its requests.
        header_cache: parsed JSON headers of requests, and headers of responses, that repeat.
    """

    bundle: Bundle
    variant: str
    sessions: tuple[Session, ...]
    interface: ModelInterface
    preprocessing: Preprocessing
    golden: GoldenSet
    gate: Gate
    batching: Batching
    threads: int
    limits: Limits
    card: dict[str, Any]
    digest: str
    content: str
    note: str | None = None
    statistics: Statistics = field(default_factory=Statistics)
    header_cache: HeaderCache = field(default_factory=HeaderCache)
    _started: list[Batcher] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.interface.model

    @property
    def version(self) -> str:
        """The version, a whole number above 0."""
        return self.interface.version

    @property
    def session(self) -> Session:
        """The first session; the others are like it."""
        return self.sessions[0]

    @property
    def platform(self) -> str:
        """The runtime, as the protocol names it."""
        runtime = self.session.runtime.split()[0]
        return {"onnxruntime": "onnxruntime_onnx", "openvino": "openvino_onnx"}.get(runtime, "tensorrt_plan")

    @property
    def batcher(self) -> Batcher:
        """The queue and its executors.

        Raises:
            RuntimeError: :meth:`start` was not called.
        """
        if not self._started:
            raise RuntimeError(f"model {self.name} version {self.version} is not started")
        return self._started[0]

    def prove(self) -> Agreement:
        """Replay the golden set on every session, and run a full batch once to warm it up.

        Raises:
            ProofError: the variant does not agree with the trained model on this machine.
        """
        agreements = [
            replay(session, self.golden, self.preprocessing, self.gate, min(8, self.limits.max_batch))
            for session in self.sessions
        ]
        for agreement in agreements:
            if not agreement.passed:
                raise disagreement(self.bundle, self.variant, self.session, agreement)
        warm = np.repeat(self.golden.images[:1], self.batching.batch, axis=0)
        for session in self.sessions:
            classify_pixels(session, warm, self.preprocessing)
        return max(agreements, key=lambda agreement: agreement.max_abs_error)

    def start(self) -> None:
        """Start the executors; called on the event loop that will use them."""
        sessions = [self.sessions[i % len(self.sessions)] for i in range(self.batching.executors)]
        runs = [partial(_run, session, self.preprocessing) for session in sessions]
        self._started.append(Batcher(runs, self.batching, self.name))

    def close(self) -> None:
        """Stop the executors once their queue is empty."""
        for batcher in self._started:
            batcher.close()

    def metadata(self, versions: list[str] | None = None) -> dict[str, Any]:
        """Return the body of a model metadata response."""
        return self.interface.metadata(self.platform, versions) | {
            "properties": {
                "variant": self.variant,
                "runtime": self.session.runtime,
                "device": self.session.device,
            }
        }

    def config(self) -> dict[str, Any]:
        """Return the body of a model configuration response."""
        return self.interface.config(self.platform, self.session.device, self.batching, self.limits.deadline_s)

    def stats(self) -> dict[str, Any]:
        """Return this version's element of a statistics response."""
        return self.statistics.to_json(self.name, self.version, self.batcher.executions)


def served_content(bundle: Bundle) -> str:
    """Return a sha256 of what clients know as a version: the network, its classes and its preprocessing.

    A version has the same number for as long as this is the same, whatever ``profile``, ``tune`` or another export add
    to the bundle: all variants are proved to agree with the weights. A network that is not trained is known by its
    golden set.
    """
    network = bundle.files.get(WEIGHTS) or bundle.files.get(FILE)
    content = [network and network.sha256, bundle.parts.get("labels"), bundle.parts.get("preprocessing")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_version(
    bundle: Bundle,
    options: ServeOptions | None = None,
    *,
    model: str = "regnet",
    version: str = "1",
    policy: VersionPolicy = ALL_VERSIONS,
    limits: Limits | None = None,
) -> ModelVersion:
    """Open a variant of a bundle for serving.

    Args:
        bundle: of the model.
        options: how to run it.
        model: what clients call it.
        version: of the model.
        policy: which of its versions are served.
        limits: what clients may ask for.

    Raises:
        MissingPart: nothing has been exported; the message names the command.
        UsageError: the variant is unknown, unproved, or cannot be run here.
        BundleError: a file is damaged.
    """
    limits = limits or Limits()
    preprocessing = bundle.preprocessing
    golden = load_golden(bundle)
    options, note = _fill_in_tuned_settings(bundle, options or ServeOptions())
    executors = options.executors or 1
    threads = options.threads or max(1, available_cores() // executors)
    if (
        options.build is not None
        and options.variant is not None
        and needs_engine_build(bundle, options.variant, options.device, options.runtime)
    ):
        chosen, sessions = options.variant, [options.build(bundle, options.variant)]
    else:
        chosen = default_variant(bundle, options.variant, options.device, options.runtime)
        if options.variant is None:
            fallback = fallback_note(bundle, chosen, options.device, options.runtime)
            note = "; ".join(line for line in (note, fallback) if line) or None
        opener = partial(
            open_variant,
            bundle,
            chosen,
            threads=threads,
            device=options.device,
            runtime=options.runtime,
            callers=executors if threads == 1 else 1,
        )
        sessions = [opener()]
        if threads > 1 and sessions[0].device == "cpu":  # executors that share a session's threads slow each other down
            sessions += [opener() for _ in range(executors - 1)]
    session = sessions[0]
    interface = ModelInterface(
        model=model,
        version=version,
        input=session.input_name,
        dtype=session.input,
        image=image_shape(preprocessing, pixels=session.input == "uint8"),
        output=session.output_name,
        labels=labels_of(bundle),
        max_batch=limits.max_batch,
        policy=policy,
    )
    gate = gate_to_serve(find_variant(bundle, chosen).precision, proof_of(bundle, chosen))
    batching = Batching(
        executors=executors,
        batch=options.batch or Batching().batch,
        max_delay_s=options.max_delay_s or 0.0,
        max_queue=limits.max_queue,
    )
    return ModelVersion(
        bundle=bundle,
        variant=chosen,
        sessions=tuple(sessions),
        interface=interface,
        preprocessing=preprocessing,
        golden=golden,
        gate=gate,
        batching=batching,
        threads=threads,
        limits=limits,
        card=card_of(bundle, chosen),
        digest=bundle.digest,
        content=served_content(bundle),
        note=note,
    )


def _fill_in_tuned_settings(bundle: Bundle, options: ServeOptions) -> tuple[ServeOptions, str | None]:
    """Fill in the settings that ``tune`` found on this machine; the note says which, or why they do not apply."""
    found = tuned_settings(bundle, variant=options.variant, device=options.device, runtime=options.runtime)
    if found is None or isinstance(found, str):
        return options, found
    requested = (options.threads, options.executors, options.batch, options.max_delay_s)
    options = replace(options, device=found.device if options.device == "auto" else options.device)
    tuned = found.settings
    if requested != (None, None, None, None):  # the tuned settings are only valid together
        return replace(options, variant=tuned.variant, runtime=tuned.runtime), None
    filled = replace(
        options,
        variant=tuned.variant,
        runtime=tuned.runtime,
        threads=tuned.threads,
        executors=tuned.executors,
        batch=tuned.batch,
        max_delay_s=tuned.max_delay_ms / 1000,
    )
    return filled, f"as tuned here for p99 {found.p99_ms:g} ms: {found.rate:.1f} images/s"


def _run(session: Session, preprocessing: Preprocessing, parts: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Run a network on tensors of its input type, or on pixels, which are normalized where the network needs it."""
    wanted = [
        normalize(part, preprocessing) if part.dtype == np.uint8 and session.input == "float32" else part
        for part in parts
    ]
    # A single tensor may still lie behind its JSON header, not aligned for its type.
    return session.run(np.require(wanted[0], requirements="A") if len(wanted) == 1 else np.concatenate(wanted))


async def load_proved_version(model: ModelVersion) -> Agreement:
    """Replay the golden set off the event loop, then start the executors.

    Raises:
        ProofError: see :meth:`ModelVersion.prove`.
    """
    agreement = await run_in_daemon_thread(model.prove)
    model.start()
    return agreement
