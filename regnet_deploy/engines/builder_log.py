"""What TensorRT says while it works, in several voices, made into one clear line."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from threading import Lock
from types import ModuleType
from typing import Any
from weakref import WeakSet

from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.library import Library
from regnet_deploy.errors import RegnetDeployError

#: Is told how many steps a phase that begins has, and its name; from threads of TensorRT's.
Progress = Callable[[int, str], None]

_OUT_OF_MEMORY = re.compile(r"out\s?of\s?memory|could not be allocated|insufficient (device )?memory|bad_alloc", re.I)
#: Where in TensorRT's own sources it came from; of no use to whoever reads the line.
_ORIGIN = re.compile(
    r"^(I?[A-Z]\w+::\w+: )?(Error Code \d+: )?|\(?\[\w[\w.]*\.cpp:\d+: (?P<pass>\w+)\] ?|\.? ?\bIn \w+ at /\S+:\d+\)?",
    re.M,
)


class BuilderLog:
    """What a library said through its logger and its error recorder.

    Attributes:
        logger: for the constructors that take one; the same for all, see :class:`_Listeners`.
        recorder: for the attribute ``error_recorder``.
        errors: what went wrong, in the order in which it was said, each once.
        layers: the list of an engine's layers, where a builder wrote one.
    """

    def __init__(self, trt: ModuleType) -> None:
        self.errors: list[str] = []
        self.layers: str | None = None
        self._lock = Lock()
        listeners = _listeners(trt)
        listeners.add(self)
        self.logger, self.recorder = listeners.logger, _recorder(trt, self)

    def forget(self) -> None:
        """Forget what went wrong so far: what comes next may fail for another reason."""
        with self._lock:
            self.errors.clear()
        self.recorder.clear()

    def listen_to(self, runtime: str, spoken: Any) -> None:
        """Have what runs engines tell its errors to the recorder, for as long as it is there.

        Only for TensorRT: with TensorRT-RTX a recorder ends the process, see :func:`record_log`; its logger has the
        same messages.
        """
        if runtime == "tensorrt":
            spoken.error_recorder = self.recorder

    def take_error(self, text: str) -> None:
        """Keep what went wrong; called from any thread."""
        line = plain_text(text)
        with self._lock:
            if line and line not in self.errors:
                self.errors.append(line)

    def take(self, severity_is_error: bool, text: str) -> None:
        """Keep what matters of a line of the log."""
        if severity_is_error:
            self.take_error(text)
        elif text.startswith("Layers:"):
            self.layers = text


class _Listeners:
    """Everything that listens to a library. There is one logger for as long as the process lives.

    TensorRT keeps the first logger that it is given for all that has none of its own, and uses it after whoever gave
    it has gone; of another one it says that it is ignored.
    """

    def __init__(self, trt: ModuleType) -> None:
        self._lock, self._live = Lock(), WeakSet[BuilderLog]()
        self.logger = _logger(trt, self)

    def add(self, heard: BuilderLog) -> None:
        with self._lock:
            self._live.add(heard)

    def take(self, severity_is_error: bool, text: str) -> None:
        with self._lock:
            live = list(self._live)
        for heard in live:
            heard.take(severity_is_error, text)


@functools.cache
def _listeners(trt: ModuleType) -> _Listeners:
    return _Listeners(trt)


@contextlib.contextmanager
def record_log(builder: Any, heard: BuilderLog) -> Iterator[None]:
    """Have a builder tell its errors to the recorder for as long as the body runs, and no longer.

    A network that was parsed while the builder had a recorder ends the process when it is freed (TensorRT-RTX 1.7), so
    this begins behind the parser, which keeps its own errors.
    """
    builder.error_recorder = heard.recorder
    try:
        yield
    finally:
        builder.error_recorder = None


def plain_text(text: str) -> str:
    """Return TensorRT's reason as one line without the places in its sources."""
    return " ".join(_ORIGIN.sub("", text).split())


def failure(library: Library, what: str, reasons: Iterable[str], gpu: Gpu | None = None) -> RegnetDeployError:
    """Return the error of one line for what TensorRT says in several; that memory was short is said first."""
    found = list(dict.fromkeys(filter(None, map(plain_text, reasons))))
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    said = "; ".join(found[:3]) or "no reason given"
    if any(_OUT_OF_MEMORY.search(reason) for reason in found):
        memory = f"{gpu.name} has {gpu.memory_bytes / 2**30:.1f} GiB; " if gpu else ""
        what = (
            f"{what}, the GPU's memory is too small or in use: {memory}end what else runs on it, or use a smaller "
            "largest batch or workspace"
        )
    return RegnetDeployError(f"{library} {what}: {said}{more}")


class BuildProgress:
    """Passes on a build's progress, and ends the build where asked to.

    Attributes:
        hook: for the configuration's ``progress_monitor``.
        cancelled: set it from any thread and the build ends at its next step.
        raised: what the receiver of the progress raised, which ended the build; TensorRT's threads cannot carry it.
    """

    def __init__(self, trt: ModuleType, progress: Progress) -> None:
        self.cancelled = False
        self.raised: BaseException | None = None
        self.hook = _progress_monitor(trt, self)
        self._progress = progress

    def begin(self, phase: str, steps: int) -> None:
        """Tell of a phase that begins."""
        try:
            self._progress(steps, phase)
        except BaseException as error:  # raised again by the thread that waits for the build
            self.raised, self.cancelled = error, True


def _logger(trt: ModuleType, listeners: _Listeners) -> Any:
    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            listeners.take(severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR), message)

    return Logger()


def _recorder(trt: ModuleType, heard: BuilderLog) -> Any:
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
            heard.take_error(text)
            return False  # go on: what failed says so by what it returns

    return Recorder()


def _progress_monitor(trt: ModuleType, monitor: BuildProgress) -> Any:
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
