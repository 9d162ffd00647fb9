"""Plans are loaded in one place: a plan is as good as a program, so code that it may bring along stays disallowed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regnet_deploy.engines.builder_log import BuilderLog, failure
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.library import Library


@dataclass(frozen=True, eq=False)
class DeserializedEngine:
    """An engine, and what has to live as long as it.

    Attributes:
        engine: TensorRT's ``ICudaEngine``.
        heard: what the library said, and goes on to say while the engine runs.
        runtimes: that loaded it.
    """

    engine: Any
    heard: BuilderLog
    runtimes: tuple[Any, ...]


def deserialize_engine(
    library: Library, plan: bytes, gpu: Gpu | None = None, lean: Path | None = None
) -> DeserializedEngine:
    """Load a plan whose sha256 was checked before.

    Args:
        library: of the engine's runtime.
        plan: the engine's bytes.
        gpu: that it runs on, for the message.
        lean: the lean runtime's library, for a version-compatible engine: of the version that built it.

    Raises:
        RegnetDeployError: it does not load; one line with the library's reason.
    """
    heard = BuilderLog(library.module)
    try:
        runtimes = [library.module.Runtime(heard.logger)]
    except TypeError:  # what its binding makes of a driver that cannot be used
        raise failure(library, "does not start", heard.errors, gpu) from None
    if lean is not None:
        runtimes.append(runtimes[0].load_runtime(str(lean)))
    if runtimes[-1] is None:
        raise failure(library, f"does not load the lean runtime {lean}", heard.errors, gpu)
    runtimes[-1].engine_host_code_allowed = False  # the default, said so that nobody need know
    heard.listen_to(library.runtime, runtimes[-1])
    engine = runtimes[-1].deserialize_cuda_engine(plan)
    if engine is None:
        where = f" on {gpu.name}" if gpu else ""
        raise failure(library, f"does not load the engine{where}", heard.errors, gpu)
    heard.listen_to(library.runtime, engine)
    return DeserializedEngine(engine, heard, tuple(runtimes))
