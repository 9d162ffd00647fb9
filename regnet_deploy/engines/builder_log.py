"""Collects the errors that TensorRT reports through its logger and its error recorder, and follows its builds."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator
from threading import Lock
from types import ModuleType
from typing import Any
from weakref import WeakSet

from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.library import Library
from regnet_deploy.errors import RegnetDeployError
from regnet_deploy.progress import Progress

_OUT_OF_MEMORY = re.compile(r"out\s?of\s?memory|could not be allocated|insufficient (device )?memory|bad_alloc", re.I)
#: Places in TensorRT's source code, which mean nothing to a user.
_ORIGIN = re.compile(
    r"^(I?[A-Z]\w+::\w+: )?(Error Code \d+: )?|\(?\[\w[\w.]*\.cpp:\d+: (?P<pass>\w+)\] ?|\.? ?\bIn \w+ at /\S+:\d+\)?",
    re.M,
)


class BuilderLog:
    """The errors that a library reports through its logger and its error recorder.

    Attributes:
        logger: for the constructors that take one; all logs of a library have the same, see :class:`_SharedLogger`.
        recorder: for the attribute ``error_recorder``.
        errors: error messages in order, without repetitions.
        layers: the builder's last list of an engine's layers, or None. Only that of TensorRT-RTX has their types.
    """

    def __init__(self, trt: ModuleType) -> None:
        self.errors: list[str] = []
        self.layers: str | None = None
        self._lock = Lock()
        shared = _shared_logger(trt)
        shared.add(self)
        self.logger, self.recorder = shared.logger, _recorder(trt, self)

    def clear(self) -> None:
        """Remove the errors, before a call that may fail for another reason."""
        with self._lock:
            self.errors.clear()
        self.recorder.clear()

    def attach_to(self, runtime: str, trt_object: Any) -> None:
        """Set the recorder of a TensorRT object that runs engines.

        Not for TensorRT-RTX, where this can end the process (see :func:`record_errors`) and the logger has the same
        messages.
        """
        if runtime == "tensorrt":
            trt_object.error_recorder = self.recorder

    def add_error(self, text: str) -> None:
        """Add an error message; called from any thread."""
        line = plain_text(text)
        with self._lock:
            if line and line not in self.errors:
                self.errors.append(line)

    def add_line(self, is_error: bool, text: str) -> None:
        """Add a line of the library's log; called from any thread."""
        if is_error:
            self.add_error(text)
        elif text.startswith("Layers:"):
            self.layers = text


class _SharedLogger:
    """The one logger of a library, which passes each line to all logs that are alive.

    TensorRT keeps the first logger of the process, uses it for objects without one and warns about any other. So the
    logger lives as long as the process.
    """

    def __init__(self, trt: ModuleType) -> None:
        self._lock, self._live = Lock(), WeakSet[BuilderLog]()
        self.logger = _logger(trt, self)

    def add(self, log: BuilderLog) -> None:
        with self._lock:
            self._live.add(log)

    def add_line(self, is_error: bool, text: str) -> None:
        with self._lock:
            live = list(self._live)
        for log in live:
            log.add_line(is_error, text)


@functools.cache
def _shared_logger(trt: ModuleType) -> _SharedLogger:
    return _SharedLogger(trt)


@contextlib.contextmanager
def record_errors(builder: Any, log: BuilderLog) -> Iterator[None]:
    """Set the error recorder of a builder for as long as the body runs.

    A network that was parsed while the builder had a recorder ends the process when it is freed (TensorRT-RTX 1.7). So
    the recorder is set after parsing; the parser keeps its own errors.
    """
    builder.error_recorder = log.recorder
    try:
        yield
    finally:
        builder.error_recorder = None


def plain_text(text: str) -> str:
    """Return TensorRT's error message as one line without places in its source code."""
    return " ".join(_ORIGIN.sub("", text).split())


def build_error(library: Library, problem: str, reasons: Iterable[str], gpu: Gpu | None = None) -> RegnetDeployError:
    """Return an error of one line from TensorRT's messages; it says first whether memory was short.

    Args:
        library: that failed.
        problem: such as ``does not build the network``.
        reasons: TensorRT's messages.
        gpu: of this machine, or None.
    """
    lines = list(dict.fromkeys(filter(None, map(plain_text, reasons))))
    more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
    reason = "; ".join(lines[:3]) or "no reason given"
    if any(_OUT_OF_MEMORY.search(line) for line in lines):
        memory = f"{gpu.name} has {gpu.memory_bytes / 2**30:.1f} GiB; " if gpu else ""
        problem = (
            f"{problem}, the GPU's memory is too small or in use: {memory}stop other programs on it, or use a smaller "
            "maximum batch or workspace"
        )
    return RegnetDeployError(f"{library} {problem}: {reason}{more}")


class BuildMonitor:
    """Reports the phases of a build, and can cancel it.

    Attributes:
        hook: for the configuration's ``progress_monitor``.
        cancelled: may be set from any thread; the build then ends at its next step.
        raised: exception of the progress, which cancelled the build; it cannot pass through TensorRT's threads.
    """

    def __init__(self, trt: ModuleType, progress: Progress) -> None:
        self.cancelled = False
        self.raised: BaseException | None = None
        self.hook = _progress_monitor(trt, self)
        self._progress = progress

    def begin(self, phase: str, steps: int) -> None:
        """Report the start of a phase."""
        try:
            self._progress.update(0, note=f"{phase} ({steps})")
        except BaseException as error:  # the thread that waits for the build raises it again
            self.raised, self.cancelled = error, True


def _logger(trt: ModuleType, shared: _SharedLogger) -> Any:
    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            shared.add_line(severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR), message)

    return Logger()


def _recorder(trt: ModuleType, log: BuilderLog) -> Any:
    class Recorder(trt.IErrorRecorder):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self._codes: list[Any] = []
            self._texts: list[str] = []

        def num_errors(self) -> int:
            return len(self._texts)

        def get_error_code(self, index: int) -> Any:
            return self._codes[index]

        def get_error_desc(self, index: int) -> str:
            return self._texts[index]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self._codes.clear()
            self._texts.clear()

        def report_error(self, code: Any, text: str) -> bool:
            self._codes.append(code)
            self._texts.append(text)
            log.add_error(text)
            return False  # continue: the call that failed returns None or False

    return Recorder()


def _progress_monitor(trt: ModuleType, monitor: BuildMonitor) -> Any:
    class Hook(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            monitor.begin(phase, steps)

        def phase_finish(self, phase: str) -> None:
            pass

        def step_complete(self, phase: str, step: int) -> bool:
            return not monitor.cancelled

    return Hook()
